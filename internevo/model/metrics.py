"""What a part of a model measures of itself, and losses of its own: one call each, from a forward pass.

    record(self, "expert load", counts.max() / counts.sum(), combine=Combine.max)
    add_loss(self, "router z", logits.logsumexp(-1).square().sum())

The calls keep tensors on the module. Whoever runs the model takes them after each forward pass (`take`), and combines
them over layers, micro-batches and ranks. Passes without gradients record nothing, nor does what a backward pass
computes again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Combine(StrEnum):
    """What a step reports of the values that layers, micro-batches and ranks recorded under one name."""

    mean = "mean"
    """Their mean by weight."""
    sum = "sum"
    max = "max"
    min = "min"


Combination = Combine | Callable[[Tensor, Tensor], Tensor]
"""One of these, or a function like `torch.logaddexp`: elementwise, of two values, in whose order and grouping nothing
matters. It must be importable by its name, as other ranks use it too."""


class Seen(StrEnum):
    """What a value was computed from. Only tensor parallelism makes a difference between them."""

    all = "all"
    """The input of an attention or feed-forward, which is whole everywhere: every rank has the same value."""
    own = "own"
    """Heads or inner features, which are cut by their parameters' roles; or anything that a process has for itself."""
    residual = "residual"
    """The residual stream outside these parts, whose tokens may be cut (`parallel.sequence`)."""


class Recorded(NamedTuple):
    """One call."""

    name: str
    value: Tensor | float
    combine: Combination
    weight: Tensor | float | None
    seen: Seen
    is_loss: bool


def record(
    owner: Any,
    name: str,
    value: Tensor | float,
    combine: Combination = Combine.mean,
    weight: Tensor | float | None = None,
    seen: Seen = Seen.all,
) -> None:
    """Report the scalar `value` under `name` with each step, without its gradient.

    `owner` is the module that measures, or the engine. A mean is weighted by `weight`, or if None by the tokens of the
    micro-batch. What is recorded must be so from the first step on; names are letters, digits and `_ - . /` and spaces.
    """
    _keep(owner, Recorded(name, value.detach() if isinstance(value, Tensor) else value, combine, weight, seen, False))


def add_loss(module: Any, name: str, loss: Tensor, seen: Seen = Seen.all) -> None:
    """Train on `loss` too: a scalar, with its coefficient, summed over the tokens that the module sees.

    The step divides it by the real labels of the whole batch, as it does with the cross-entropy, and reports it under
    `name`; the main loss stays as it is. A parameter that only `Seen.all` values reach has the role `partial`, if no
    dimension of it is cut.
    """
    _keep(module, Recorded(name, loss, Combine.sum, None, seen, True))


def take(owners: Iterable[Any]) -> list[Recorded]:
    """All that modules, or an engine, have recorded since it was last taken."""
    return [one for owner in owners for one in owner.__dict__.pop("_recorded", ())]


def _keep(owner: Any, one: Recorded) -> None:
    if not torch.is_grad_enabled():
        return
    # what is computed again was recorded before, and would keep activations; compiled code is not run again in Python
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        return
    owner.__dict__.setdefault("_recorded", []).append(one)
