"""Tensor parallelism with sequence parallelism (arXiv 1909.08053, 2205.05198), on a model that knows nothing of it.

Query, key, value, gate and up projections are cut by rows, the projections back into the residual stream by columns,
embedding and head by vocabulary. Between the blocks' halves each rank has a part of every row's tokens (sequence
parallelism) or, without it, all of them.

Weights are DTensors, so that ZeRO knows how they are cut; what computes are plain local tensors and
four collectives a block, put around the model's own modules:

    norm → [gather tokens] → wq wk wv → attention → wo → [sum, scatter tokens] → + residual
    norm → [gather tokens] → gate up → down → [sum, scatter tokens] → + residual

A half of a block need not be one of these: what a rank's parts of its parameters give must add up over the ranks to
what the whole ones give. A router that every rank has whole, and experts that are cut by their inner width, do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.func import functional_call

from internevo.model.roles import Role, roles_of
from internevo.model.transformer import RMSNorm, Transformer
from internevo.parallel.collectives import gather, scatter_sum, sum_gradient, sum_over, sum_parts
from internevo.parallel.layout import LayoutError
from internevo.parallel.mesh import Mesh, Place

TOKENS = 1
"""The dimension of tokens in `[batch, seq, hidden]`."""


@dataclass(frozen=True)
class TensorParallel:
    """The group, and whether the residual stream's tokens are shared out over it."""

    place: Place
    sequence: bool

    def to_all(self, x: Tensor) -> Tensor:
        """From the residual stream to what every rank needs whole."""
        return gather(x, TOKENS, self.place) if self.sequence else sum_gradient(x, self.place)

    def to_residual(self, x: Tensor) -> Tensor:
        """From each rank's part of a sum to the residual stream."""
        return scatter_sum(x, TOKENS, self.place) if self.sequence else sum_parts(x, self.place)


def local(parameter: Tensor) -> Tensor:
    """This rank's part of a parameter, as a plain tensor."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


class HalfOverRanks:
    """Runs a half of a block whose parameters are cut; takes the place of `model.transformer.run_half`."""

    def __init__(self, part: nn.Module, parallel: TensorParallel):
        self.roles, self.parallel = roles_of(part), parallel

    def __call__(self, part: nn.Module, norm: nn.Module, x: Tensor, *more: Any) -> Tensor:
        place = self.parallel.place
        mine = {name: piece_by_rank(self.roles[name], p, place) for name, p in part.named_parameters()}
        # x: [batch, this rank's seq, hidden] -> [batch, seq, hidden], and back
        return self.parallel.to_residual(functional_call(part, mine, (self.parallel.to_all(norm(x)), *more)))


class NormToAll(nn.Module):
    """A norm of this rank's tokens, whose result every rank then has whole.

    With sequence parallelism its gradient tells of these tokens only, until `complete_gradients` at the step's end.
    """

    def __init__(self, norm: RMSNorm, parallel: TensorParallel):
        super().__init__()
        self.weight, self.eps, self.parallel = norm.weight, norm.eps, parallel

    def forward(self, x: Tensor) -> Tensor:
        return self.parallel.to_all(F.rms_norm(x, self.weight.shape, self.weight, self.eps))


class VocabularyEmbedding(nn.Module):
    """An embedding of which each rank has some of the vocabulary."""

    def __init__(self, embedding: nn.Embedding, parallel: TensorParallel):
        super().__init__()
        self.weight, self.parallel = embedding.weight, parallel

    def forward(self, tokens: Tensor) -> Tensor:
        weight = local(self.weight)  # [vocab / ranks rounded up, hidden]
        ids = tokens - self.parallel.place.rank * len(weight)
        ours = (ids >= 0) & (ids < len(weight))
        embedded = F.embedding(ids.where(ours, 0), weight) * ours[..., None]  # [batch, seq, hidden], 0 for others' ids
        return self.parallel.to_residual(embedded)


@dataclass(frozen=True)
class Vocabulary:
    """The ids whose rows of embedding and head a rank has: of 10 ids and 4 ranks 0-2, 3-5, 6-8, 9."""

    place: Place
    size: int
    """All ids."""

    @property
    def each(self) -> int:
        """The ids of every rank but the last, which may have fewer."""
        return -(-self.size // self.place.size)

    @property
    def first(self) -> int:
        """The rank's first id."""
        return self.place.rank * self.each

    def rows(self, weight: Tensor) -> Tensor:
        """The rows of the rank's part that stand for an id; the last rank's part may have more."""
        part = local(weight)
        return part[: self.size - self.first] if self.place.size > 1 else part


def is_cut(role: Role, ranks: int) -> bool:
    """Whether each of so many ranks has a part of its own of a parameter, not all of it."""
    return ranks > 1 and role.cut is not None and (role.pieces is None or role.pieces % ranks == 0)


def cut_by_rank(role: Role, values: Tensor, place: Place) -> Tensor:
    """What this rank holds of the whole values of a parameter of this role: a view where the ranks' parts are equal.

    Where they are not, the last rank's part is filled up with zeros. Those stay zero, and nobody outside sees them.
    """
    if role.cut is None or not is_cut(role, place.size):
        return values
    return padded(values, role.cut, place.size).chunk(place.size, role.cut)[place.rank]


def padded(values: Tensor, dim: int, ranks: int) -> Tensor:
    """With zeros at the end of `dim`, so that all ranks have equal parts."""
    missing = -values.shape[dim] % ranks
    return F.pad(values, (0, 0) * (values.ndim - 1 - dim) + (0, missing)) if missing else values


def piece_by_rank(role: Role, parameter: Tensor, place: Place) -> Tensor:
    """What this rank computes with, out of what it holds.

    4 ranks and a parameter of 2 pieces: ranks 0 and 1 compute with the first piece, ranks 2 and 3 with the second.
    """
    if role.cut is None or role.pieces is None or is_cut(role, place.size):
        return local(parameter)
    return parameter.chunk(role.pieces, role.cut)[place.rank * role.pieces // place.size]


def cut_parameters(model: Transformer, mesh: Mesh) -> None:
    """Put this rank's parts, as DTensors, in the place of a model's parameters that are cut."""
    for name, parameter in list(model.named_parameters()):
        role = model.roles[name]
        check_cut(name, role, parameter.shape, mesh.tensor.size)
        if role.cut is not None and is_cut(role, mesh.tensor.size):
            part = cut_by_rank(role, parameter.detach(), mesh.tensor).contiguous()
            assert mesh.parameters is not None
            part = DTensor.from_local(part, mesh.parameters["tensor"], [Shard(role.cut)], run_check=False)
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, nn.Parameter(part, parameter.requires_grad))


def check_cut(name: str, role: Role, shape: torch.Size, ranks: int) -> None:
    """Raise LayoutError for a parameter that `ranks` ranks cannot share."""
    if role.cut is None:
        return
    if is_cut(role, ranks) and role.pieces is None:
        fits = -(-shape[role.cut] // ranks) * (ranks - 1) < shape[role.cut]  # the last rank has some
    elif is_cut(role, ranks):
        fits = shape[role.cut] % ranks == 0
    else:
        fits = role.pieces is not None and ranks % role.pieces == 0 and shape[role.cut] % role.pieces == 0
    if not fits:
        way = f"along dimension {role.cut}" + ("" if role.pieces is None else f", in {role.pieces} pieces")
        raise LayoutError(f"parallel.tensor: {ranks} ranks cannot share {name} of {list(shape)} {way}")


@torch.no_grad()
def complete_gradients(
    parameters: Mapping[str, nn.Parameter], roles: Mapping[str, Role], parallel: TensorParallel, device: torch.device
) -> None:
    """Sum the gradients of what is not cut over the ranks, each of which saw its own part: one message a step.

    It goes over `device`, wherever the gradients lie.
    """
    if parallel.place.size == 1:
        return
    whole = [p for name, p in parameters.items() if _incomplete(roles[name], parallel) and p.grad is not None]
    parts = [local(p.grad) for p in whole if p.grad is not None]
    if parts:
        summed = sum_over(torch.cat([part.flatten() for part in parts]).to(device), parallel.place)
        torch._foreach_copy_([part.view(-1) for part in parts], list(summed.split([part.numel() for part in parts])))


def _incomplete(role: Role, parallel: TensorParallel) -> bool:
    """Whether a rank's gradient tells of a part only: of its tokens, of its heads, or of its piece."""
    if is_cut(role, parallel.place.size):
        return False
    return parallel.sequence or role.partial or role.cut is not None


def replace(module: nn.Module, path: str, kind: Callable[..., nn.Module], *arguments: object) -> None:
    """Put `kind(old module, *arguments)` in the place of the module at `path`."""
    owner, _, name = path.rpartition(".")
    setattr(module.get_submodule(owner), name, kind(module.get_submodule(path), *arguments))
