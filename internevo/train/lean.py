"""The engine that trains large models on one GPU: bf16 weights that are half of the fp32 ones, and small moments.

Bytes a parameter: 2 for the bf16 weight, 2 for the rest of the fp32 weight, 4 for its gradient (2 when a step has one
micro-batch, whose bf16 gradient is then used as it is), and 8 for the moments, or 4 in bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

from internevo.checkpoint.tensors import LazyTensors
from internevo.config.derive import step_sizes
from internevo.config.schema import StageConfig
from internevo.model.documents import to_device
from internevo.model.transformer import Transformer
from internevo.optim.groups import decays
from internevo.optim.optimizers import clip_scale
from internevo.optim.split_fp32 import join, noise_like, round_by_chance, split
from internevo.parallel.block_settings import prepare_model
from internevo.train.build import empty_model
from internevo.train.engine import OneProcess, refuse_frozen
from internevo.train.loss_model import loss_model
from internevo.train.recorder import Recorder

PIECE = 2**26
"""Elements updated, or joined, at one time: what is between bf16 and fp32 is in memory for these only."""


class LeanEngine(OneProcess):
    """AdamW on split weights, on one process. `model` brings the first weights, in fp32, and is given up."""

    def __init__(self, model: Transformer, stage: StageConfig, device: torch.device):
        self.stage, self.device = stage, device
        self.recorder = Recorder()
        transformer = empty_model(stage.model, device, torch.bfloat16)
        refuse_frozen(transformer, f"optimizer.state={stage.optimizer.state}")
        self.parameters, self.roles = dict(transformer.named_parameters()), transformer.roles
        moments = torch.float32 if stage.optimizer.state == "split" else torch.bfloat16
        self.rest = {name: torch.empty_like(p, dtype=torch.int16) for name, p in self.parameters.items()}
        self.first, self.second = (
            {name: torch.zeros_like(p, dtype=moments) for name, p in self.parameters.items()} for _ in range(2)
        )
        self.steps = torch.zeros((), device=device)
        for name, weight in model.named_parameters():
            self._set_weight(name, weight.detach())
        prepare_model(transformer, stage, device)
        self.model = loss_model(transformer, stage, device)
        # gradients of several micro-batches add up in fp32
        self.gradients: dict[str, Tensor] = {}
        if max(step_sizes(stage.train)) > stage.train.micro_batch:
            for name, parameter in self.parameters.items():
                parameter.register_post_accumulate_grad_hook(self._adder(name))

    @torch.no_grad()
    def update(self, loss: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        gradients = {name: self.gradients.get(name, p.grad) for name, p in self.parameters.items()}
        norms = torch._foreach_norm([g for g in gradients.values() if g is not None], 2, dtype=torch.float32)
        norm = torch.linalg.vector_norm(torch.stack(norms))
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        self.steps += finite
        config = self.stage.optimizer
        scale = clip_scale(norm, config.clip)
        corrections = [1 - beta ** self.steps.double() for beta in config.betas]
        numbers = torch.stack([scale.double(), finite.double(), *corrections])
        move: Callable[..., None] = _compiled() if self.stage.train.compile else adamw_piece
        # of matrices that decay, and of the rest; on the device: a compiled kernel cannot read the host's memory
        decaying, free = (
            to_device(torch.tensor([lr, decay, *config.betas, config.eps], dtype=torch.float64), self.device)
            for decay in (config.weight_decay, 0.0)
        )
        stream = 0
        for name, parameter in self.parameters.items():
            gradient = gradients[name]
            assert gradient is not None
            rates = decaying if decays(self.roles[name], config) else free
            flat = (parameter, self.rest[name], gradient, self.first[name], self.second[name])
            for piece in zip(*(x.detach().view(-1).split(PIECE) for x in flat), strict=True):
                move(*piece, numbers, rates, self.steps, stream)
                stream += 2
            parameter.grad = None
        self.gradients.clear()
        return norm, finite

    def state(self) -> Mapping[str, Tensor]:
        """fp32 weights are joined when they are looked up; all else is live."""
        like: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            like[f"model/{name}"] = torch.empty(parameter.shape, device="meta")
            like[f"optimizer/{name}/step"] = self.steps
            like[f"optimizer/{name}/exp_avg"] = self.first[name]
            like[f"optimizer/{name}/exp_avg_sq"] = self.second[name]
        return LazyTensors(like, lambda name: self._weight(name.removeprefix("model/")))

    def load(self, read: Callable[[Mapping[str, Tensor]], None]) -> None:
        for name, parameter in self.parameters.items():
            weight, at = torch.empty(parameter.shape), f"optimizer/{name}"
            moments = {f"{at}/exp_avg": self.first[name], f"{at}/exp_avg_sq": self.second[name]}
            read({f"model/{name}": weight, f"{at}/step": self.steps, **moments})
            self._set_weight(name, weight)

    def _weight(self, name: str) -> Tensor:
        """The fp32 weight, on the device."""
        high, rest = self.parameters[name].detach(), self.rest[name]
        weight = torch.empty_like(high, dtype=torch.float32)
        for to, *halves in zip(*(x.view(-1).split(PIECE) for x in (weight, high, rest)), strict=True):
            to.copy_(join(*halves))
        return weight

    def _set_weight(self, name: str, weight: Tensor) -> None:
        high, rest = split(weight.to(self.device))
        self.parameters[name].data.copy_(high)
        self.rest[name].copy_(rest)

    def _adder(self, name: str) -> Callable[[Tensor], None]:
        def add(parameter: Tensor) -> None:
            assert parameter.grad is not None
            if name in self.gradients:
                self.gradients[name].add_(parameter.grad)
            else:
                self.gradients[name] = parameter.grad.float()
            parameter.grad = None

        return add


def adamw_piece(
    high: Tensor,
    rest: Tensor,
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
    good, old = finite > 0, join(high, rest)
    gradient = gradient.float() / scale
    old_first, old_second = first.float(), second.float()
    new_first = old_first + (gradient - old_first) * (1 - beta1)
    new_second = old_second * beta2 + gradient * gradient * (1 - beta2)
    new = old * (1 - lr * decay)
    new = new - (lr / correction1) * new_first / ((new_second / correction2).sqrt() + eps)
    new_high, new_rest = split(torch.where(good, new, old))
    high.copy_(new_high)
    rest.copy_(new_rest)
    for kept, value, salt in ((first, new_first, 0), (second, new_second, 1)):
        if kept.dtype == torch.bfloat16:
            value = round_by_chance(value, noise_like(value, step, stream + salt))
        kept.copy_(torch.where(good, value, kept))


@cache
def _compiled() -> Callable[..., None]:
    """One kernel that reads and writes every number once."""
    return torch.compile(adamw_piece, dynamic=True)
