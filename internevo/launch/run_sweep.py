"""Running a sweep's runs on this machine, several at a time, and the state of each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from internevo.config.derive import stage_steps
from internevo.files.durable import write_durable
from internevo.files.json_files import is_number, parsed, read_mapping
from internevo.files.lock import locked
from internevo.files.signals import stops_noted
from internevo.launch.slurm import why
from internevo.launch.sweep import PlannedRun, Sweep

_POLL_S = 0.2


class Status(StrEnum):
    waiting = "waiting"
    started = "started"  # begun and not finished: running, or interrupted
    complete = "complete"
    failed = "failed"


@dataclass(frozen=True)
class RunState:
    run: PlannedRun
    status: Status
    steps: int
    total: int
    cause: str = ""  # why it failed, in a few lines


def state(sweep: Sweep, run: PlannedRun) -> RunState:
    """The state of a run, from its folder."""
    folder = sweep.folder / run.name
    total = sum(stage_steps(stage.train) for stage in sweep.load(run).stages)
    steps = _last_step(folder)
    mark = read_mapping(_log(sweep, run, ".json"))
    if mark.get("code") == 0 and steps >= total:
        return RunState(run, Status.complete, steps, total)
    if mark.get("code") and not mark.get("stopped"):
        return RunState(run, Status.failed, steps, total, cause=str(mark.get("cause", "")))
    return RunState(run, Status.started if folder.exists() else Status.waiting, steps, total)


def record(sweep: Sweep, run: PlannedRun, code: int, cause: str = "") -> None:
    """Note how a run ended: its exit code, and why when it failed."""
    asked = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    stopped = code in (*(128 + one for one in asked), *(-one for one in asked))
    file = _log(sweep, run, ".json")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_durable(file, json.dumps({"code": code, "stopped": stopped, "cause": cause}))


def held(sweep: Sweep) -> AbstractContextManager[None]:
    """Lock the sweep's folder. Raises UserError when another process has it."""
    remedy = (
        "`--show` compares what is there; when the other process is over or was stopped, the same command resumes "
        "with what is not complete."
    )
    return locked(sweep.folder / ".lock", remedy)


def run_sweep(
    sweep: Sweep, file: Path, chosen: Sequence[int], changed: Callable[[PlannedRun, str], None]
) -> int | None:
    """Run the runs of these numbers, `sweep.at_once` at a time; the signal that ended it early, or None.

    `file` is the sweep's. SIGTERM, Ctrl-C and SIGHUP (not under nohup) make the runs save and leave; the same sweep
    resumes later. `changed` is called when a run begins, and with how it ended.
    """
    waiting, running = list(chosen), dict[int, subprocess.Popen[bytes]]()

    def stop() -> None:
        for process in running.values():
            process.send_signal(signal.SIGTERM)

    with stops_noted(stop) as asked:
        while running or (waiting and not asked):
            while waiting and len(running) < sweep.at_once and not asked:
                number = waiting.pop(0)
                running[number] = _start(sweep, file, number)
                changed(sweep.runs[number], "began")
            time.sleep(_POLL_S)
            for number, process in list(running.items()):
                if (code := process.poll()) is not None:
                    del running[number]
                    changed(sweep.runs[number], _ended(sweep, sweep.runs[number], code))
    return asked[0] if asked else None


def _start(sweep: Sweep, file: Path, number: int) -> subprocess.Popen[bytes]:
    log = _log(sweep, sweep.runs[number], ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    cores = max(1, (os.cpu_count() or 1) // (sweep.at_once * sweep.processes))
    environment = {"OMP_NUM_THREADS": str(cores), **os.environ}
    with log.open("ab") as out:
        # a session of its own: Ctrl-C reaches the run through us, once
        return subprocess.Popen(
            _command(file, number, sweep.processes),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environment,
            start_new_session=True,
        )


def _ended(sweep: Sweep, run: PlannedRun, code: int) -> str:
    cause = why(_log(sweep, run, ".log"), 3) if code else ""
    record(sweep, run, code, cause)
    now = state(sweep, run)
    if now.status is Status.failed:
        return f"failed (exit code {code}): {cause}"
    return "complete" if now.status is Status.complete else f"stopped after step {now.steps} of {now.total}"


def _command(file: Path, number: int, processes: int) -> list[str]:
    mine = ["sweep", str(file), "--run", str(number)]
    if processes == 1:
        return [sys.executable, "-m", "internevo", *mine]
    several = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "internevo"]
    return [sys.executable, "-m", *several, *mine]


def _log(sweep: Sweep, run: PlannedRun, ending: str) -> Path:
    """`.log` has the run's output, `.json` how it ended."""
    return sweep.folder / "logs" / f"{run.name}{ending}"


def _last_step(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    for line in reversed(file.read_bytes().splitlines()) if file.exists() else ():
        found = parsed(line)
        step = found.get("step") if isinstance(found, dict) else None  # not of half a line of a killed process
        if is_number(step):
            return int(step)
    return 0
