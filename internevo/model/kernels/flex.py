"""The kernel `flex`: torch's FlexAttention with a mask of documents, in blocks of 128 by 128 tokens.

The blocks that a document touches are found on the host from its borders, before the step: blocks without a visible
score are never visited, and those that lie wholly inside a document and below the diagonal are computed without a mask.
The mask goes to the GPU with the tokens.
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

from internevo.model.documents import Documents, to_device

BLOCK = 128


def reason(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the kernel cannot run there."""
    if device.type == "cuda" and head_dim < 16:
        return f"it needs a head_dim of at least 16, not {head_dim}"
    if device.type != "cuda" and torch.is_grad_enabled():
        return f"FlexAttention has no backward pass on {device.type}"
    return None


def with_mask(documents: Documents) -> Documents:
    """The documents with their block mask, which this kernel needs. The host does not wait for the device."""
    device, ends = documents.offsets.device, documents.host.numpy()
    tokens, lengths = int(ends[-1]), np.diff(ends)
    of_token = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    partial, full = blocks(ends)
    # for each block of queries the blocks of keys, and the other way round for the backward pass
    arrays = {
        f"{name}_{kind}": array
        for name, visible in (("kv", partial), ("full_kv", full), ("q", partial.T), ("full_q", full.T))
        for kind, array in zip(("num_blocks", "indices"), _listed(visible), strict=True)
    }
    listed: dict[str, Any] = {name: to_device(torch.from_numpy(array), device) for name, array in arrays.items()}
    document = to_device(torch.from_numpy(of_token), device)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document[query] == document[key])

    mask = BlockMask((tokens, tokens), BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=visible, **listed)
    return replace(documents, mask=mask, mask_tensors=(document, *listed.values()))


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


def _listed(visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts `[1, 1, rows]` and indices `[1, 1, rows, columns]` of the true columns in each row, true ones first."""
    indices = np.argsort(~visible, axis=1, kind="stable").astype(np.int32, order="C")
    return visible.sum(1, dtype=np.int32)[None, None], indices[None, None]


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention)


def attend(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """Causal attention inside each document."""
    heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
    # inside compiled code it is compiled with it; on a CPU it runs as a dense product
    compiling = torch.compiler.is_compiling()
    function: Any = flex_attention if compiling or not q.is_cuda else _compiled()
    out = function(
        *heads_first,
        block_mask=documents.mask,
        enable_gqa=q.shape[1] != k.shape[1],
        # for fewer than 128 tokens torch would choose its kernel for decoding, which cannot be compiled for all heads
        kernel_options={"BACKEND": "TRITON"},
    )
    return out[0].transpose(0, 1)
