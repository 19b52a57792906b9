"""Verbs about runs: check a config, train, launch, look at the result."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from internevo.cli.shared import (
    ConfigArgument,
    OverridesArgument,
    UntilOption,
    app,
    argument,
    copy_remote_stores,
    option,
    out,
    plain,
    then,
)

RunArgument = Annotated[Path, argument("A run's folder, runs/NAME.", "RUN")]


@app.command()
def config(config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    """Print the resolved tree of a config and what it comes to, or say what is wrong with it.

    The last lines, comments, have the model's parameters and each stage's steps and tokens. Token stores need not exist
    yet: those that are missing are named.

    Example: `internevo config configs/internlm2-7b.yaml train.batch_tokens=8M`
    """
    from internevo.config.check import missing_files
    from internevo.config.load import load_config
    from internevo.config.render import render
    from internevo.data.check_stores import check_stores
    from internevo.monitor.meaning import meaning

    resolved = load_config(config, overrides or (), check_data=False)
    sys.stdout.write(render(resolved) + "".join(f"# {line}\n" for line in meaning(resolved)))
    sys.stdout.flush()
    if missing := missing_files(resolved):
        typer.echo("missing before this can be trained:\n  " + "\n  ".join(missing), err=True)
    else:
        check_stores(resolved.stages, copy=False)


@app.command()
def train(config: ConfigArgument, overrides: OverridesArgument = None, until: UntilOption = None) -> None:
    """Train, or resume, the run that a config describes.

    The same command again resumes from the newest checkpoint. SIGTERM, Ctrl-C or a closed terminal saves and leaves,
    with exit code 128 + the signal's number; under `nohup`, a closed terminal changes nothing.

    Example: `internevo train configs/tiny.yaml optimizer.lr=1e-3`
    """
    from internevo.config.load import load_config
    from internevo.train.run import train as train_run

    resolved = load_config(config, overrides or ())
    # before ranks meet: they do not wait for each other for hours
    copy_remote_stores({one.path: stage.data.cache for stage in resolved.stages for one in stage.data.sources})
    run = Path(resolved.runs) / resolved.name
    stopped = train_run(resolved, sys.argv, math.inf if until is None else until)
    if os.environ.get("RANK", "0") != "0":
        raise SystemExit(0 if stopped is None else 128 + stopped)
    if stopped is not None:
        saved = any((run / "checkpoints").glob("step-*"))
        kept = f"the run is saved in {plain(run)}" if saved else "no step was done, so there was nothing to save"
        out.print(f"stopped by {stopped.name}; {kept}")
        then("the same command resumes" if saved else "the same command begins again")
        raise SystemExit(128 + stopped)
    then(f"internevo report {run} · internevo generate {run} --prompt ... · internevo export {run} DIR --format llama")


@app.command()
def report(run: RunArgument) -> None:
    """Write a run as one HTML page: curves, speed, memory, data, stages.

    Works while the run trains. Example: `internevo report runs/tiny`
    """
    from internevo.monitor.report import write_report

    path = write_report(run)
    out.print(f"wrote {plain(path)}")
    then(f"open {path} in a browser")


@app.command()
def verify(
    run: RunArgument,
    overrides: OverridesArgument = None,
    steps: Annotated[
        int, option("Recorded steps to train again and compare.", "STEPS", "--replay", least=0, most=10**9)
    ] = 0,
    processes: Annotated[int, option("Processes for them.", "N", "--nproc", least=1, most=1024)] = 1,
) -> None:
    """Check a run: every checkpoint byte by byte, and that resuming under another layout gives the same.

    With `--replay N`, up to N recorded steps are trained again from a checkpoint, in a folder aside, under the layout
    that the overrides ask for; their digests of the data must be the same, and their losses to rounding.

    Example: `internevo verify runs/tiny --replay 5 --nproc 2 parallel.tensor=2`
    """
    from internevo.launch.torchrun import launch_here
    from internevo.train.verify import LOSS_TOLERANCE, check_checkpoints, replay

    if steps:
        verdict = replay(run, steps, overrides or (), lambda arguments: launch_here(arguments, processes))
        wrong = len(verdict.differences)
        same = f"all had the same data, and losses within {LOSS_TOLERANCE}"
        out.print(f"{verdict.compared} steps trained again: {f'{wrong} came out otherwise' if wrong else same}")
    else:
        verdict = check_checkpoints(run)
    out.print(f"{len(verdict.whole)} checkpoints are whole: every byte is as it was written")
    for line in (*verdict.damaged, *verdict.differences):
        out.print(f"[bold red]wrong:[/] {plain(line)}")
    if not verdict.good:
        raise SystemExit(1)
    if steps:
        then(f"internevo export {run} DIR --format llama")
    else:
        then(f"internevo verify {run} --replay 5 KEY=VALUE..., which trains recorded steps again under another layout")


@app.command()
def quickstart(
    folder: Annotated[Path, option("The folder to work in.", "FOLDER", "--out")] = Path("quickstart"),
    chat: Annotated[bool, option("Then finetune the model on conversations, and ask it questions.")] = False,
) -> None:
    """The whole job on this machine: corpus, tokenizer, tokens, three stages, export, a sample, a report.

    The corpus is this Python's own standard library. Run it again to resume where it stopped.

    Example: `internevo quickstart --out quickstart --chat`
    """
    from internevo.quickstart.run import quickstart as run_quickstart

    stopped = run_quickstart(folder, out, chat)
    if stopped is not None:
        raise SystemExit(128 + stopped)


@app.command()
def doctor() -> None:
    """What is installed here, and what is missing for what.

    Exit code 1 when something is missing that nothing works without.

    Example: `internevo doctor`
    """
    from rich.table import Table

    from internevo.monitor.doctor import broken_imports, examine

    findings = examine()
    table = Table(box=None)
    for head in ("", "found", "for", "if you want it"):
        table.add_column(head, overflow="fold")
    for one in findings:
        colour = "green" if one.good else "red" if one.needed else "yellow"
        mark = "there" if one.good else "missing"
        remedy = "" if one.good else one.remedy
        table.add_row(one.name, f"[{colour}]{plain(one.found) or mark}[/]", plain(one.purpose), plain(remedy))
    out.print(table)
    broken = broken_imports()
    for line in broken:
        out.print(f"[bold red]broken:[/] {plain(line)}")
    if broken or any(one.needed and not one.good for one in findings):
        raise SystemExit(1)
    then("internevo quickstart")
