"""Context parallelism for packed documents: the tokens of a row shared out over a ring of Ulysses groups.

**Who has which tokens.** Every document is cut into `2 * ring` chunks, and ring rank `r` has chunks `r` and
`2 * ring - 1 - r` of it: an early, cheap one and a late, dear one. So each document's causal work is shared out evenly,
however long the documents are, and the chunks' lengths are chosen such that every rank has equally many tokens of every
row. Within a ring rank's tokens, each rank of its Ulysses group has an equal stretch.

Two ring ranks and a row of two documents, of 5 tokens (0 to 4) and of 3 (5 to 7), each cut into 4 chunks:

    0 1 | 2 | 3 | 4      5 | 6 | 7 | -        rank 0 has the outer chunks: 0 1 4 and 5
                                              rank 1 has the inner ones:   2 3   and 6 7

Both have 4 tokens. Of the first document's 15 pairs of query and key, rank 0 computes 1 + 2 + 5, rank 1 3 + 4.

**Ulysses** (arXiv 2309.14509) turns parts of the tokens with all heads into all tokens with part of the heads, and
back, by all-to-all. Where there are fewer kv heads than ranks, they are repeated first.

**The ring** is in `ring.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import gcd

import numpy as np
import torch
from torch import Tensor

from internevo.model.attention import attention
from internevo.model.documents import Documents
from internevo.model.transformer import Transformer
from internevo.parallel.collectives import exchange
from internevo.parallel.mesh import Mesh
from internevo.parallel.ring import ring_attention


@dataclass(frozen=True)
class CutDocuments(Documents):
    """Documents whose tokens lie on several ring ranks."""

    chunks: tuple[tuple[int, ...], ...] = ()
    """For each document, the lengths of its `2 * ring` chunks."""


def deal(lengths: Sequence[int], ring: int) -> np.ndarray:
    """The chunk lengths `[documents, 2 * ring]` of a row's documents.

    A document's chunks differ by at most one token, and every rank gets equally many tokens of the row. Raises
    ValueError when the ring cannot share the row evenly.
    """
    if sum(lengths) % ring:
        raise ValueError(f"{ring} ranks cannot share {sum(lengths)} tokens evenly")
    chunks = np.repeat(np.array(lengths, np.int64)[:, None] // (2 * ring), 2 * ring, axis=1)
    load = [0] * ring  # tokens beyond the equal part; ranks never differ by more than one
    for document, length in enumerate(lengths):
        given = [0] * ring
        for _ in range(length % (2 * ring)):
            rank = min((r for r in range(ring) if given[r] < 2), key=lambda r: (load[r], given[r]))
            chunks[document, rank if given[rank] == 0 else 2 * ring - 1 - rank] += 1
            given[rank] += 1
            load[rank] += 1
    return chunks


def places(chunks: np.ndarray, rank: int) -> np.ndarray:
    """Where in the row the tokens of a ring rank stand, ascending. `chunks` as from `deal`."""
    ring = chunks.shape[1] // 2
    ends = np.cumsum(chunks).reshape(chunks.shape)
    which = [rank, 2 * ring - 1 - rank]
    last, count = ends[:, which].ravel(), chunks[:, which].ravel()
    return np.arange(count.sum()) + np.repeat(last - np.cumsum(count), count)


class ContextCut:
    """Cuts the rows of a micro-batch for this rank."""

    def __init__(self, mesh: Mesh):
        self.ring, self.ulysses, self.device = mesh.ring, mesh.ulysses, mesh.device

    def __call__(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, Documents]:
        """Where in each row this rank's tokens stand, `[rows, seq / context]`, and the micro-batch's documents.

        `rows` are the lengths of the documents of each row.
        """
        dealt = [deal(lengths, self.ring.size) for lengths in rows]
        index = np.stack([places(chunks, self.ring.rank) for chunks in dealt])
        part = index.shape[1] // self.ulysses.size
        index = index[:, self.ulysses.rank * part : (self.ulysses.rank + 1) * part]
        whole = Documents.of(list(chain.from_iterable(rows)), self.device)
        chunks = tuple(tuple(document) for row in dealt for document in row.tolist())
        return index, CutDocuments(whole.offsets, whole.host, chunks=chunks)


class ContextAttention:
    """Attention over tokens that lie on several ranks; takes the place of `model.attention.attention`."""

    def __init__(self, mesh: Mesh):
        self.ring, self.ulysses = mesh.ring, mesh.ulysses
        if self.ring.size > 1:
            # its messages depend on the documents' lengths: compiled, it would be compiled anew for each batch
            self._around_the_ring = torch.compiler.disable(self._around_the_ring)  # type: ignore[method-assign]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, documents: Documents, kernel: str) -> Tensor:
        """q: `[batch, seq / context, heads, head_dim]`; k, v the same with kv heads. Returns a tensor like q."""
        assert isinstance(documents, CutDocuments)
        heads, tokens = 2, 1
        # with fewer kv heads than ranks, each is sent to several: [..., kv_heads, ...] -> [..., ulysses, ...]
        copies = self.ulysses.size // gcd(self.ulysses.size, k.shape[heads])
        if copies > 1:
            k, v = k.repeat_interleave(copies, heads), v.repeat_interleave(copies, heads)
        # [batch, seq / context, heads, head_dim] -> [batch, seq / ring, heads / ulysses, head_dim]
        q, k, v = (exchange(x, cut=heads, joined=tokens, place=self.ulysses) for x in (q, k, v))
        if self.ring.size == 1:
            out = attention(q, k, v, documents, kernel)
        else:
            out = self._around_the_ring(q, k, v, documents)
        return exchange(out, cut=tokens, joined=heads, place=self.ulysses)

    def _around_the_ring(self, q: Tensor, k: Tensor, v: Tensor, documents: CutDocuments) -> Tensor:
        q_line, k_line, v_line = (x.flatten(0, 1) for x in (q, k, v))  # [tokens, heads, head_dim]
        return ring_attention(q_line, k_line, v_line, documents.chunks, self.ring).view_as(q)


def share_attention(model: Transformer, mesh: Mesh) -> None:
    """Let every block attend over the ranks of its context group."""
    for one in model.attentions:
        one.attend = ContextAttention(mesh)
