"""bf16 compute beside fp32 weights.

Weights, gradients and optimizer state live in the fp32 *master* model: it is what is saved, exported and
updated. With bf16 precision the forward and backward passes run on a bf16 copy of it. Each micro-batch's bf16
gradients are added to the masters' fp32 gradients as they appear, and the copy is refreshed after every update.
Casting once a step instead of at every use (as torch.autocast does) keeps the casts out of the micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from internevo.model.transformer import Transformer
from internevo.train.build import empty_model


def bf16_copy(master: Transformer) -> Transformer:
    """A bf16 model with the master's values, whose gradients go to the master's parameters."""
    copy = empty_model(master.config, next(master.parameters()).device, torch.bfloat16)
    for ours, theirs in zip(copy.parameters(), master.parameters(), strict=True):
        ours.data.copy_(theirs.data)
        ours.requires_grad_(theirs.requires_grad)
        if theirs.requires_grad:
            ours.register_post_accumulate_grad_hook(_hand_gradient_to(theirs))
    return copy


def _hand_gradient_to(master: nn.Parameter) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad.add_(parameter.grad)
        parameter.grad = None

    return hook
