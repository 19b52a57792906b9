"""A run under Slurm: an sbatch file that a person can read, its submission, and its log."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Template

from internevo.files.errors import UserError

_OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
_POLL_S = 1.0
# a rank that Slurm ends because another has failed leaves with 143 too, so the code alone does not say it
_REQUEUE = """if [ -n "$asked" ] && [ "$code" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi"""


@dataclass(frozen=True)
class SlurmJob:
    name: str
    nodes: int
    processes: int  # on each node; one for each GPU
    gpus: bool = True  # whether each node's processes have a GPU each
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None  # the limit, such as `24:00:00`; the partition's when None
    cpus: int | None = None  # CPU cores for each process
    grace: int = 300  # seconds before the limit at which the run is asked to save and leave
    requeue: bool = True  # whether a run that was asked to leave goes back into the queue
    array: str | None = None  # Slurm's array, such as `0-15%4`
    image: str | None = None
    """A container to run in, by pyxis. It sees the current folder under its own path, and works there."""
    mounts: str | None = None  # what else the container sees, in pyxis' notation
    python: str | None = None  # what runs the ranks; when None, this Python, or with an image its `python3`
    more: Sequence[str] = field(default_factory=tuple)
    """Further sbatch options without their dashes, such as `constraint=h100`."""


def render(job: SlurmJob, command: Sequence[str], folder: Path) -> str:
    """The sbatch file of a job that runs `command` as every rank. Logs and records go to `folder`."""
    named = {
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "time": job.time,
        "gpus-per-node": job.processes if job.gpus else None,
        "cpus-per-task": job.cpus,
        "array": job.array,
    }
    options = [f"{key}={value}" for key, value in named.items() if value is not None]
    options += [*job.more, "requeue" if job.requeue else "no-requeue"]
    # the number of an array's element is left to the shell
    quoted = [one if one == "$SLURM_ARRAY_TASK_ID" else shlex.quote(one) for one in command]
    number = "%A_%a" if job.array else "%j"
    record = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" if job.array else "$SLURM_JOB_ID"
    record += "${SLURM_RESTART_COUNT:+.restart-$SLURM_RESTART_COUNT}"
    template = Template(files("internevo.launch").joinpath("job.sbatch").read_text(encoding="utf-8"))
    return template.substitute(
        name=job.name,
        nodes=job.nodes,
        processes=job.processes,
        directives="".join(f"#SBATCH --{option}\n" for option in options),
        grace=job.grace,
        log=folder / f"{number}.log",
        record=f"{shlex.quote(str(folder))}/{record}.environment.txt",
        folder=shlex.quote(str(Path.cwd())),
        container=_container(job, Path.cwd()),
        command=" \\\n  ".join([" ".join(quoted[:4]), *quoted[4:]]),
        requeue=_REQUEUE if job.requeue else "",
    )


def _container(job: SlurmJob, folder: Path) -> str:
    """srun's options for the job's image, in which `folder` is mounted where the user's mounts do not have it yet."""
    if job.image is None:
        return ""
    mounts = job.mounts.split(",") if job.mounts else []
    inside = [Path((mount.split(":") * 2)[1]) for mount in mounts]
    if not any(folder.is_relative_to(place) for place in inside):
        mounts.append(f"{folder}:{folder}")
    options = {"image": job.image, "mounts": ",".join(mounts), "workdir": folder}
    return shlex.join(f"--container-{key}={value}" for key, value in options.items()) + " "


def submit(script: Path) -> str:
    """Hand the file to Slurm; the job's number. Raises UserError with what Slurm says when it refuses."""
    if shutil.which("sbatch") is None:
        raise UserError("this machine has no sbatch: is Slurm installed, and its module loaded?")
    done = subprocess.run(
        ["sbatch", "--parsable", str(script)], capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        raise UserError(f"sbatch refused {script}: {done.stderr.strip()}")
    return done.stdout.strip().split(";")[0]


@dataclass(frozen=True)
class State:
    name: str  # Slurm's word, such as `RUNNING`; empty when Slurm no longer knows the job
    reason: str
    code: int


def state(job: str) -> State:
    """The state of a job, by Slurm."""
    done = subprocess.run(
        ["scontrol", "--oneliner", "show", "job", job], capture_output=True, encoding="utf-8", errors="replace"
    )
    found = dict(re.findall(r"(\w+)=(\S*)", done.stdout))
    if done.returncode or "JobState" not in found:
        return State("", "", 0)
    return State(found["JobState"], found.get("Reason", ""), int(found.get("ExitCode", "0:0").split(":")[0]))


def follow(job: str, log: Path, show: Callable[[str], None]) -> State:
    """Show the job's log as it grows, until the job is over; how it ended. Ctrl-C leaves the job alone."""
    at, before = 0, ""
    while True:
        now = state(job)
        over = not now.name or now.name in _OVER
        if now.name != before and not over:
            waits = f" ({now.reason})" if now.name == "PENDING" else ""
            show(f"job {job} is {now.name.lower()}{waits}\n")
        before = now.name
        if log.exists():
            with log.open("rb") as file:
                file.seek(at)
                if text := file.read():
                    at += len(text)
                    show(text.decode(errors="replace"))
        if over:
            return now
        time.sleep(_POLL_S)


def why(log: Path, lines: int = 5) -> str:
    """The lines of a log that say why a job failed: its errors, or simply the last ones."""
    if not log.exists():
        return "there is no log: the job did not start"
    text = log.read_text(errors="replace", encoding="utf-8").splitlines()
    # what Slurm and torch say afterwards tells of the failure, not of its cause
    errors = [line for line in text if re.search(r"(?i)\berror\b|exception", line) and not line.startswith("srun:")]
    return "\n".join((errors or text)[-lines:])


def command(arguments: Sequence[str], job: SlurmJob) -> list[str]:
    """What every rank of the job runs: `internevo ARGUMENTS`."""
    # this Python is on the host; an image has one of its own
    python = job.python or (sys.executable if job.image is None else "python3")
    return [python, "-m", "internevo", *arguments]
