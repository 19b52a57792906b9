"""A finished or stopped run, read back: for export, generation and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from internevo.checkpoint.commit import checkpoints, problems, read_state, step_name
from internevo.checkpoint.tensors import read_tensors
from internevo.config.errors import UserError
from internevo.config.load import load_config
from internevo.config.schema import StageConfig
from internevo.model.transformer import Transformer
from internevo.train.build import empty_model
from internevo.train.folder import RunFolder


@dataclass(frozen=True)
class Restored:
    """A model out of a checkpoint."""

    model: Transformer
    """fp32 weights on the CPU."""
    stage: StageConfig
    """The stage that the checkpoint belongs to: its rotary base and row length are the model's."""
    step: int
    checkpoint: Path


def restore(run: Path, step: int | None = None) -> Restored:
    """The model of a run's checkpoint: the newest whole one, or that of `step`.

    Reads only, so it is safe beside a run in progress. Raises UserError when `run` is no run folder or has no such
    checkpoint.
    """
    folder = RunFolder(run)
    if not folder.config_file.is_file():
        raise UserError(f"{run} is not a run folder: it has no config.yaml. Give the folder of a run, runs/NAME.")
    checkpoint = _choose(folder.checkpoints, step)
    config = load_config(folder.config_file, check_data=False)
    state = read_state(checkpoint)
    stage = next((stage for stage in config.stages if stage.name == state["stage"]), None)
    if stage is None:
        raise UserError(f"{checkpoint} belongs to stage {state['stage']!r}, which {folder.config_file} lacks.")
    model = empty_model(stage.model)
    read_tensors(checkpoint, {f"model/{name}": p.detach() for name, p in model.named_parameters()})
    return Restored(model, stage, state["step"], checkpoint)


def _choose(folder: Path, step: int | None) -> Path:
    if step is not None:
        path = folder / step_name(step)
        if not path.is_dir():
            known = ", ".join(p.name for p in checkpoints(folder)) or "none"
            raise UserError(f"there is no checkpoint {path}; the run has: {known}.")
        if wrong := problems(path):
            raise UserError(f"{path} is damaged: {'; '.join(wrong)}")
        return path
    for path in reversed(checkpoints(folder)):
        if not problems(path):
            return path
    raise UserError(
        f"{folder} holds no whole checkpoint yet. `internevo train` writes one every checkpoint.every steps."
    )
