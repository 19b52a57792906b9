"""Rotary position embedding, half-split form (arXiv 2104.09864; the pairing that Llama and InternLM2 use).

Channel `i` of the first half turns together with channel `i` of the second half, by the angle
`position * base ** (-2i / head_dim)`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_tables(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `positions`.

    positions: integers `[batch, seq]`. Returns two fp32 tensors `[batch, seq, 1, head_dim / 2]`. They are fp32
    whatever the model's dtype: bf16 cannot tell neighbouring positions apart past a few hundred.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.float()[..., None, None] * (base**-exponents)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn every head of `x` `[batch, seq, heads, head_dim]` by its position; same shape and dtype."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
