"""Matrix products in FP8, by torchao: inputs, weights and gradients are scaled and rounded for each product.

Converted is what its role says may be: query, output, gate, up and down projections. Left in the model's own precision:
embedding and head, which the loss depends on most; key and value projections, which with grouped heads are too narrow
to gain; norms; and what has sides that are no multiple of 16, which the hardware needs. The weights themselves stay as
they are.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import torch
from torch import nn

from internevo.files.errors import UserError
from internevo.files.quiet import quiet
from internevo.model.transformer import Transformer


def use_fp8(model: Transformer, scaling: str, device: torch.device) -> None:
    """Convert the blocks' projections; `scaling` is `tensorwise` or `rowwise`. On a CPU the products are emulated:
    rounded as FP8 would, and slower. Raises UserError as `check_fp8` does."""
    torchao = check_fp8(device)
    config = torchao.Float8LinearConfig.from_recipe_name(scaling)
    config = replace(config, emulate=device.type != "cuda")
    torchao.convert_to_float8_training(
        model.blocks,
        config=config,
        module_filter_fn=lambda module, name: _fits(module) and model.roles[f"blocks.{name}.weight"].fp8,
    )


def check_fp8(device: torch.device) -> ModuleType:
    """torchao's module for FP8. Raises UserError where it is not installed or the GPU has no FP8 units."""
    try:
        with quiet():
            import torchao.float8
    except ImportError as error:
        raise UserError(
            f"train.fp8 needs torchao ({error}). Install it with pip install 'internevo[fp8]', or set train.fp8=none."
        ) from None
    if device.type == "cuda" and torch.version.cuda and torch.cuda.get_device_capability(device) < (8, 9):
        raise UserError(f"train.fp8: {torch.cuda.get_device_name(device)} has no FP8 units; set train.fp8=none.")
    return torchao.float8


def _fits(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and not module.in_features % 16 and not module.out_features % 16
