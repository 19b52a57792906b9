"""From a stage's settings to what trains it: the device, whether it can be trained there, and the engine."""

from __future__ import annotations

from functools import partial

import torch

from internevo.config.choices import choose, is_yours
from internevo.config.schema import ModelConfig, StageConfig
from internevo.files.errors import UserError
from internevo.model.fp8 import check_fp8
from internevo.model.lora import check_targets
from internevo.model.transformer import ATTENTIONS, FEED_FORWARDS, Transformer
from internevo.parallel.block_settings import compute_dtype, stage_kernel
from internevo.parallel.layout import ONE_PROCESS, make_layout
from internevo.parallel.world import World
from internevo.train.engine import Engine, TorchEngine
from internevo.train.loss import choose_loss
from internevo.train.objective import make_objective
from internevo.train.offloaded import OffloadedEngine, import_deepspeed
from internevo.train.pipelined import Pipelined
from internevo.train.sequential import Sequential


def choose_device(name: str) -> torch.device:
    """The device that `train.device` means. Raises UserError when it asks for a GPU and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"train.device is cuda, but this torch ({torch.__version__}) sees no GPU. Check `nvidia-smi` and that "
            "torch is a CUDA build, or set train.device to auto or cpu."
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def check_engine(stage: StageConfig, world: int, device: torch.device) -> None:
    """Raise UserError if the stage cannot be trained by this many processes, on this device, with what is installed."""
    make_layout(stage, world)
    stage_kernel(stage, device)
    choose_loss(stage.train.loss, device, stage.parallel.tensor, stage.train.average)
    make_objective(stage)
    if stage.train.fp8 != "none":
        check_fp8(device)
    if stage.train.lora.rank:
        check_targets(stage.model, stage.train.lora)
    if is_yours(stage.model.attention.kind) or is_yours(stage.model.feed_forward.kind):
        _check_parts(stage.model)
    pipeline = stage.parallel.pipeline
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    if pipeline.size > 1 and pipeline.schedule == "zbv" and version < (2, 12):
        raise UserError(
            f"stage {stage.name}: torch {torch.__version__} cannot run parallel.pipeline.schedule zbv (its ranks would "
            "send to themselves); use 1f1b or interleaved, or torch 2.12 or newer."
        )
    zero = stage.parallel.zero
    if zero.engine == "deepspeed":
        import_deepspeed()
    elif zero.offload.optimizer != "none" and world == 1:
        raise UserError(
            f"stage {stage.name}: parallel.zero.offload.optimizer needs several processes with the engine fsdp; set "
            "parallel.zero.engine to deepspeed, or start more than one."
        )


def _check_parts(config: ModelConfig) -> None:
    """Raise UserError unless parts of a user's own have roles, and count their parameters right."""
    for name, known in ((config.attention.kind, ATTENTIONS), (config.feed_forward.kind, FEED_FORWARDS)):
        if not hasattr(choose(name, known), "cost"):
            raise UserError(
                f"{name} has no `cost`, which says how many parameters and products it has: docs/extending.md"
            )
    with torch.device("meta"):
        model = Transformer(config)
    counted, there = Transformer.cost(config).parameters, sum(p.numel() for p in model.parameters())
    if counted != there:
        raise UserError(
            f"the parts of the model count {counted:,} parameters and have {there:,}: the `cost` of "
            f"{config.attention.kind} or {config.feed_forward.kind} leaves some out. FLOPs, memory and the pipeline's "
            "split are made of these."
        )


def make_engine(stage: StageConfig, world: World, model: Transformer | None = None) -> Engine:
    """The stage's model over all processes, with its first weights, or in a world of one with those of an fp32 `model`,
    which is then trained in place or given up. Raises LayoutError when the sizes do not fit, and ValueError for a model
    where the engine makes its own.
    """
    deepspeed = stage.parallel.zero.engine == "deepspeed"
    if model is not None and (deepspeed or world.size > 1):
        raise ValueError("a model can be given to an engine of one process, which is not DeepSpeed's")
    if deepspeed:
        return OffloadedEngine(stage, world)
    mesh = world.mesh(make_layout(stage, world.size) if world.size > 1 else ONE_PROCESS)
    if mesh.pipeline.size > 1:
        return TorchEngine(stage, mesh, Pipelined)
    if model is not None and stage.optimizer.state == "fp32":
        model.to(world.device)
    in_place = model if compute_dtype(stage) == torch.float32 else None
    return TorchEngine(stage, mesh, partial(Sequential, model=in_place), model)
