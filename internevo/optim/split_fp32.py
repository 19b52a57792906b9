"""fp32 numbers as bf16 ones and the 16 bits that those lack, and rounding to bf16 by chance.

An fp32 weight is kept as the bf16 weight that the passes use and `rest`, a signed 16-bit difference between the two's
bits: together they are the fp32 weight, bit by bit, in four bytes instead of six.
"""

from __future__ import annotations

import torch
from torch import Tensor


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 to the nearest bf16 (ties away from zero) and the rest, int16."""
    bits = x.view(torch.int32)
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)


def join(high: Tensor, rest: Tensor) -> Tensor:
    """The inverse of `split`: fp32."""
    return ((high.view(torch.int16).to(torch.int32) << 16) + rest.to(torch.int32)).view(torch.float32)


def round_by_chance(x: Tensor, noise: Tensor) -> Tensor:
    """fp32 to one of the two bf16 beside it, the nearer one more likely, so that the mean is right.

    `noise` is int32, uniform in [0, 2**16). Stochastic rounding keeps averages that move by less than bf16 can tell.
    """
    return ((x.view(torch.int32) + noise) >> 16).to(torch.int16).view(torch.bfloat16)


def noise_like(x: Tensor, step: Tensor, stream: int) -> Tensor:
    """Uniform int32 in [0, 2**16) for each element of a flat tensor: a hash (murmur3's finaliser) of its index, the
    step and the stream. It has no state, so a resumed run draws the same."""
    bits = torch.arange(x.numel(), dtype=torch.int32, device=x.device)
    bits = bits + (step.to(torch.int32) * -1640531527 + stream * 668265263)
    for shift, factor in ((16, -2048144789), (13, -1028477387)):
        bits = (bits ^ ((bits >> shift) & ((1 << (32 - shift)) - 1))) * factor
    return (bits ^ (bits >> 16)) & 0xFFFF
