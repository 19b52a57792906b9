"""How much memory activations take, and what to recompute so that they fit into less."""

from __future__ import annotations

from itertools import pairwise

from internevo.config.schema import ModelConfig
from internevo.model.recompute import Policy
from internevo.model.transformer import Block


def activation_bytes(config: ModelConfig, policy: Policy, size: int) -> int:
    """Bytes that one block keeps for the backward pass, for each token, with activations of `size` bytes.

    Uncompiled: torch.compile keeps less without recomputation, since it recomputes what is cheap of itself.
    """
    cost = Block.cost(config)
    if policy == Policy.full:
        return size * config.hidden  # the block's input
    return size * (cost.kept if policy == Policy.none else cost.kept_selective) + 4 * cost.kept_fp32


def policies_within(config: ModelConfig, layers: int, tokens: int, size: int, budget: float) -> list[Policy]:
    """For each of `layers` blocks the policy with which all together keep at most `budget` bytes.

    As little as possible is recomputed: blocks go from `none` to `selective` one after the other, then to `full`. Where
    not even that fits, all are `full`.
    """
    order = list(Policy)
    policies = [Policy.none] * layers
    total = layers * tokens * activation_bytes(config, Policy.none, size)
    for before, after in pairwise(order):
        saved = tokens * (activation_bytes(config, before, size) - activation_bytes(config, after, size))
        for number in range(layers):
            if total <= budget:
                return policies
            policies[number] = after
            total -= saved
    return policies
