"""Many runs of one configuration."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from internevo.cli.launch import write_script
from internevo.cli.shared import app, argument, console, option, out, plain, then

if TYPE_CHECKING:
    from internevo.launch.sweep import Sweep


@app.command()
def sweep(
    file: Annotated[Path, argument("The YAML file of the sweep.", "SWEEP")],
    at_once: Annotated[
        int | None, option("Runs at a time; the file's when absent.", "N", "--at-once", least=1, most=1024)
    ] = None,
    retry: Annotated[bool, option("Run again what failed.", None, "--retry")] = False,
    show: Annotated[bool, option("Run nothing: list the runs, rank them, write the page.", None, "--show")] = False,
    slurm: Annotated[bool, option("As a Slurm array, a run an element.", None, "--slurm")] = False,
    sbatch: Annotated[
        list[str] | None, option("With --slurm: an sbatch option, `partition=gpu`; may be repeated.", "OPTION")
    ] = None,
    gpus: Annotated[bool, option("With --slurm: whether each process has a GPU.")] = True,
    time: Annotated[str | None, option("With --slurm: the time limit of a run, `4:00:00`.", "TIME")] = None,
    number: Annotated[
        int | None, option("Train one of its runs, here.", None, "--run", least=0, most=10**9, hidden=True)
    ] = None,
) -> None:
    """Train the runs of a sweep, so many at a time, and compare them: a ranked table and one page with their curves.

    The same command again resumes what is not complete. `docs/sweeps.md` describes the file.

    Example: `internevo sweep configs/sweeps/width.yaml --at-once 2`
    """
    from internevo.launch.run_sweep import held
    from internevo.launch.sweep import read_sweep

    planned = read_sweep(file)
    if at_once is not None:
        planned = replace(planned, at_once=at_once)
    if number is not None:
        _train_one(planned, number)
        return
    if slurm:
        _submit(planned, file, sbatch or (), gpus, time)
        return
    stopped = None
    if not show:
        with held(planned):
            stopped = _run(planned, file, retry)
    _compare(planned)
    if stopped is not None:
        then("the same command resumes what is not complete")
        raise SystemExit(128 + stopped)


def _train_one(planned: Sweep, number: int) -> None:
    """One run of a sweep, as any rank of it."""
    from internevo.launch.run_sweep import record
    from internevo.train.run import train

    run = planned.runs[number]
    os.environ.setdefault("WANDB_RUN_GROUP", planned.name)
    main = os.environ.get("RANK", "0") == "0"
    try:
        stopped = train(planned.load(run), sys.argv)
    except Exception as error:
        if main:
            record(planned, run, 1, str(error))
        raise
    code = 0 if stopped is None else 128 + stopped
    if main:
        record(planned, run, code)
    raise SystemExit(code)


def _run(planned: Sweep, file: Path, retry: bool) -> int | None:
    """Run what is not complete on this machine; the signal that ended it early, or None."""
    from internevo.launch.run_sweep import Status, run_sweep, state

    skipped = {Status.complete} if retry else {Status.complete, Status.failed}
    chosen = [n for n, run in enumerate(planned.runs) if state(planned, run).status not in skipped]
    left = f", {planned.left_out} left out by `where`" if planned.left_out else ""
    numbers = f"{len(planned.runs)} runs{left}; {len(chosen)} to do, {planned.at_once} at a time"
    out.print(f"{plain(planned.name)}: {numbers}")
    return run_sweep(planned, file, chosen, lambda run, what: out.print(plain(f"{run.name}: {what}")))


def _compare(planned: Sweep) -> None:
    """The ranked table, what failed, and the page."""
    from rich.table import Table

    from internevo.launch.run_sweep import Status
    from internevo.monitor.sweep_page import ranked_rows, results, write_sweep_page

    planned.folder.mkdir(parents=True, exist_ok=True)
    found = results(planned)
    head, rows = ranked_rows(found)
    shown = Table(*map(plain, head), box=None)
    for row in rows:
        shown.add_row(*(plain(cell) for cell in row))
    (out if out.is_terminal else console(width=200)).print(shown)  # a log has no width
    for one in found:
        if one.state.status is Status.failed:
            out.print(f"[bold red]{plain(one.state.run.name)} failed:[/] {plain(one.state.cause)}")
    path = write_sweep_page(planned, found)
    out.print(f"wrote {plain(path)}")
    then(f"open {path} in a browser")


def _submit(planned: Sweep, file: Path, sbatch: Sequence[str], gpus: bool, time: str | None) -> None:
    from internevo.launch import slurm

    job = slurm.SlurmJob(
        name=planned.name,
        nodes=1,
        processes=planned.processes,
        gpus=gpus,
        time=time,
        array=f"0-{len(planned.runs) - 1}%{planned.at_once}",
        more=tuple(sbatch),
    )
    script = write_script(job, ["sweep", str(file.absolute()), "--run", "$SLURM_ARRAY_TASK_ID"], planned.folder)
    out.print(f"wrote {plain(script)}")
    number = slurm.submit(script)
    size = f"an array of {len(planned.runs)}, {planned.at_once} at a time"
    out.print(f"submitted job {number}, {size}; logs in {plain(script.parent)}")
    then(f"squeue --job {number} · internevo sweep {file} --show")
