"""A model with memory and weights."""

from __future__ import annotations

import torch

from internevo.config.schema import ModelConfig
from internevo.model.transformer import Transformer, init_weights


def empty_model(
    config: ModelConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Transformer:
    """A model whose weights hold nothing yet."""
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to(dtype).to_empty(device=device)
    if config.tied:
        model.head.weight = model.embed.weight  # to_empty made two tensors of it
    return model


def initial_model(config: ModelConfig, device: torch.device | str, seed: int) -> Transformer:
    """An fp32 model with the weights that `seed` gives."""
    model = empty_model(config, device)
    init_weights(model, seed)
    return model
