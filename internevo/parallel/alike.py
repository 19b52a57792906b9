"""Optimizer state about a whole parameter of which ranks have parts: it must be the same on all of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from internevo.files.errors import UserError
from internevo.parallel.collectives import largest_over
from internevo.parallel.mesh import Mesh


def check_alike(parts: Mapping[str, nn.Parameter], states: Mapping[str, Mapping[str, Tensor]], mesh: Mesh) -> None:
    """Raise UserError for state that is not of its parameter's shape and differs over the ranks that share the
    parameter: a checkpoint would hold that of one of them. Waits for the device.

    As row sums that each rank makes from its own rows, of which a rank resumed would have another's.
    """
    names = [(name, kind) for name, state in states.items() for kind in state]
    if mesh.alone or not names:
        return
    sums = torch.zeros(len(names), device=mesh.device)
    for number, (name, kind) in enumerate(names):
        if (value := states[name][kind]).shape != parts[name].shape:
            sums[number] = value.float().sum()
    for place in (mesh.replicas, mesh.tensor):
        spread = largest_over(torch.stack([sums, -sums]), place).sum(0)
        if different := [one for one, far in zip(names, spread.tolist(), strict=True) if far > 0]:
            name, kind = different[0]
            raise UserError(
                f"the optimizer's {kind!r} of {name} is not of the parameter's shape and differs over the ranks, which "
                "have parts of the parameter. Such state must be the same on all of them."
            )
