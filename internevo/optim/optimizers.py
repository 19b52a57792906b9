"""The optimizers that a configuration can name, and how all of them are moved.

An optimizer is a plain `torch.optim.Optimizer` that has its state from the beginning, so that a checkpoint can be
loaded into it. State of its parameter's shape is cut over ranks as the parameter is; any other must be the same on all.
To add one, write a function from `Given` to optimizers and put it into `OPTIMIZERS`, or name it in `optimizer.name` as
PACKAGE.MODULE:NAME. Clipping and the decision to skip a step are made here, before it: none can move a weight by
gradients that are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor, nn

from internevo.config.choices import choose
from internevo.config.schema import OptimizerConfig
from internevo.files.errors import UserError
from internevo.model.roles import Kind, Role
from internevo.optim.adamw import adamw, begin_state
from internevo.optim.groups import Rate, parameter_groups, set_learning_rate
from internevo.optim.lion import Lion
from internevo.optim.muon import Muon, OnWhole, each_matrix
from internevo.optim.split_adamw import SplitAdamW


@dataclass(frozen=True)
class Given:
    """What optimizers are made of. `parameters` may be a rank's parts of whole ones; `on_whole` then reaches those."""

    parameters: Mapping[str, nn.Parameter]
    roles: Mapping[str, Role]
    config: OptimizerConfig
    rate: Rate = lambda role: 1.0
    dtype: torch.dtype = torch.float32
    """What matrices are worked on in."""
    compiled: bool = False
    """Whether torch.compile may make kernels of an update."""
    on_whole: OnWhole = each_matrix

    @property
    def moments(self) -> torch.dtype:
        """What moments are kept in."""
        return torch.bfloat16 if self.config.state == "bf16" else torch.float32


def _adamw(given: Given) -> list[torch.optim.Optimizer]:
    split = any(parameter.dtype == torch.bfloat16 for parameter in given.parameters.values())
    if split or given.moments == torch.bfloat16:
        return [
            SplitAdamW(given.parameters, given.roles, given.config, given.rate, given.moments, compiled=given.compiled)
        ]
    optimizer = adamw(given.parameters, given.roles, given.config, given.rate)
    begin_state(optimizer)
    return [optimizer]


def _muon(given: Given) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest."""
    inner = {name: p for name, p in sorted(given.parameters.items()) if given.roles[name].kind is Kind.matrix}
    outer = {name: p for name, p in given.parameters.items() if name not in inner}
    made: list[torch.optim.Optimizer] = []
    if inner:
        # an orthogonal matrix of this scale has a norm that grows with the root of the width; to keep what it does to
        # activations the same, the rate falls with that root, not with the width (arXiv 2310.17813)
        rate = sqrt(given.rate(Role(Kind.matrix)))
        made.append(Muon(inner, given.config, rate, given.dtype, given.moments, given.on_whole))
    return made + (_adamw(replace(given, parameters=outer)) if outer else [])


def _lion(given: Given) -> list[torch.optim.Optimizer]:
    beta1, beta2 = given.config.betas
    groups = parameter_groups(given.parameters, given.roles, given.config, given.rate)
    return [Lion(groups, given.config.lr, (beta1, beta2))]


OPTIMIZERS: dict[str, Callable[[Given], list[torch.optim.Optimizer]]] = {
    "adamw": _adamw,
    "muon": _muon,
    "lion": _lion,
}
"""By their names in `optimizer.name`."""


class Optimizers:
    """One or several torch optimizers over named parameters, moved together."""

    def __init__(self, given: Given):
        self.parameters = dict(given.parameters)
        self.all: list[torch.optim.Optimizer] = choose(given.config.name, OPTIMIZERS)(given)
        if not isinstance(self.all, list) or not all(isinstance(one, torch.optim.Optimizer) for one in self.all):
            raise UserError(
                f"optimizer.name={given.config.name} must return a list of torch.optim.Optimizer; it returned a "
                f"{type(self.all).__name__}."
            )
        for name, parameter in self.parameters.items():
            if not any(parameter in one.state for one in self.all):
                raise UserError(
                    f"optimizer.name={given.config.name} has no state for {name} when it is made, so none could be "
                    "loaded into it. Fill `optimizer.state[parameter]` when making it; with {} where it keeps none."
                )
            for kind, value in self.state(name).items():
                if not isinstance(value, Tensor):
                    raise UserError(
                        f"optimizer.name={given.config.name} keeps {kind!r} of {name} as {type(value).__name__}; a "
                        "checkpoint holds tensors: make it one."
                    )

    def step(self, lr: float, scale: Tensor, finite: Tensor) -> None:
        """Move the parameters by their gradients divided by `scale`; change nothing at all unless `finite`.

        Both are scalars on the device. Optimizers that take them there, as torch's fused ones do, wait for nothing; for
        others, and where the parameters are in host memory, the host waits for `finite`.
        """
        place = next(iter(self.parameters.values())).device
        scale, finite = scale.to(place), finite.to(place)
        for optimizer in self.all:
            set_learning_rate(optimizer, lr)
            if getattr(optimizer, "_step_supports_amp_scaling", False):
                # the two that torch's fused optimizers take from a gradient scaler
                optimizer.grad_scale, optimizer.found_inf = scale, 1.0 - finite.float()  # type: ignore[attr-defined]
                optimizer.step()
            elif finite:
                held = [p for group in optimizer.param_groups for p in group["params"]]
                torch._foreach_div_([p.grad for p in held if p.grad is not None], scale)
                optimizer.step()

    def state(self, name: str) -> dict[str, Tensor]:
        """The state of one parameter, by kind: the live tensors, not copies."""
        parameter = self.parameters[name]
        return next(one.state[parameter] for one in self.all if parameter in one.state)


def clip_scale(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of this global norm are to be divided by, so that it is at most `max_norm`; 0 clips nothing."""
    return (norm / max_norm).clamp(min=1.0) if max_norm > 0 else torch.ones_like(norm)
