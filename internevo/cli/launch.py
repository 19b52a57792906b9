"""Starting runs on several processes, machines, or through Slurm."""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from internevo.cli.shared import ConfigArgument, OverridesArgument, UntilOption, app, option, out, plain, then
from internevo.files.errors import UserError
from internevo.monitor.terminal import Terminal

if TYPE_CHECKING:
    from internevo.config.schema import RunConfig
    from internevo.launch.slurm import SlurmJob


slurm_option = partial(option, rich_help_panel="With --slurm")

ProcessesOption = Annotated[
    int, option("Processes on each machine; one for each GPU.", "N", "--nproc", least=1, most=1024)
]
GraceOption = Annotated[
    int, slurm_option("Seconds before the limit at which the run saves and leaves.", "SECONDS", least=0, most=10**7)
]
MountsOption = Annotated[
    str | None, slurm_option("Folders that the container sees beside this one, `/data:/data`.", "MOUNTS")
]
PythonOption = Annotated[
    str | None, slurm_option("What runs the ranks; this Python, or `python3` of the image.", "PYTHON")
]
BesideOption = Annotated[
    bool, slurm_option("Evaluate every checkpoint in a job of its own.", None, "--evaluate-beside")
]
SbatchOption = Annotated[
    list[str] | None, slurm_option("A further sbatch option, `constraint=h100`; may be repeated.", "OPTION")
]


@app.command()
def launch(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    processes: ProcessesOption = 1,
    nodes: Annotated[str | None, option("Machines to reach by ssh, `a,b,c`; with --slurm, how many.", "NODES")] = None,
    until: UntilOption = None,
    ssh: Annotated[str, option("The command that reaches a machine.", "COMMAND")] = "ssh",
    slurm: Annotated[bool, option("Write an sbatch file, submit it, follow its log.", None, "--slurm")] = False,
    dry_run: Annotated[bool, slurm_option("Write the sbatch file and submit nothing.")] = False,
    detach: Annotated[bool, slurm_option("Submit, and do not follow the log.")] = False,
    partition: Annotated[str | None, slurm_option("Slurm's partition.", "NAME")] = None,
    account: Annotated[str | None, slurm_option("Whom the time is charged to.", "NAME")] = None,
    qos: Annotated[str | None, slurm_option("Slurm's quality of service.", "NAME")] = None,
    time: Annotated[str | None, slurm_option("The time limit, `24:00:00`.", "TIME")] = None,
    grace: GraceOption = 300,
    requeue: Annotated[bool, slurm_option("Whether it then goes back into the queue.")] = True,
    cpus: Annotated[int | None, slurm_option("CPU cores for each process.", "N", least=1, most=1024)] = None,
    gpus: Annotated[bool, slurm_option("Whether each process has a GPU.")] = True,
    image: Annotated[str | None, slurm_option("A container image, by pyxis.", "IMAGE")] = None,
    mounts: MountsOption = None,
    python: PythonOption = None,
    beside: BesideOption = False,
    sbatch: SbatchOption = None,
) -> None:
    """Train on several processes: of this machine, of several machines over ssh, or through Slurm.

    Everything is checked before anything is started. Each rank is `internevo train CONFIG`, so `torchrun ... -m
    internevo train CONFIG` does the same by hand. All machines must see the same folders.

    Example: `internevo launch configs/tiny.yaml --nproc 4 parallel.zero.stage=3`

    Example: `internevo launch configs/internlm2-7b.yaml --slurm --nodes 16 --nproc 8 --time 24:00:00`
    """
    from internevo.config.load import load_config
    from internevo.launch.slurm import SlurmJob

    resolved, count = load_config(config, overrides or ()), _machines(nodes, slurm)
    _show_layouts(resolved, count * processes)
    arguments = ["train", str(config), *([] if until is None else ["--until", str(until)]), *(overrides or ())]
    if slurm:
        job = SlurmJob(
            name=resolved.name,
            nodes=count,
            processes=processes,
            gpus=gpus,
            partition=partition,
            account=account,
            qos=qos,
            time=time,
            cpus=cpus,
            grace=grace,
            requeue=requeue,
            image=image,
            mounts=mounts,
            python=python,
            more=tuple(sbatch or ()),
        )
        run = Path(resolved.runs) / job.name
        raise SystemExit(_slurm(job, arguments, run, dry_run=dry_run, detach=detach, beside=beside))
    raise SystemExit(_start(arguments, nodes, processes, ssh))


def _machines(nodes: str | None, slurm: bool) -> int:
    try:
        return int(nodes or 1) if slurm else len((nodes or "").split(","))
    except ValueError:
        raise UserError(f"--nodes: with --slurm it is the number of machines, found {nodes!r}") from None


def _show_layouts(config: RunConfig, world: int) -> None:
    from internevo.parallel.layout import make_layout

    for stage in config.stages:
        out.print(f"stage {plain(stage.name)}: {make_layout(stage, world)}")


def _start(arguments: list[str], nodes: str | None, processes: int, ssh: str) -> int:
    """Here, or on the named machines; the exit code."""
    from internevo.launch.torchrun import launch_here, launch_over_ssh

    if nodes is None:
        return launch_here(arguments, processes)
    return launch_over_ssh(arguments, nodes.split(","), processes, _show, shlex.split(ssh))


def _show(text: str) -> None:
    """Print the output of other processes as it is; no error when the reader is gone."""
    terminal = Terminal()
    terminal.write(text)
    terminal.flush()


def write_script(job: SlurmJob, arguments: list[str], run: Path, name: str = "job.sbatch") -> Path:
    """Write the sbatch file of a job that runs `internevo ARGUMENTS`, in the folder of its run or sweep."""
    from internevo.launch import slurm

    script = run.absolute() / "slurm" / name
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(slurm.render(job, slurm.command(arguments, job), script.parent), encoding="utf-8")
    return script


def _slurm(job: SlurmJob, arguments: list[str], run: Path, *, dry_run: bool, detach: bool, beside: bool) -> int:
    """Write, submit, follow; the exit code."""
    from internevo.launch import slurm

    script = write_script(job, arguments, run)
    out.print(f"wrote {plain(script)}")
    if dry_run:
        then(f"sbatch {script}")
        return 0
    number = slurm.submit(script)
    if beside:
        one = replace(job, name=f"{job.name}-eval", nodes=1, processes=1)
        watcher = write_script(one, ["eval", str(run), "--watch"], run, "evaluate.sbatch")
        out.print(f"submitted job {slurm.submit(watcher)}, which evaluates every checkpoint")
    log = script.with_name(f"{number}.log")
    out.print(f"submitted job {number}; its log is {plain(log)}")
    if detach:
        then(f"squeue --job {number} · scancel {number} · tail -f {log}")
        return 0
    out.print("[dim]following; Ctrl-C stops that and leaves the job alone[/]")
    try:
        ended = slurm.follow(number, log, _show)
    except KeyboardInterrupt:
        then(f"tail -f {log} · scancel {number}")
        return 130
    if ended.name in ("COMPLETED", ""):
        then(f"internevo report {run}")
        return 0
    out.print(f"[bold red]job {number} ended as {ended.name}[/] (exit code {ended.code}). Its log says:")
    out.print(plain(slurm.why(log)))
    then(f"see {log} · internevo launch again resumes where the run stopped")
    return ended.code or 1
