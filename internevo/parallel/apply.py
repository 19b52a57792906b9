"""A model on the meta device to this rank's part of it, with weights.

Whatever the layout, a seed gives the same weights: every parameter's whole values come from the seed and its name, and
each rank keeps its part. One block's whole values are in memory at a time.
"""

from __future__ import annotations

import torch
from torch import nn

from internevo.config.derive import step_sizes
from internevo.config.schema import StageConfig
from internevo.model.transformer import Transformer, initial_values
from internevo.parallel.context import share_attention
from internevo.parallel.mesh import Mesh
from internevo.parallel.pipeline import in_flight
from internevo.parallel.prepare import compute_dtype, prepare_model
from internevo.parallel.tensor import NormToAll, TensorParallel, VocabularyEmbedding, cut, parallelize_block, replace
from internevo.parallel.zero import gather_ahead, shard_module


def build_sharded(stage: StageConfig, mesh: Mesh, layers: range | None = None) -> Transformer:
    """This rank's part of the stage's model, its blocks sharded.

    Embedding, last norm and head have their weights, but it is the caller who shards them, together with the module
    that runs the whole. With `layers`, only these blocks are there, under their own numbers, and embedding and head
    only with the first and the last of them.
    """
    with torch.device("meta"):
        model = Transformer(stage.model)
    names = ["embed", "norm", "head"]
    if layers is not None:
        model.blocks = nn.ModuleDict({str(n): model.blocks[n] for n in layers})  # type: ignore[assignment]
        names = ["embed"] * (layers[0] == 0) + ["norm", "head"] * (layers[-1] == stage.model.layers - 1)
        for name in {"embed", "norm", "head"} - set(names):
            delattr(model, name)
    parallel = TensorParallel(mesh.tensor, stage.parallel.sequence)
    dtype = compute_dtype(stage)
    for number, block in model.blocks.named_children():
        _give_weights(block, f"blocks.{number}.", stage, mesh)
        if mesh.tensor.size > 1:
            parallelize_block(block, parallel)
    for name in names:
        _give_weights(getattr(model, name), f"{name}.", stage, mesh)
    if stage.model.tied:
        model.head.weight = model.embed.weight
    if mesh.tensor.size > 1:
        for name, kind in (("embed", VocabularyEmbedding), ("norm", NormToAll)):
            if name in names:
                replace(model, name, kind, parallel)
    if mesh.layout.context > 1:
        share_attention(model.blocks, mesh)
    if stage.parallel.asynchronous:
        from internevo.parallel.asynchronous import enable_async_tensor_parallel  # loads torch's compiler

        enable_async_tensor_parallel(mesh.tensor, mesh.device)
    prepare_model(model, stage, mesh.device, _kept_tokens(stage, mesh))
    for block in model.blocks.children():
        shard_module(block, mesh, stage.parallel.zero.stage, dtype)
    if stage.parallel.zero.stage == 3:
        gather_ahead(model.blocks.children())
    return model


def _kept_tokens(stage: StageConfig, mesh: Mesh) -> int:
    """The tokens whose activations a block of this rank keeps at one time, counting what shares the rank with it."""
    train, pipeline = stage.train, stage.parallel.pipeline
    tokens = train.micro_batch * train.seq_len // mesh.layout.context
    tokens //= mesh.tensor.size if stage.parallel.sequence else 1
    if mesh.pipeline.size == 1:
        return tokens
    count = max(step_sizes(train)) // (mesh.data.size * train.micro_batch)
    return tokens * in_flight(pipeline.schedule, pipeline.size, count)


def _give_weights(module: nn.Module, prefix: str, stage: StageConfig, mesh: Mesh) -> None:
    for name, parameter in list(module.named_parameters()):
        values = initial_values(prefix + name, parameter.shape, stage.model, stage.train.seed).to(mesh.device)
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, nn.Parameter(cut(prefix + name, values, mesh)))
