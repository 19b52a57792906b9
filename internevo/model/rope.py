"""Rotary position embedding, half-split form (arXiv 2104.09864; the pairing that Llama and InternLM2 use).

Channel `i` of the first half turns together with channel `i` of the second half, by the angle
`position * base ** (-2i / head_dim)`. A model that was trained on short rows can have its angles stretched over longer
ones (`model.rope.scaling`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from internevo.config.schema import ModelConfig, RopeScalingConfig


def rotary_tables(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `positions`.

    positions: integers `[batch, seq]`. Returns two fp32 tensors `[batch, seq, 1, head_dim / 2]`. They are fp32
    whatever the model's dtype: bf16 cannot tell neighbouring positions apart past a few hundred.
    """
    scaling = config.rope.scaling
    frequencies = rotary_frequencies(config, positions.device)
    angles = positions.float()[..., None, None] * frequencies
    if scaling.kind != "yarn":
        return angles.cos(), angles.sin()
    temperature = yarn_temperature(scaling)
    return angles.cos() * temperature, angles.sin() * temperature


def rotary_frequencies(config: ModelConfig, device: torch.device | str = "cpu") -> Tensor:
    """Radians that each pair of channels turns by from one position to the next: fp32 `[head_dim / 2]`."""
    exponents = (
        torch.arange(0, config.attention.head_dim, 2, device=device, dtype=torch.float32) / config.attention.head_dim
    )
    frequencies = config.rope.base**-exponents
    scaling = config.rope.scaling
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling)
    if scaling.kind == "yarn":
        return _yarn(frequencies, config)
    return frequencies


def yarn_temperature(scaling: RopeScalingConfig) -> float:
    """What YaRN multiplies cosines and sines with, so that attention stays as sharp over longer rows."""
    return scaling.temperature if scaling.temperature is not None else 0.1 * math.log(scaling.factor) + 1.0


def _llama3(frequencies: Tensor, scaling: RopeScalingConfig) -> Tensor:
    """Llama 3.1's rule: short wavelengths stay, long ones are stretched, those between are blended."""
    turns = scaling.original_seq_len * frequencies / (2 * math.pi)  # over the original row
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def _yarn(frequencies: Tensor, config: ModelConfig) -> Tensor:
    """YaRN's "NTK by parts": a linear ramp over the channels, from those that stay to those that are stretched."""
    scaling, dim = config.rope.scaling, config.attention.head_dim

    def channel(turns: float) -> float:
        """The channel that turns so often over the original row."""
        return dim * math.log(scaling.original_seq_len / (turns * 2 * math.pi)) / (2 * math.log(config.rope.base))

    first = max(math.floor(channel(scaling.beta_fast)), 0)
    last = min(math.ceil(channel(scaling.beta_slow)), dim - 1)
    channels = torch.arange(dim // 2, device=frequencies.device, dtype=torch.float32)
    stretched = ((channels - first) / ((last - first) or 1e-3)).clamp(0.0, 1.0)
    return frequencies * (1 - stretched + stretched / scaling.factor)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn every head of `x` `[batch, seq, heads, head_dim]` by its position; same shape and dtype."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
