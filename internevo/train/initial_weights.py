"""Beginning a run with the weights of another model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import Tensor

from internevo.config.schema import ModelConfig, StageConfig
from internevo.config.typed import flatten
from internevo.files.errors import UserError
from internevo.model.flops import parameters
from internevo.model.lora import adapter_parameters
from internevo.parallel.world import World
from internevo.train.engine import Engine
from internevo.train.stored_model import Facts, StoredModel, base_facts, open_base

_FREE = ("preset", "init_std", "rope.")
"""What may differ: the rotary embedding may be stretched for longer rows."""
_PREFIX = "model/"


@dataclass(frozen=True)
class Begun:
    """What an engine has begun from."""

    told: list[str]
    """What to tell a person."""
    base: Facts | None
    """What checkpoints say of the model that adapters are trained on."""


def begin_from(engine: Engine, stage: StageConfig, world: World, base: Facts | None = None) -> Begun:
    """Give a new engine the weights that `train.init_from` names, each rank its part; its optimizers begin with them.

    With `train.lora` these are the frozen weights, and `base` is what the run's checkpoint says of them. All ranks call
    it together. Raises UserError when the shapes differ, or the weights are not those of `base`.
    """
    source, base = world.on_main(lambda: _open(stage, base))

    def read(tensors: Mapping[str, Tensor]) -> None:
        weights = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
        source.weights.fill(weights, world.control)

    engine.begin(read)
    ours, theirs = flatten(asdict(stage.model.rope)), flatten(asdict(source.config.rope))
    changes = [f"rope.{key} is {ours[key]} here, {theirs[key]} there" for key in ours if ours[key] != theirs[key]]
    learning = []
    if count := adapter_parameters(stage.model, stage.train.lora):
        learning = [f"adapters: {count:,} parameters learn, {count / parameters(stage.model):.2%} of the model's"]
    return Begun([f"weights from {source.name}", *learning, *changes, *source.notes], base)


def _open(stage: StageConfig, base: Facts | None) -> tuple[StoredModel, Facts | None]:
    """The model to begin with, every byte of a checkpoint checked, and what checkpoints of adapters are to say of it.

    Raises UserError unless it can begin the stage's.
    """
    path = stage.train.init_from
    assert path is not None
    source = open_base(path, base)
    if different := shape_differences(stage.model, source.config):
        raise UserError(f"train.init_from: {path} is of another shape:\n  " + "\n  ".join(different))
    return source, base_facts(source) if stage.train.lora.rank else None


def shape_differences(ours: ModelConfig, theirs: ModelConfig) -> list[str]:
    """A line for each key by which weights of the one do not fit the other."""
    found = flatten(asdict(theirs))
    return [
        f"model.{key}: {value} here, {there} there"
        for key, value in flatten(asdict(ours)).items()
        if not key.startswith(_FREE) and value != (there := found.get(key))
    ]
