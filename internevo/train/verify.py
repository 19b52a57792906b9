"""Checks of a finished or stopped run: is every checkpoint whole, and does the data and the loss hold on resume?"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from internevo.checkpoint.commit import checkpoints, problems, read_state
from internevo.data.batch import DIGEST_DIGITS
from internevo.files.errors import UserError
from internevo.monitor.metrics import read_metrics
from internevo.train.folder import RunFolder

LOSS_TOLERANCE = 1e-3
"""Largest relative difference of a step's loss between two layouts."""


@dataclass(frozen=True)
class Verdict:
    """What `verify` found."""

    whole: tuple[str, ...]
    """Checkpoints whose every byte is as their manifest says."""
    damaged: tuple[str, ...]
    """A sentence for each of the others."""
    compared: int = 0
    """Steps that were trained again."""
    differences: tuple[str, ...] = ()
    """A sentence for each step that came out otherwise."""

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damaged and not self.differences


def check_checkpoints(run: Path) -> Verdict:
    """Read every checkpoint of a run. Raises UserError when `run` is no run folder."""
    folder = RunFolder(run)
    if not folder.config_file.is_file():
        raise UserError(f"{run} is not a run folder: it has no config.yaml. Give the folder of a run, runs/NAME.")
    whole, damaged = [], []
    for path in checkpoints(folder.checkpoints):
        wrong = problems(path)
        if wrong:
            damaged.append(f"{path.name} is damaged: {'; '.join(wrong)}")
        else:
            whole.append(path.name)
    return Verdict(tuple(whole), tuple(damaged))


def replay(run: Path, steps: int, overrides: Sequence[str], start: Callable[[list[str]], int]) -> Verdict:
    """Train steps that the run has recorded once more, from a checkpoint, and compare digests and losses.

    A copy of the run's config and of one checkpoint is made aside; the run itself is only read. The checkpoint is the
    newest with at least one recorded step of the same stage after it, and at most `steps` steps are trained.
    `overrides` change the layout. `start` runs `internevo ARGUMENTS` and returns its exit code. Raises UserError when
    there is nothing to compare with, when digests were recorded by an earlier version, or when the command fails.
    """
    verdict = check_checkpoints(run)
    folder = RunFolder(run)
    recorded = {line["step"]: line for line in read_metrics(folder.metrics)}
    chosen = _choose(folder.checkpoints, verdict.whole, recorded)
    if chosen is None:
        raise UserError(
            f"{run} has no recorded step after a whole checkpoint of the same stage to compare with. "
            "checkpoint.keep=0 keeps all checkpoints."
        )
    state = read_state(chosen)
    until = state["step"] + min(steps, _behind(state, recorded))
    if any(len(recorded[step]["digest"]) != DIGEST_DIGITS for step in range(state["step"] + 1, until + 1)):
        raise UserError(
            f"{run}: steps after {chosen.name} were recorded by an earlier version of internevo, whose digests cover "
            "token ids alone and cannot be compared with today's. Replay with the version that recorded them "
            f"({folder.environment.name} in the run names it)."
        )
    with tempfile.TemporaryDirectory() as aside:
        config = yaml.safe_load(folder.config_file.read_text(encoding="utf-8"))
        config |= {"name": "replay", "runs": aside}
        file = Path(aside) / "config.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        copy = Path(aside) / "replay" / "checkpoints" / chosen.name
        shutil.copytree(chosen, copy)
        if start(["train", str(file), "--until", str(until), *overrides]) != 0:
            raise UserError(f"training from {chosen.name} again failed; see the output above")
        again = read_metrics(Path(aside) / "replay" / "metrics.jsonl")
    wrong = [line for one in again if (line := _difference(recorded[one["step"]], one))]
    return Verdict(verdict.whole, verdict.damaged, len(again), tuple(wrong))


def _choose(folder: Path, whole: Sequence[str], recorded: dict[int, dict[str, Any]]) -> Path | None:
    for name in reversed(whole):
        if _behind(read_state(folder / name), recorded):
            return folder / name
    return None


def _behind(state: dict[str, Any], recorded: dict[int, dict[str, Any]]) -> int:
    """Recorded steps after a checkpoint that belong to its stage."""
    count = 0
    while (line := recorded.get(state["step"] + count + 1)) and line["stage"] == state["stage"]:
        count += 1
    return count


def _difference(recorded: dict[str, Any], again: dict[str, Any]) -> str | None:
    step = again["step"]
    if recorded["digest"] != again["digest"]:
        return f"step {step}: other data (digest {again['digest']}, recorded {recorded['digest']})"
    first, second = recorded["loss"], again["loss"]
    if first is None or second is None or abs(first - second) > LOSS_TOLERANCE * abs(first):
        return f"step {step}: loss {second}, recorded {first}"
    return None
