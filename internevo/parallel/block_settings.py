"""What a stage's settings do to a model, or a rank's part of one: kernel, recomputation, FP8, compilation."""

from __future__ import annotations

import logging

import torch

from internevo.config.schema import StageConfig
from internevo.model.attention import choose_kernel
from internevo.model.budget import policies_within
from internevo.model.fp8 import use_fp8
from internevo.model.recompute import Policy
from internevo.model.transformer import Transformer


def compute_dtype(stage: StageConfig) -> torch.dtype:
    """What the stage computes in."""
    return torch.bfloat16 if stage.train.precision == "bf16" else torch.float32


def stage_kernel(stage: StageConfig, device: torch.device) -> str:
    """The attention kernel of the stage on this device. Raises UserError when the one asked for cannot run there."""
    return choose_kernel(stage.train.attention, device, compute_dtype(stage), stage.model.attention.head_dim)


def prepare_model(model: Transformer, stage: StageConfig, device: torch.device, tokens: int | None = None) -> None:
    """Let the blocks that are here run as the stage says; to be called before they are sharded.

    `tokens` are those whose activations a block keeps at one time, a micro-batch's if not said.
    """
    train = stage.train
    tokens = train.micro_batch * train.seq_len if tokens is None else tokens
    model.use_kernel(stage_kernel(stage, device))
    model.use_policies(block_policies(stage, len(list(model.blocks.children())), tokens))
    if train.fp8 != "none":
        use_fp8(model, train.fp8, device, stage.parallel.tensor)
    if train.compile:
        # with selective recomputation it warns of operations in place on every rank; a block has none
        logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
        # a block may record what it measures, also where it is recomputed
        torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True
        options = {}
        if stage.parallel.asynchronous:
            from internevo.parallel.asynchronous import compile_options  # loads torch's compiler

            options = compile_options()
        model.compile_blocks(train.compile_mode, options)


def block_policies(stage: StageConfig, layers: int, tokens: int) -> list[Policy]:
    """What each of `layers` blocks recomputes, given the tokens whose activations it keeps at one time."""
    train = stage.train
    if train.recompute == "budget":
        size = compute_dtype(stage).itemsize
        return policies_within(stage.model, layers, tokens, size, train.activation_gib * 2**30)
    return [Policy(train.recompute)] * layers
