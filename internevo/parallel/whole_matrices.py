"""Work on whole matrices whose parts lie on several ranks, each rank doing its share of them.

`n` ranks share the state of every matrix. Of `n` matrices, each rank collects one by an all-to-all, works on it, and
sends the parts of the result back by another: no rank has more than one whole matrix, and none does another's work.

Two ranks and the matrices A (4 rows) and B (3 rows), of which ZeRO gives each rank 2 rows or what is left:

    rank 0 has  A[0:2] B[0:2]    all-to-all    A[0:2] A[2:4] = A    function(A)    all-to-all    A'[0:2] B'[0:2]
    rank 1 has  A[2:4] B[2:3]    ----------->  B[0:2] B[2:3] = B    function(B)    ----------->  A'[2:4] B'[2:3]

Where tensor parallelism has cut the matrix too, its ranks gather what each of them collected and do the same work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from internevo.model.roles import Role
from internevo.parallel.collectives import gather_dim
from internevo.parallel.mesh import Mesh, Place
from internevo.parallel.tensor import cut_by_rank, is_cut


class WholeMatrices:
    """Calls a function on whole matrices, given this rank's parts of them, and returns its parts of the results.

    All ranks call it with the same names. `rows` are the rows of each matrix over all the ranks that share its state,
    `shapes` those of whole parameters.
    """

    def __init__(
        self, mesh: Mesh, rows: Mapping[str, int], roles: Mapping[str, Role], shapes: Mapping[str, torch.Size]
    ):
        self.shard, self.tensor, self.rows, self.roles, self.shapes = mesh.shard, mesh.tensor, rows, roles, shapes
        self.device = mesh.device

    def __call__(self, function: Callable[[Tensor], Tensor], parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = list(parts)
        done: dict[str, Tensor] = {}
        for start in range(0, len(names), self.shard.size):
            group = names[start : start + self.shard.size]
            done.update(zip(group, self._share(function, group, [parts[name] for name in group]), strict=True))
        return done

    def _share(self, function: Callable[[Tensor], Tensor], names: Sequence[str], parts: list[Tensor]) -> list[Tensor]:
        """At most one matrix for each rank."""
        mine = names[self.shard.rank] if self.shard.rank < len(names) else None
        row = parts[self.shard.rank].shape[1:] if mine else torch.Size()
        width = row.numel() if mine else 0
        theirs = [rows_of(self.rows[mine], r, self.shard.size) * width if mine else 0 for r in range(self.shard.size)]
        ours = [part.numel() for part in parts] + [0] * (self.shard.size - len(parts))
        line = torch.cat([part.flatten() for part in parts]).to(self.device)  # parts may be in host memory
        line = _exchange(line, ours, theirs, self.shard)
        if mine is not None:
            line = self._on_tensor_parts(function, mine, line.view(-1, *row)).flatten()
        back = _exchange(line, theirs, ours, self.shard).split(ours)
        return [piece.view_as(part).to(part.device) for piece, part in zip(back, parts, strict=False)]

    def _on_tensor_parts(self, function: Callable[[Tensor], Tensor], name: str, part: Tensor) -> Tensor:
        role = self.roles[name]
        if role.cut is None or not is_cut(role, self.tensor.size):
            return function(part)
        dim, whole = role.cut, self.shapes[name][role.cut]
        joined = gather_dim(part, dim, self.tensor).narrow(dim, 0, whole)  # without what only fills up the last part
        return cut_by_rank(role, function(joined), self.tensor)


def rows_of(rows: int, rank: int, ranks: int) -> int:
    """How many of a matrix's rows FSDP gives to a rank: equal parts, rounded up, until there are none left."""
    part = -(-rows // ranks)
    return max(0, min(part, rows - rank * part))


def _exchange(line: Tensor, sent: list[int], received: list[int], place: Place) -> Tensor:
    """All-to-all of unequal stretches."""
    if place.size == 1:
        return line
    out = line.new_empty(sum(received))
    dist.all_to_all_single(out, line.contiguous(), received, sent, group=place.group)
    return out
