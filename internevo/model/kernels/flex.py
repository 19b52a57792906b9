"""The kernel `flex`: torch's FlexAttention with a mask of documents, in blocks of 128 by 128 tokens.

The blocks that a document touches are found on the host from its borders, before the step: blocks without a visible
score are never visited, and those that lie wholly inside a document and below the diagonal are computed without a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from internevo.model.documents import Documents

BLOCK = 128


def reason(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the kernel cannot run there."""
    if device.type == "cuda" and head_dim < 16:
        return f"it needs a head_dim of at least 16, not {head_dim}"
    if device.type != "cuda" and torch.is_grad_enabled():
        return f"FlexAttention has no backward pass on {device.type}"
    return None


def with_mask(documents: Documents) -> Documents:
    """The documents with their block mask, which this kernel needs."""
    device, ends = documents.offsets.device, documents.host.numpy()
    document = torch.searchsorted(documents.offsets[1:], torch.arange(int(ends[-1]), device=device), right=True)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document[query] == document[key])

    partial, full = blocks(ends)
    tokens = int(ends[-1])
    listed = *_listed(partial, device), *_listed(full, device)
    mask = BlockMask.from_kv_blocks(*listed, BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(tokens, tokens))
    return replace(documents, mask=mask)


def blocks(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which blocks are partly and which are wholly visible: two boolean arrays `[queries, keys]`, in blocks.

    `ends` are the documents' offsets, `[documents + 1]`.
    """
    tokens = int(ends[-1])
    count = -(-tokens // BLOCK)
    first = np.arange(count) * BLOCK
    last = np.minimum(first + BLOCK, tokens) - 1
    # the document of a block's first and last token
    begin, end = (np.searchsorted(ends[1:], at, side="right") for at in (first, last))
    q, k = np.ogrid[:count, :count]
    # documents stand in order, so blocks share one exactly when their ranges of documents meet
    touched = (k <= q) & (end[k] >= begin[q])
    one = begin == end
    whole = (k < q) & one[q] & one[k] & (begin[q] == begin[k]) & (last[q] - first[q] == BLOCK - 1)
    return touched & ~whole, whole


def _listed(visible: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Counts `[1, 1, queries]` and indices `[1, 1, queries, keys]` of the true columns in each row, true ones first."""
    counts = torch.from_numpy(visible.sum(1, dtype=np.int32))
    indices = torch.from_numpy(np.argsort(~visible, axis=1, kind="stable").astype(np.int32))
    return counts[None, None].to(device), indices[None, None].to(device)


@cache
def _function(compiled: bool) -> Callable[..., Any]:
    function: Callable[..., Any] = flex_attention
    return torch.compile(function) if compiled else function


def attend(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """Causal attention inside each document."""
    heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
    # inside compiled code it is compiled with it; on a CPU it runs as a dense product
    function = _function(q.is_cuda and not torch.compiler.is_compiling())
    out = function(*heads_first, block_mask=documents.mask, enable_gqa=q.shape[1] != k.shape[1])
    return out[0].transpose(0, 1)
