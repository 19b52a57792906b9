"""A step's recorded values and auxiliary losses, over layers, micro-batches and ranks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from internevo.files.errors import UserError
from internevo.model.metrics import Combination, Combine, Recorded, Seen, take
from internevo.monitor.metrics import StepMetrics
from internevo.parallel.collectives import gather_dim
from internevo.parallel.mesh import ONE_RANK, Place

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_./ -]{0,62}[A-Za-z0-9])?")
_FUNCTIONS: dict[Combination, Callable[[Tensor, Tensor], Tensor]] = {
    Combine.mean: torch.add,
    Combine.sum: torch.add,
    Combine.max: torch.maximum,
    Combine.min: torch.minimum,
}


class Recorder:
    """What an engine's model records. `everyone` are all ranks; `replicas` is how many of them ZeRO averages over.

    In the first step, ranks tell each other the names; after that, a step takes one message, or none without names.
    """

    def __init__(
        self,
        everyone: Place = ONE_RANK,
        tensor: Place = ONE_RANK,
        replicas: int = 1,
        sequence: bool = False,
        control: dist.ProcessGroup | None = None,
    ):
        self.everyone, self.tensor, self.replicas, self.sequence = everyone, tensor, replicas, sequence
        self.control = control
        self.agreed: list[str] | None = None
        self.known: dict[str, Combination] = {}
        self.kept: dict[str, Tensor] = {}
        """This step's value and weight `[2]` by name; a mean's value is multiplied by its weight."""

    def forward(self, model: nn.Module, run: Callable[[], Tensor], tokens: int, labels: int) -> Tensor:
        """What `run` returns, which runs `model` forward on a micro-batch of `tokens` places.

        Its backward pass adds the gradients of the auxiliary losses, divided by the step's real `labels`.
        """
        take(model.modules())  # of a pass that nobody took from
        out = run()
        found = take(model.modules())
        self._keep(found, out.device, tokens, labels)
        # gradients of what all ranks computed alike are summed over them, further back
        losses = [
            _scalar(one.value, out.device) / (self.tensor.size if one.seen is Seen.all else 1)
            for one in found
            if one.is_loss
        ]
        return _WithLoss.apply(out, torch.stack(losses).sum(), self.replicas / labels) if losses else out

    def pass_over(self, model: nn.Module, run: Callable[[], Tensor]) -> Tensor:
        """What `run` returns; nothing that the model records meanwhile counts."""
        out = run()
        take(model.modules())
        return out

    @torch.no_grad()
    def _keep(self, found: Sequence[Recorded], device: torch.device, tokens: int, labels: int) -> None:
        by_name: dict[str, list[Tensor]] = {}
        for one in found:
            self._check(one)
            alike = one.seen is Seen.all or (one.seen is Seen.residual and not self.sequence)
            if alike and self.tensor.rank > 0:
                continue
            value = _scalar(one.value, device) / (labels if one.is_loss else 1)
            weight = torch.ones_like(value)
            if one.combine == Combine.mean:
                weight = _scalar(tokens if one.weight is None else one.weight, device)
                value = value * weight
            by_name.setdefault(one.name, []).append(torch.stack([value, weight]))
        for name, pairs in by_name.items():
            before = [self.kept[name]] if name in self.kept else []
            self.kept[name] = _fold(self.known[name], torch.stack(before + pairs))

    def _check(self, one: Recorded) -> None:
        """Raise UserError for a name that cannot be reported."""
        if self.known.get(one.name) == one.combine:
            return
        wrong = f"a part of the model records {one.name!r}"
        if one.name in self.known:
            raise UserError(f"{wrong} to be combined by {one.combine} and by {self.known[one.name]}: use two names.")
        if not callable(one.combine) and one.combine not in _FUNCTIONS:
            raise UserError(f"{wrong} to be combined by {one.combine!r}: use {', '.join(Combine)} or a function.")
        if isinstance(one.value, Tensor) and one.value.ndim > 0:
            raise UserError(f"{wrong} with the shape {tuple(one.value.shape)}: record one number.")
        if self.agreed is not None:
            raise UserError(f"{wrong} for the first time after the first step: record it in every step.")
        if not _NAME.fullmatch(one.name):
            raise UserError(f"{wrong}: a name has 1 to 64 letters, digits and inner `_ - . /` and spaces.")
        if one.name in StepMetrics.__dataclass_fields__:
            raise UserError(f"{wrong}, which every step reports anyway: use another name.")
        self.known[one.name] = one.combine

    def gather(self, engine: Any, device: torch.device) -> Tensor:
        """All ranks' values of the step, flat, on the device; `read` makes numbers of them. To be called on all."""
        self._keep(take([engine]), device, 1, 1)
        if self.agreed is None:
            self._agree()
        assert self.agreed is not None
        if not self.agreed:
            return torch.zeros(0, device=device)
        nothing = torch.zeros(2, device=device)
        mine = torch.stack([self.kept.get(name, nothing) for name in self.agreed])
        self.kept = {}
        return gather_dim(mine[None], 0, self.everyone).flatten()

    def read(self, numbers: Sequence[float]) -> dict[str, float]:
        """What the step reports by name: what nobody recorded is not there."""
        values = {}
        ranks = torch.tensor(numbers, dtype=torch.float64).view(self.everyone.size, -1, 2)
        for name, column in zip(self.agreed or (), ranks.unbind(1), strict=True):
            there = column[column[:, 1] > 0]
            if len(there):
                value, weight = _fold(self.known[name], there).tolist()
                values[name] = value / weight if self.known[name] == Combine.mean else value
        return values

    def _agree(self) -> None:
        everyones: list[Any] = [self.known]
        if self.everyone.size > 1:
            everyones *= self.everyone.size
            dist.all_gather_object(everyones, self.known, group=self.control)
        for known in everyones:
            for name, combine in known.items():
                if self.known.setdefault(name, combine) != combine:
                    raise UserError(f"ranks record {name!r} to be combined in two ways: use two names.")
        self.agreed = sorted(self.known)


def _scalar(value: Tensor | float, device: torch.device) -> Tensor:
    """In fp32 on the device, without that the host waits."""
    return value.to(device, torch.float32) if isinstance(value, Tensor) else torch.full((), value, device=device)


def _fold(combine: Combination, pairs: Tensor) -> Tensor:
    """Values and weights `[n, 2]` combined to one of each."""
    function = _FUNCTIONS.get(combine) or combine
    assert callable(function)
    values, weight = pairs[:, 0], pairs[:, 1].sum()
    while (half := len(values) // 2) > 0:
        values = torch.cat([function(values[:half], values[half : 2 * half]), values[2 * half :]])
    return torch.stack([values[0], weight])


class _WithLoss(torch.autograd.Function):
    """A tensor as it is, whose backward pass begins that of a loss too, multiplied by `scale`."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, loss: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return tensor.clone()  # a pipeline cannot let go of a view

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        return grads[0], torch.full((), ctx.scale, device=grads[0].device), None
