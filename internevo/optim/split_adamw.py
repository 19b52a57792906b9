"""AdamW in fp32 on what is kept in fewer bytes: weights as bf16 and a rest, moments in bf16.

Bytes a parameter, where the passes run on the parameter itself: 2 for the bf16 weight, 2 for the rest of the fp32
weight, 4 for its gradient (2 when a step has one micro-batch), and 8 for the moments, or 4 in bf16. fp32 parameters,
such as a rank's parts of them, have no rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from internevo.config.schema import OptimizerConfig
from internevo.model.documents import to_device
from internevo.model.roles import Role
from internevo.optim.groups import Rate, parameter_groups
from internevo.optim.split_fp32 import PIECE, REST, begin_rest, join, noise_like, round_by_chance, split


class SplitAdamW(torch.optim.Optimizer):
    """AdamW on named parameters. Takes `grad_scale` and `found_inf` as torch's fused optimizers do.

    `moments` is what the moments are kept in; bf16 ones are rounded by chance. `compiled` makes one kernel of the
    update.
    """

    _step_supports_amp_scaling = True  # as torch marks its own that do
    grad_scale: Tensor
    found_inf: Tensor

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        roles: Mapping[str, Role],
        config: OptimizerConfig,
        rate: Rate,
        moments: torch.dtype,
        compiled: bool,
    ):
        super().__init__(parameter_groups(parameters, roles, config, rate), {"lr": config.lr})
        self._order, self._config, self._compiled = list(parameters.values()), config, compiled
        device = self._order[0].device
        self._steps = torch.zeros((), device=device)
        for parameter in self._order:
            self.state[parameter] = {
                "step": self._steps,
                "exp_avg": torch.zeros_like(parameter, dtype=moments),
                "exp_avg_sq": torch.zeros_like(parameter, dtype=moments),
                **begin_rest(parameter),
            }

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter by its gradient; nothing changes when `found_inf` is 1."""
        finite = (self.found_inf == 0).to(self._steps)
        self._steps += finite
        betas, eps = self._config.betas, self._config.eps
        corrections = [1 - beta ** self._steps.double() for beta in betas]
        numbers = torch.stack([self.grad_scale.double(), finite.double(), *corrections])
        move: Callable[..., None] = _compiled() if self._compiled else adamw_piece
        rates: dict[Tensor, Tensor] = {}
        for group in self.param_groups:
            # on the device: a compiled kernel cannot read the host's memory
            numbers_of_group = torch.tensor([group["lr"], group["weight_decay"], *betas, eps], dtype=torch.float64)
            rates |= dict.fromkeys(group["params"], to_device(numbers_of_group, self._steps.device))
        stream = 0
        for parameter in self._order:
            state = self.state[parameter]
            assert parameter.grad is not None
            flat = [parameter.detach(), parameter.grad, state["exp_avg"], state["exp_avg_sq"]]
            flat += [state[REST]] if REST in state else []
            for piece in zip(*(x.view(-1).split(PIECE) for x in flat), strict=True):
                weight, gradient, first, second, *rest = piece
                move(
                    weight=weight,
                    rest=rest[0] if rest else None,
                    gradient=gradient,
                    first=first,
                    second=second,
                    numbers=numbers,
                    rates=rates[parameter],
                    step=self._steps,
                    stream=stream,
                )
                stream += 2


def adamw_piece(
    *,
    weight: Tensor,
    rest: Tensor | None,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    numbers: Tensor,
    rates: Tensor,
    step: Tensor,
    stream: int,
) -> None:
    """AdamW on a flat piece of a parameter, in place, in fp32 whatever is kept; the formula is that of torch's.

    numbers: what gradients are divided by, 1 for a finite step (0 changes nothing), and one minus each beta to the
    power of the step; rates: learning rate, decay, both betas and eps. Both are on the device. Chance in rounding comes
    from `step`, `stream` and the number after it.
    """
    scale, finite, correction1, correction2 = numbers.unbind()
    lr, decay, beta1, beta2, eps = rates.unbind()
    good, old = finite > 0, weight if rest is None else join(weight, rest)
    gradient = gradient.float() / scale
    old_first, old_second = first.float(), second.float()
    new_first = old_first + (gradient - old_first) * (1 - beta1)
    new_second = old_second * beta2 + gradient * gradient * (1 - beta2)
    new = old * (1 - lr * decay)
    new = new - (lr / correction1) * new_first / ((new_second / correction2).sqrt() + eps)
    new = torch.where(good, new, old)
    if rest is None:
        weight.copy_(new)
    else:
        new_high, new_rest = split(new)
        weight.copy_(new_high)
        rest.copy_(new_rest)
    for kept, value, salt in ((first, new_first, 0), (second, new_second, 1)):
        if kept.dtype == torch.bfloat16:
            value = round_by_chance(value, noise_like(value, step, stream + salt))
        kept.copy_(torch.where(good, value, kept))


@cache
def _compiled() -> Callable[..., None]:
    """One kernel that reads and writes every number once."""
    return torch.compile(adamw_piece, dynamic=True)
