"""Muon: momentum whose update is made orthogonal, for matrices (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

The update of a matrix is scaled by `0.2 * sqrt(larger side)`, so that its root mean square is that of AdamW's and both
can have the same learning rate and weight decay (Moonlight, arXiv 2502.16982). A parameter of three dimensions is a
stack of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from internevo.config.schema import OptimizerConfig
from internevo.optim.split_fp32 import as_fp32, begin_rest

OnWhole = Callable[[Callable[[Tensor], Tensor], Mapping[str, Tensor]], dict[str, Tensor]]
"""Calls a function on whole matrices, of which this process may hold parts, and gives its parts of the results."""

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration; chosen by its authors to bring singular values near one quickly, not exactly to it."""


def each_matrix(function: Callable[[Tensor], Tensor], matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The `OnWhole` of a process that holds all of every matrix."""
    return {name: function(matrix) for name, matrix in matrices.items()}


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration: the matrix with all its singular values near one, in its own dtype."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)  # no singular value is larger than this norm
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal. Takes `grad_scale` and `found_inf` as torch's fused optimizers do.

    `moments` is what the momentum is kept in. A step moves it by a twentieth of the way, if not said
    otherwise, so that bf16 is rounded to the nearest.
    """

    _step_supports_amp_scaling = True  # as torch marks its own that do
    grad_scale: Tensor
    found_inf: Tensor

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: OptimizerConfig,
        rate: float,
        dtype: torch.dtype,
        moments: torch.dtype,
        on_whole: OnWhole,
    ):
        defaults = {"lr": config.lr, "momentum": config.momentum, "rate": rate}
        decay = config.weight_decay / rate  # what decay takes from a weight in a step does not depend on the rate
        super().__init__(list(parameters.values()), {**defaults, "weight_decay": decay})
        self._names, self._dtype, self._on_whole = list(parameters), dtype, on_whole
        for parameter in parameters.values():
            buffer = torch.zeros_like(parameter, dtype=moments)
            self.state[parameter] = {"momentum_buffer": buffer, **begin_rest(parameter)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move all matrices; nothing changes when `found_inf` is 1."""
        (group,) = self.param_groups
        good, momentum = self.found_inf == 0, group["momentum"]
        wanted = {}
        for name, parameter in zip(self._names, group["params"], strict=True):  # one in fp32 at a time
            kept = self.state[parameter]["momentum_buffer"]
            average = kept.float()
            # the average instead of a gradient that is not finite: it then stays as it is
            gradient = torch.where(good, parameter.grad.float() / self.grad_scale, average)
            average.lerp_(gradient, 1 - momentum)
            wanted[name] = gradient.lerp_(average, momentum).to(self._dtype)
            kept.copy_(average)
        updates = self._on_whole(_update, wanted)
        lr = group["lr"] * good
        for name, parameter in zip(self._names, group["params"], strict=True):
            with as_fp32(parameter, self.state[parameter]) as weight:
                weight.mul_(1 - lr * group["weight_decay"])
                weight.sub_(updates[name].to(weight.dtype) * lr)


def _update(matrix: Tensor) -> Tensor:
    if matrix.ndim > 2:
        return torch.stack([_update(one) for one in matrix])
    return orthogonalise(matrix) * (0.2 * sqrt(max(matrix.shape)))
