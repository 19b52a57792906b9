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
from internevo.model.roles import Role
from internevo.model.transformer import Block, Transformer, initial_values
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
    local,
    replace,
)
from internevo.parallel.zero import gather_ahead, rows_by_rank, shard_module

Root = TypeVar("Root", bound=nn.Module)


def build_sharded(
    stage: StageConfig, mesh: Mesh, run: Callable[[Transformer], Root], layers: range | None = None
) -> Root:
    """This rank's part of the stage's model, in the module that `run` puts around it, with memory but no values yet.

    That module runs the whole: weights that no block has are sharded with it. With `layers`, only these blocks are
    there, under their own numbers, and embedding and head only with the first and the last of them.
    """
    with torch.device("meta"):
        model = Transformer(stage.model)
    names = ["embed", "norm", "head"]
    if layers is not None:
        model.blocks = nn.ModuleDict({str(n): model.blocks[n] for n in layers})  # type: ignore[assignment]
        names = ["embed"] * (layers[0] == 0) + ["norm", "head"] * (layers[-1] == stage.model.layers - 1)
        for name in {"embed", "norm", "head"} - set(names):
            delattr(model, name)
    if mesh.tensor.size > 1:
        cut_parameters(model, mesh)
        if stage.model.tied:
            model.head.weight = model.embed.weight
        parallel = TensorParallel(mesh.tensor, stage.parallel.sequence)
        for block in model.blocks.children():
            assert isinstance(block, Block)
            block.run_attention = HalfOverRanks(block.attention, parallel)
            block.run_feed_forward = HalfOverRanks(block.feed_forward, parallel)
        for name, kind in (("embed", VocabularyEmbedding), ("norm", NormToAll)):
            if name in names:
                replace(model, name, kind, parallel)
    if mesh.layout.context > 1:
        share_attention(model, mesh)
    if stage.parallel.asynchronous:
        from internevo.parallel.asynchronous import enable_async_tensor_parallel  # loads torch's compiler

        enable_async_tensor_parallel(mesh.tensor, mesh.device)
    prepare_model(model, stage, mesh.device, _kept_tokens(stage, mesh))
    zero, dtype = stage.parallel.zero.stage, compute_dtype(stage)
    for block in model.blocks.children():
        shard_module(block, mesh, zero, dtype)
    if zero == 3:
        gather_ahead(model.blocks.children())
    root = run(model)
    shard_module(root, mesh, zero, dtype, root=True)
    root.to_empty(device=mesh.device)
    if stage.model.tied:
        model.head.weight = model.embed.weight  # to_empty made two tensors of it
    return root


@torch.no_grad()
def give_first_weights(model: Transformer, stage: StageConfig, mesh: Mesh) -> None:
    """Fill this rank's part of every parameter with what the stage's seed gives."""
    for name, parameter in model.named_parameters():
        local(parameter).copy_(_first_part(name, parameter.shape, model.roles[name], stage, mesh))


def _first_part(name: str, shape: torch.Size, role: Role, stage: StageConfig, mesh: Mesh) -> Tensor:
    """A view of whole values, to be copied before the next ones are drawn."""
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
