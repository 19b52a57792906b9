"""Which engine trains a stage."""

from __future__ import annotations

import torch

from internevo.config.schema import StageConfig
from internevo.files.errors import UserError
from internevo.model.fp8 import check_fp8
from internevo.parallel.block_settings import stage_kernel
from internevo.parallel.layout import LayoutError, make_layout
from internevo.parallel.world import World
from internevo.train.build import initial_model
from internevo.train.engine import Engine, LocalEngine
from internevo.train.lean import LeanEngine
from internevo.train.loss import choose_loss
from internevo.train.offloaded import OffloadedEngine, import_deepspeed
from internevo.train.pipelined import PipelinedEngine
from internevo.train.sharded import ShardedEngine


def check_engine(stage: StageConfig, world: int, device: torch.device) -> None:
    """Raise UserError if the stage cannot be trained by this many processes, on this device, with what is installed."""
    make_layout(stage, world)
    stage_kernel(stage, device)
    choose_loss(stage.train.loss, device, stage.parallel.tensor)
    if stage.train.fp8 != "none":
        check_fp8(device)
    if stage.optimizer.state != "fp32" and world > 1:
        raise LayoutError(
            f"stage {stage.name}: optimizer.state={stage.optimizer.state} is for one process, and there are {world}; "
            "ZeRO shares the state over them: set optimizer.state=fp32."
        )
    pipeline = stage.parallel.pipeline
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    if pipeline.size > 1 and pipeline.schedule == "zbv" and version < (2, 12):
        raise UserError(
            f"stage {stage.name}: torch {torch.__version__} cannot run parallel.pipeline.schedule zbv (its ranks would "
            "send to themselves); use 1f1b or interleaved, or torch 2.12 or newer."
        )
    if stage.parallel.zero.engine == "deepspeed":
        import_deepspeed()


def make_engine(stage: StageConfig, world: World) -> Engine:
    """The stage's model over all processes, with its first weights. Raises LayoutError when the sizes do not fit."""
    if stage.parallel.zero.engine == "deepspeed":
        return OffloadedEngine(stage, world)
    if stage.optimizer.state != "fp32":
        return LeanEngine(initial_model(stage.model, torch.device("cpu"), stage.train.seed), stage, world.device)
    if world.size == 1:
        return LocalEngine(initial_model(stage.model, world.device, stage.train.seed), stage, world.device)
    mesh = world.mesh(make_layout(stage, world.size))
    return (PipelinedEngine if mesh.pipeline.size > 1 else ShardedEngine)(stage, mesh)
