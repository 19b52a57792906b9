"""A model on the meta device to this rank's part of it, with weights.

The model is laid out on the meta device, where it takes no memory. Then this rank's part is given memory on its own
device, which never holds more. Whatever the layout, a seed gives the same weights: every parameter's whole values come
from the seed and its name, and are cut on the host. One parameter's whole values are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from internevo.config.derive import step_sizes
from internevo.config.schema import StageConfig
from internevo.model.initial import give_memory, initial_values, tie
from internevo.model.lora import add_adapters
from internevo.model.roles import Role
from internevo.model.transformer import Block, Transformer
from internevo.parallel.block_settings import compute_dtype, prepare_model
from internevo.parallel.context import share_attention
from internevo.parallel.mesh import Mesh
from internevo.parallel.pipeline import in_flight
from internevo.parallel.tensor import (
    HalfOverRanks,
    NormToAll,
    TensorParallel,
    VocabularyEmbedding,
    cut_by_rank,
    cut_parameters,
    replace,
)
from internevo.parallel.zero import gather_ahead, reduce_all, rows_by_rank, shard_module

Root = TypeVar("Root", bound=nn.Module)


def build_rank_model(
    stage: StageConfig, mesh: Mesh, run: Callable[[Transformer], Root], layers: range | None = None
) -> Root:
    """This rank's part of the stage's model, in the module that `run` puts around it, with memory but no values yet.

    On a mesh of one its weights are in what it computes in. On several, they are sharded fp32 ones, or, where they are
    frozen, sharded in what it computes in; the module runs the whole, so that weights that no block has are sharded
    with it. With `layers`, only these blocks are there, under their own numbers, and embedding and head only with the
    first and the last of them.
    """
    with torch.device("meta"):
        model = Transformer(stage.model)
        if stage.train.lora.rank:
            add_adapters(model, stage.train.lora)
    for parameter in model.parameters():
        if mesh.alone or not parameter.requires_grad:  # ZeRO does it for the others, as it gathers them
            parameter.data = parameter.data.to(compute_dtype(stage))
    if layers is not None:
        _keep_layers(model, layers)
    if mesh.tensor.size > 1:
        _share_tensors(model, stage, mesh)
    if mesh.layout.context > 1:
        share_attention(model, mesh)
    if stage.parallel.asynchronous:
        from internevo.parallel.asynchronous import enable_async_tensor_parallel  # loads torch's compiler

        enable_async_tensor_parallel(mesh.tensor, mesh.device)
    prepare_model(model, stage, mesh.device, _kept_tokens(stage, mesh))
    if mesh.alone:
        return run(give_memory(model, mesh.device))
    zero, dtype = stage.parallel.zero, compute_dtype(stage)
    for block in model.blocks.children():
        shard_module(block, mesh, zero, dtype)
    if zero.stage == 3:
        gather_ahead(model.blocks.children())
    root = run(model)
    shard_module(root, mesh, zero, dtype, root=True)
    reduce_all(root)
    root.to_empty(device="cpu" if zero.offload.optimizer == "cpu" else mesh.device)
    tie(model)
    return root


def _keep_layers(model: Transformer, layers: range) -> None:
    """Give up all blocks but these, and what lies before the first and after the last of all where it is not theirs."""
    model.blocks = nn.ModuleDict({str(n): model.blocks[n] for n in layers})  # type: ignore[assignment]
    if layers[0] > 0:
        del model.embed
    if layers[-1] < model.config.layers - 1:
        del model.norm, model.head


def _share_tensors(model: Transformer, stage: StageConfig, mesh: Mesh) -> None:
    """Cut what is here over the ranks of tensor parallelism, and put their messages around it."""
    cut_parameters(model, mesh)
    tie(model)
    parallel = TensorParallel(mesh.tensor, stage.parallel.sequence)
    for block in model.blocks.children():
        assert isinstance(block, Block)
        block.run_attention = HalfOverRanks(block.attention, parallel)
        block.run_feed_forward = HalfOverRanks(block.feed_forward, parallel)
    for name, kind in (("embed", VocabularyEmbedding), ("norm", NormToAll)):
        if hasattr(model, name):
            replace(model, name, kind, parallel)


def first_part(name: str, shape: torch.Size, role: Role, stage: StageConfig, mesh: Mesh) -> Tensor:
    """This rank's part of the values that the stage's seed gives a parameter of this whole shape, fp32 on the CPU.

    A view of whole values, to be copied before the next ones are drawn.
    """
    whole = initial_values(name, shape, role, stage.model, stage.train.seed)
    return rows_by_rank(cut_by_rank(role, whole, mesh.tensor), mesh.shard)


def _kept_tokens(stage: StageConfig, mesh: Mesh) -> int:
    """The tokens whose activations a block of this rank keeps at one time, counting what shares the rank with it."""
    train, pipeline = stage.train, stage.parallel.pipeline
    tokens = train.micro_batch * train.seq_len // mesh.layout.context
    tokens //= mesh.tensor.size if stage.parallel.sequence else 1
    if mesh.pipeline.size == 1:
        return tokens
    count = max(step_sizes(train)) // (mesh.data.size * train.micro_batch)
    return tokens * in_flight(pipeline, count)
