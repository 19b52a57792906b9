"""Ring attention (arXiv 2310.01889) over packed documents: keys and values go round, queries stay.

Ring rank `r` has chunks `r` and `2 * ring - 1 - r` of each document (`context.py`), so what a visiting block of rank
`j` means for a document is one of three cases, each one call of a flash kernel without any mask:

- `j == r`: its own tokens; causal over both chunks, which stand in order;
- `j < r`: of the visitor's chunks the first is before all of ours, the second after: all queries, first chunk, no mask;
- `j > r`: our first chunk is before all of the visitor's, our second after: second chunk's queries, all keys, no mask.

Partial results are merged by their log-sum-exp in fp32. A rank's own block comes first and holds every query's own key,
so no sum is ever empty. The backward pass sends keys, values and their growing gradients round once more; the kernels'
backward takes the *whole* softmax's log-sum-exp, which makes the parts' gradients exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from internevo.model.kernels import dense
from internevo.parallel.mesh import Place

Chunks = tuple[tuple[int, ...], ...]


def ring_attention(q: Tensor, k: Tensor, v: Tensor, chunks: Chunks, place: Place) -> Tensor:
    """Causal attention inside documents whose tokens lie on the ranks of a ring.

    q: `[tokens, heads, head_dim]`, k, v: `[tokens, kv_heads, head_dim]`: this rank's tokens, document by document.
    `chunks` are each document's chunk lengths on the whole ring. Returns a tensor like q.
    """
    return _Ring.apply(q, k, v, chunks, place)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, chunks: Chunks, place: Place) -> Tensor:
        out = torch.zeros(q.shape, dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
        lse = torch.full(q.shape[:2], -torch.inf, dtype=out.dtype, device=q.device)
        visitor = torch.stack((k, v))
        for step in range(place.size):
            coming = _Pass(visitor, place) if step < place.size - 1 else None
            for ours, theirs, causal in _meetings(chunks, place.rank, (place.rank - step) % place.size):
                part, part_lse = _flash(q[ours], visitor[0, theirs], visitor[1, theirs], causal)
                merged = torch.logaddexp(lse[ours], part_lse)
                out[ours] *= (lse[ours] - merged).exp()[..., None]
                out[ours] += part * (part_lse - merged).exp()[..., None]
                lse[ours] = merged
            if coming is not None:
                visitor = coming.arrived()
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.chunks, ctx.place = chunks, place
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, lse = ctx.saved_tensors
        place, grad = ctx.place, grads[0].contiguous()
        grad_q = torch.zeros(q.shape, dtype=lse.dtype, device=q.device)
        visitor = torch.stack((k, v))
        grad_visitor = torch.zeros(visitor.shape, dtype=lse.dtype, device=q.device)
        for step in range(place.size):
            coming = _Pass(visitor, place) if step < place.size - 1 else None
            for ours, theirs, causal in _meetings(ctx.chunks, place.rank, (place.rank - step) % place.size):
                theirs_kv = visitor[0, theirs], visitor[1, theirs]
                parts = _flash_backward(grad[ours], (q[ours], *theirs_kv), out[ours], lse[ours], causal)
                grad_q[ours] += parts[0]
                grad_visitor[0, theirs] += parts[1]
                grad_visitor[1, theirs] += parts[2]
            # the gradients travel on with their keys and values, and with one more pass come home
            grad_visitor = _Pass(grad_visitor, place).arrived()
            if coming is not None:
                visitor = coming.arrived()
        grad_k, grad_v = grad_visitor.to(k.dtype)
        return grad_q.to(q.dtype), grad_k, grad_v, None, None


class _Pass:
    """A tensor on its way to the next rank, while that of the rank before comes."""

    def __init__(self, tensor: Tensor, place: Place):
        following, before = ((place.rank + by) % place.size for by in (1, -1))
        self._sent, self._received = tensor.contiguous(), torch.empty_like(tensor)
        send = dist.P2POp(dist.isend, self._sent, group=place.group, group_peer=following)
        receive = dist.P2POp(dist.irecv, self._received, group=place.group, group_peer=before)
        self._works = dist.batch_isend_irecv([send, receive])

    def arrived(self) -> Tensor:
        """What came, when it is here."""
        for work in self._works:
            work.wait()
        return self._received


def _meetings(chunks: Chunks, rank: int, visitor: int) -> Iterator[tuple[slice, slice, bool]]:
    """(our queries, the visitor's keys, whether the causal mask cuts between them) of each document."""
    query = key = 0
    for document in chunks:
        early, late = document[rank], document[-1 - rank]
        their_early, their_late = document[visitor], document[-1 - visitor]
        first = query if visitor <= rank else query + early
        ours = slice(first, query + early + late)
        theirs = slice(key, key + their_early + (0 if visitor < rank else their_late))
        if ours.start < ours.stop and theirs.start < theirs.stop:
            yield ours, theirs, visitor == rank
        query += early + late
        key += their_early + their_late


def _flash(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Output `[tokens, heads, head_dim]` and log-sum-exp `[tokens, heads]` of one meeting."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out, lse = dense.forward(q, k, v, causal)
    return out[0].transpose(0, 1), lse[0].transpose(0, 1)


def _flash_backward(
    grad: Tensor, inputs: tuple[Tensor, Tensor, Tensor], out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, ...]:
    """Gradients of q, k and v of one meeting; `out` and `lse` are those of the whole softmax."""
    grad, q, k, v, out = (x.transpose(0, 1)[None] for x in (grad, *inputs, out))
    grads = dense.backward(grad, (q, k, v), out, lse.transpose(0, 1)[None], causal)
    return tuple(x[0].transpose(0, 1) for x in grads)
