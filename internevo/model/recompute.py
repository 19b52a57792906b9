"""What the backward pass recomputes instead of keeping it: nothing, cheap operations, or everything in a block."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from internevo.config.schema import ModelConfig
from internevo.model.kernels import sdpa, varlen


class Policy(StrEnum):
    """What is recomputed of a block, from least to most."""

    none = "none"
    selective = "selective"
    """All but attention and matrix products: norms, rotations, the activation function, sums."""
    full = "full"
    """The whole block, from its input."""


aten = torch.ops.aten
_KEPT = frozenset(
    {
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten._scaled_mm.default,
        sdpa.OPERATOR,
        varlen.OPERATOR,
        torch.ops.higher_order.flex_attention,
    }
)


def recompute(function: Callable[[Tensor], Tensor], x: Tensor, policy: Policy) -> Tensor:
    """`function(x)`, of which the policy says what is kept."""
    if policy == Policy.none or not torch.is_grad_enabled():
        return function(x)
    if policy == Policy.full:
        return checkpoint(function, x, use_reentrant=False)
    return checkpoint(function, x, use_reentrant=False, context_fn=_keeping_products)


def _keeping_products() -> Any:
    return create_selective_checkpoint_contexts(_choose)


def _choose(context: Any, operator: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    kept = operator in _KEPT or "flash_attn" in str(operator)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def activation_bytes(config: ModelConfig, policy: Policy, size: int) -> int:
    """Bytes that one block keeps for the backward pass, for each token, with activations of `size` bytes.

    Uncompiled: torch.compile keeps less without recomputation, since it recomputes what is cheap of itself.
    """
    hidden, ffn = config.hidden, config.ffn
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    products = q + 2 * kv + hidden + 2 * ffn + hidden  # q, k, v, into the residual stream, gate and up, down
    lse = 4 * config.heads
    if policy == Policy.full:
        return size * hidden
    if policy == Policy.selective:
        return size * (hidden + products + q) + lse
    # both norms' inputs and outputs, q, k, v, attention's output, and four steps of the feed-forward
    head_norms = size * (q + kv) if config.qk_norm else 0
    return size * (4 * hidden + 2 * q + 2 * kv + 4 * ffn) + lse + head_norms


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
