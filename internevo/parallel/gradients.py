"""The global norm of gradients that are cut in several ways."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from internevo.model.roles import Role
from internevo.parallel.collectives import sum_over
from internevo.parallel.mesh import Mesh
from internevo.parallel.tensor import is_cut, local


@torch.no_grad()
def gradient_norm(parameters: Mapping[str, nn.Parameter], roles: Mapping[str, Role], mesh: Mesh) -> Tensor:
    """The global 2-norm of all gradients, a scalar tensor, the same on all ranks.

    Every element of every gradient counts once: parts are summed over the ranks that share them.
    """
    cut: list[Tensor] = []
    whole: list[Tensor] = []
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            (cut if is_cut(roles[name], mesh.tensor.size) else whole).append(local(parameter.grad))
    if mesh.alone:
        return torch.linalg.vector_norm(_norms(whole))
    squares = torch.stack([_square(cut, mesh.device), _square(whole, mesh.device)])
    sum_over(squares, mesh.shard)
    in_parts_square = sum_over(squares[0].clone(), mesh.tensor)
    return sum_over(in_parts_square + squares[1], mesh.pipeline).sqrt()


def _square(gradients: list[Tensor], device: torch.device) -> Tensor:
    if not gradients:
        return torch.zeros((), device=device)
    return _norms(gradients).square().sum().to(device)


def _norms(gradients: list[Tensor]) -> Tensor:
    """In fp32, also where gradients are kept in bf16."""
    precision = torch.promote_types(gradients[0].dtype, torch.float32)
    return torch.stack(torch._foreach_norm(gradients, 2, dtype=precision))
