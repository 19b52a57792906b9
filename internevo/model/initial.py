"""Models with memory, and the weights that they begin with."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from internevo.config.schema import ModelConfig
from internevo.model.roles import First, Kind, Role
from internevo.model.transformer import Transformer


def empty_model(
    config: ModelConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Transformer:
    """A model whose weights hold nothing yet."""
    with torch.device("meta"):
        model = Transformer(config)
    return give_memory(model.to(dtype), device)


def give_memory(model: Transformer, device: torch.device | str) -> Transformer:
    """The model itself, off the meta device."""
    model.to_empty(device=device)
    tie(model)
    return model


def tie(model: Transformer) -> None:
    """Let the head of a tied model have the embedding's weight, where both are here and torch has made two of it."""
    if model.config.tied and hasattr(model, "embed") and hasattr(model, "head"):
        model.head.weight = model.embed.weight


def initial_model(config: ModelConfig, device: torch.device | str, seed: int) -> Transformer:
    """An fp32 model with the weights that `seed` gives."""
    model = empty_model(config, device)
    init_weights(model, seed)
    return model


@torch.no_grad()
def init_weights(model: Transformer, seed: int) -> None:
    """Fill every parameter with its `initial_values`, in place."""
    for name, parameter in model.named_parameters():
        parameter.copy_(initial_values(name, parameter.shape, model.roles[name], model.config, seed))


def initial_values(name: str, shape: torch.Size, role: Role, config: ModelConfig, seed: int) -> Tensor:
    """The fp32 values, on the CPU, that the parameter called `name` begins with.

    | kind | values |
    |---|---|
    | bias | 0 |
    | scale | 1 |
    | embedding | normal, deviation `init_std` |
    | matrix | the same; with `width_base` times `sqrt(width_base / hidden)` |
    | head | the same; with `width_base` times `width_base / hidden` |

    A role may say otherwise: zero, or uniform within `1 / sqrt(columns)`. What writes into the residual stream is
    scaled down by `sqrt(2 * layers)`, so that the stream's variance does not grow with depth (GPT-2's rule). Each
    parameter has a random stream of its own, made from the seed and its name, so its values do not depend on which
    other parameters a process holds.
    """
    if role.kind is Kind.bias or role.first is First.zero:
        return torch.zeros(shape)
    if role.kind is Kind.scale:
        return torch.ones(shape)
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    values = torch.empty(shape, dtype=torch.float32)
    if role.first is First.fan_in:
        bound = 1 / math.sqrt(shape[-1])
        return values.uniform_(-bound, bound, generator=generator)
    std = config.init_std / (math.sqrt(2 * config.layers) if role.into_residual else 1.0)
    if config.width_base and role.kind is not Kind.embedding and role.wide:
        ratio = config.width_base / config.hidden
        std *= ratio if role.kind is Kind.head else math.sqrt(ratio)
    return values.normal_(0.0, std, generator=generator)
