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
from internevo.model.roles import Role
from internevo.model.transformer import Transformer


def use_fp8(model: Transformer, scaling: str, device: torch.device, parts: int = 1) -> None:
    """Convert the blocks' projections, of which this process computes with one of `parts` parts.

    `scaling` is `tensorwise` or `rowwise`, of the part. On a CPU the products are emulated: rounded as FP8 would, and
    slower. Raises UserError as `check_fp8` does.
    """
    torchao = check_fp8(device)
    config = torchao.Float8LinearConfig.from_recipe_name(scaling)
    config = replace(config, emulate=device.type != "cuda")
    torchao.convert_to_float8_training(
        model.blocks,
        config=config,
        module_filter_fn=lambda module, name: (
            isinstance(module, nn.Linear) and _fits(module, model.roles[f"blocks.{name}.weight"], parts)
        ),
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


def _fits(module: nn.Linear, role: Role, parts: int) -> bool:
    sides = [module.out_features, module.in_features]
    if role.cut is not None:
        sides[role.cut] = -(-sides[role.cut] // parts)
    return role.fp8 and not any(side % 16 for side in sides)
