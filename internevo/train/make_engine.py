"""Which engine trains a stage."""

from __future__ import annotations

from internevo.config.schema import StageConfig
from internevo.parallel.layout import make_layout
from internevo.parallel.world import World
from internevo.train.build import initial_model
from internevo.train.engine import Engine, LocalEngine
from internevo.train.offloaded import OffloadedEngine, import_deepspeed
from internevo.train.pipelined import PipelinedEngine
from internevo.train.sharded import ShardedEngine


def check_engine(stage: StageConfig, world: int) -> None:
    """Raise UserError if the stage cannot be trained by this many processes, or with what is installed here."""
    make_layout(stage, world)
    if stage.parallel.zero.engine == "deepspeed":
        import_deepspeed()


def make_engine(stage: StageConfig, world: World) -> Engine:
    """The stage's model over all processes, with its first weights. Raises LayoutError when the sizes do not fit."""
    if stage.parallel.zero.engine == "deepspeed":
        return OffloadedEngine(stage, world)
    if world.size == 1:
        return LocalEngine(initial_model(stage.model, world.device, stage.train.seed), stage, world.device)
    mesh = world.mesh(make_layout(stage, world.size))
    return (PipelinedEngine if mesh.pipeline.size > 1 else ShardedEngine)(stage, mesh)
