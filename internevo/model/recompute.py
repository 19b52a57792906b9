"""What the backward pass recomputes instead of keeping it: nothing, cheap operations, or everything in a block."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

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
