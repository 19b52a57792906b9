"""What a run resumes from: found, checked against configuration and data, and loaded.

The two functions can be called again and again in one process: when a run starts, when it starts again, and at each
change of stage, whose engine is filled with what the stage before has saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internevo.checkpoint.commit import CORRUPT, Found, find_latest, read_state, step_name
from internevo.checkpoint.tensors import read_tensors
from internevo.config.derive import places_before, stage_steps
from internevo.config.schema import RunConfig
from internevo.data.fingerprint import Facts, check_same, data_facts
from internevo.data.loader import Cursor
from internevo.files.errors import UserError
from internevo.parallel.world import World
from internevo.train.engine import Engine
from internevo.train.folder import RunFolder
from internevo.train.progress import Progress


@dataclass(frozen=True)
class Standing:
    """Where a run stands."""

    checkpoint: Path | None
    """The newest whole checkpoint; None at the very beginning."""
    progress: Progress
    refused: tuple[str, ...] = ()
    """A sentence for each newer checkpoint that is damaged."""
    data_changes: tuple[str, ...] = ()
    """What is other data now than when it was saved, and was accepted."""
    base: dict[str, Any] | None = None
    """What it says of the model that its adapters are trained on."""


def find_standing(config: RunConfig, folder: RunFolder, world: World) -> Standing:
    """Where the run of this folder stands, every byte of its checkpoint checked. All ranks call it together.

    It only reads, but for setting damaged checkpoints aside. Raises UserError when all checkpoints are damaged, and
    when configuration or data are not those that the checkpoint was made with.
    """
    found = world.on_main(lambda: _newest(folder.checkpoints))
    if found.path is None:
        return Standing(None, Progress(Cursor()), found.refused)
    state = read_state(found.path)
    progress = Progress.from_json(state["progress"])
    _check_stage(config, folder, progress, state["stage"], state["places"])
    changes = tuple(_check_data(config, progress, state["data"]))
    return Standing(found.path, progress, found.refused, changes, state.get("base"))


def stand(engine: Engine, folder: RunFolder, step: int, world: World) -> None:
    """Fill the engine, of whatever layout, with the run's checkpoint of this step. All ranks call it together."""
    checkpoint = folder.checkpoints / step_name(step)
    engine.load(lambda tensors: read_tensors(checkpoint, tensors, world.control))


def _newest(folder: Path) -> Found:
    """The newest whole checkpoint, if any. Raises UserError when there were some, and none of them is whole."""
    found = find_latest(folder)
    if found.path is None and (lost := sorted(folder.glob(f"*{CORRUPT}*"))):
        raise UserError(
            "\n".join([*found.refused, f"{folder} has no whole checkpoint left, and {lost[-1].name}."])
            + " Bring a good one back, or give this run another name; to begin this one again at its first step, "
            f"remove {folder}/*{CORRUPT}."
        )
    return found


def _check_stage(config: RunConfig, folder: RunFolder, progress: Progress, name: str, places: int) -> None:
    """Raise UserError unless the stages that are over, and the current one so far, are as they were."""
    stages = config.stages
    before = sum(stage_steps(stage.train) for stage in stages[: progress.stage])
    same = progress.stage < len(stages) and stages[progress.stage].name == name
    if not same or before != progress.step - progress.stage_step:
        raise UserError(
            f"{folder.path} has done {progress.step:,} steps and stands in stage {progress.stage + 1}, "
            f"{name!r}, step {progress.stage_step:,}; in this configuration the {progress.stage} stages before "
            f"have {before:,} steps. Stages that a run has been through must stay as they were; new ones can be "
            "added at the end."
        )
    if progress.stage_step > stage_steps(stages[progress.stage].train):
        raise UserError(
            f"{folder.path} has done {progress.stage_step:,} steps of stage {name!r}, more than this "
            "configuration gives it."
        )
    current = stages[progress.stage].train
    if places_before(current, progress.stage_step) != places:
        raise UserError(
            f"{folder.path} had places for {places:,} tokens in {progress.stage_step:,} steps of {name!r}; "
            "by this train.seq_len, batch_tokens and batch_ramp there would have been "
            f"{places_before(current, progress.stage_step):,}. To resume with another batch, keep the old one for "
            f"what is over: train.batch_ramp=[{{until: {places}, batch_tokens: THE OLD ONE}}] beside the new "
            "train.batch_tokens."
        )


def _check_data(config: RunConfig, progress: Progress, saved: Facts) -> list[str]:
    """What changed of the data, all of it accepted. The mixture of a stage that is over does not matter."""
    stages = config.stages[: progress.stage + 1]
    continues = progress.stage_step < stage_steps(stages[-1].train)
    return check_same(saved, data_facts(stages), mixture=continues, accept=stages[-1].data.accept)
