"""Beginning a run with the weights of another model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from internevo.config.schema import ModelConfig, StageConfig
from internevo.files.errors import UserError
from internevo.parallel.world import World
from internevo.train.engine import Engine
from internevo.train.stored_model import StoredModel, open_model

_FREE = ("preset", "init_std", "rope_base", "rope_scaling")
"""What may differ: the rotary embedding may be stretched for longer rows."""
_PREFIX = "model/"


def begin_from(engine: Engine, stage: StageConfig, world: World) -> list[str]:
    """Give the engine the weights that `train.init_from` names, each rank its part; the optimizer begins anew.

    All ranks call it together. Returns what to tell a person. Raises UserError when the shapes differ.
    """
    path = stage.train.init_from
    assert path is not None
    source = world.on_main(lambda: _open(path, stage.model))

    def read(tensors: Mapping[str, Tensor]) -> None:
        weights = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
        source.weights.fill(weights, world.control)
        with torch.no_grad():
            for name, tensor in tensors.items():
                if not name.startswith(_PREFIX):
                    tensor.zero_()

    engine.load(read)
    changes = [
        f"{key} is {getattr(stage.model, key)} here, {getattr(source.config, key)} there"
        for key in ("rope_base", "rope_scaling")
        if getattr(stage.model, key) != getattr(source.config, key)
    ]
    return [f"weights from {source.name}", *changes, *source.notes]


def _open(path: str, ours: ModelConfig) -> StoredModel:
    """The model to begin with, every byte of a checkpoint checked. Raises UserError unless it can begin `ours`."""
    source = open_model(Path(path))
    different = [
        f"model.{key}: {value} here, {there} there"
        for key, value in vars(ours).items()
        if key not in _FREE and value != (there := getattr(source.config, key))
    ]
    if different:
        raise UserError(f"train.init_from: {path} is of another shape:\n  " + "\n  ".join(different))
    return source
