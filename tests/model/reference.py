"""Attention as the textbook has it: one dense score matrix, one dense mask, float64."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """q `[batch, seq, heads, dim]`, k and v `[batch, seq, kv_heads, dim]`; documents over the flattened batch."""
    batch, seq, heads, dim = q.shape
    group = heads // k.shape[2]
    line = lambda x: x.reshape(batch * seq, -1, dim).double()  # noqa: E731
    q, k, v = line(q), line(k), line(v)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    order = torch.arange(batch * seq)
    visible = (document[:, None] == document[None, :]) & (order[:, None] >= order[None, :])
    out = []
    for head in range(heads):
        scores = q[:, head] @ k[:, head // group].T / dim**0.5
        weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
        out.append(weights @ v[:, head // group])
    return torch.stack(out, dim=1).reshape(batch, seq, heads, dim)
