"""Beginning a run with the weights of another model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from internevo.config.schema import ModelConfig, StageConfig
from internevo.config.typed import flatten
from internevo.files.errors import UserError
from internevo.parallel.world import World
from internevo.train.engine import Engine
from internevo.train.stored_model import StoredModel, open_model

_FREE = ("preset", "init_std", "rope.")
"""What may differ: the rotary embedding may be stretched for longer rows."""
_PREFIX = "model/"


def begin_from(engine: Engine, stage: StageConfig, world: World) -> list[str]:
    """Give a new engine the weights that `train.init_from` names, each rank its part; its optimizers begin with them.

    All ranks call it together. Returns what to tell a person. Raises UserError when the shapes differ.
    """
    path = stage.train.init_from
    assert path is not None
    source = world.on_main(lambda: _open(path, stage.model))

    def read(tensors: Mapping[str, Tensor]) -> None:
        weights = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
        source.weights.fill(weights, world.control)

    engine.begin(read)
    ours, theirs = flatten(asdict(stage.model.rope)), flatten(asdict(source.config.rope))
    changes = [f"rope.{key} is {ours[key]} here, {theirs[key]} there" for key in ours if ours[key] != theirs[key]]
    return [f"weights from {source.name}", *changes, *source.notes]


def _open(path: str, ours: ModelConfig) -> StoredModel:
    """The model to begin with, every byte of a checkpoint checked. Raises UserError unless it can begin `ours`."""
    source = open_model(Path(path))
    if different := shape_differences(ours, source.config):
        raise UserError(f"train.init_from: {path} is of another shape:\n  " + "\n  ".join(different))
    return source


def shape_differences(ours: ModelConfig, theirs: ModelConfig) -> list[str]:
    """A line for each key by which weights of the one do not fit the other."""
    found = flatten(asdict(theirs))
    return [
        f"model.{key}: {value} here, {there} there"
        for key, value in flatten(asdict(ours)).items()
        if not key.startswith(_FREE) and value != (there := found.get(key))
    ]
