"""Evaluating a run beside its training: every new checkpoint, until the run is complete.

A process or a Slurm job of its own, so that training does not wait for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from internevo.checkpoint.commit import checkpoints
from internevo.config.derive import stage_steps
from internevo.config.load import load_config
from internevo.eval.evaluate import EvalRequest, evaluate
from internevo.eval.page import Findings
from internevo.files.errors import UserError
from internevo.monitor.metrics import read_metrics
from internevo.parallel.world import World
from internevo.train.folder import RunFolder
from internevo.train.stored_model import open_model

_PATIENCE_S, _POLL_S = 600.0, 10.0
WATCHED = "eval/watched.jsonl"  # a line for each checkpoint that was evaluated, in the run's folder


def wait_for_run(run: Path) -> None:
    """Return when the run has begun. Raises UserError when it does not within ten minutes, or cannot."""
    deadline = time.monotonic() + _PATIENCE_S
    while not RunFolder(run).config_file.is_file():
        if time.monotonic() > deadline or not run.parent.is_dir():
            raise UserError(f"{run} is not a run folder: it has no config.yaml. Give the folder of a run, runs/NAME.")
        time.sleep(1.0)


def watch(run: Path, asked: EvalRequest, world: World, show: Callable[[Sequence[Findings]], None]) -> int:
    """Evaluate every checkpoint of `run` that was not yet; the number of those evaluated now.

    Continues until the run's last step is saved. A checkpoint that the run deletes in the meantime is passed over.
    """
    folder = RunFolder(run)
    file = run / WATCHED
    file.parent.mkdir(exist_ok=True)
    count = 0
    while True:
        config = load_config(folder.config_file, check_data=False, check_values=False)
        done = {line["step"] for line in read_metrics(file)}
        saved = {int(path.name.partition("-")[2]): path for path in checkpoints(folder.checkpoints)}
        new = [step for step in saved if step not in done]
        for step in new:
            try:
                found = evaluate([open_model(run, step)], asked, world)
            except (OSError, UserError):
                if saved[step].exists():
                    raise
                continue
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"step": step, **found[0].to_json()}) + "\n")
            show(found)
            count += 1
        if not new:
            if sum(stage_steps(stage.train) for stage in config.stages) in done:
                return count
            time.sleep(_POLL_S)
