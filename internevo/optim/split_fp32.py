"""fp32 numbers as bf16 ones and the 16 bits that those lack, and rounding to bf16 by chance.

An fp32 weight is kept as the bf16 weight that the passes use and `rest`, a signed 16-bit difference between the two's
bits: together they are the fp32 weight, bit by bit, in four bytes instead of six. The bf16 one is the parameter; the
rest is in the state of its optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

REST = "rest"
"""What an optimizer's state calls the rest of a weight. No checkpoint has it: there, a weight is whole."""
PIECE = 2**26
"""Elements that are joined, or updated, at one time: what is between bf16 and fp32 is in memory for these only."""


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 to the nearest bf16 (ties away from zero) and the rest, int16."""
    bits = x.view(torch.int32)
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)


def join(high: Tensor, rest: Tensor) -> Tensor:
    """The inverse of `split`: fp32."""
    return ((high.view(torch.int16).to(torch.int32) << 16) + rest.to(torch.int32)).view(torch.float32)


def begin_rest(parameter: Tensor) -> dict[str, Tensor]:
    """The state of a weight that is kept split, which a bf16 one is; nothing for an fp32 one."""
    return {REST: torch.zeros_like(parameter, dtype=torch.int16)} if parameter.dtype == torch.bfloat16 else {}


def whole_weight(parameter: Tensor, state: MutableMapping[str, Any]) -> Tensor:
    """The fp32 weight: joined, or the parameter itself."""
    if REST not in state:
        return parameter.detach()
    weight = torch.empty_like(parameter, dtype=torch.float32)
    parts = (weight, parameter.detach(), state[REST])
    for to, *halves in zip(*(x.view(-1).split(PIECE) for x in parts), strict=True):
        to.copy_(join(*halves))
    return weight


@torch.no_grad()
def set_weight(parameter: Tensor, state: MutableMapping[str, Any], weight: Tensor) -> None:
    """Give a parameter, and its rest where it has one, this fp32 weight."""
    if REST not in state:
        parameter.copy_(weight)
        return
    high, rest = split(weight.to(parameter.device))
    parameter.copy_(high)
    state[REST].copy_(rest)


@contextmanager
def as_fp32(parameter: Tensor, state: MutableMapping[str, Any]) -> Iterator[Tensor]:
    """The fp32 weight, to be changed in place."""
    weight = whole_weight(parameter, state)
    yield weight
    if REST in state:
        set_weight(parameter, state, weight)


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
