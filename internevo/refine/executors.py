"""The phases of a chain on datatrove's executors, processes of this machine or Slurm's jobs: it keeps the account of
tasks, writes their logs and submits jobs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from internevo.files.errors import UserError
from internevo.files.processes import ctrl_c_held, worker_pool
from internevo.refine.config import ExecutorConfig
from internevo.refine.step import Phase

try:
    import pyarrow  # noqa: F401, what shards are written with
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.executor.slurm import SlurmPipelineExecutor
    from datatrove.pipeline.base import PipelineStep
except ImportError:
    raise UserError("the refinery needs datatrove and pyarrow: pip install 'internevo[refine]'") from None


@dataclass(frozen=True)
class PhaseJob:
    """A phase, and where datatrove keeps its account of it."""

    name: str  # `02-rules sift`
    phase: Phase
    folder: Path


class _Task(PipelineStep):
    """A phase's task as the one step of a pipeline of datatrove's."""

    type = "internevo"

    def __init__(self, job: PhaseJob):
        super().__init__()
        self.name = job.name
        self.job = job

    def run(self, data: object, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        self.job.phase.run(rank)
        return iter(())


class _Here(LocalPipelineExecutor):
    """Tasks of this machine. The pool is our own: datatrove's waits for ever for a worker that is killed."""

    def do(self, rank: int) -> None:
        """One task, and what it says in its logs rather than on the terminal."""
        with self.logging_dir.open("stderr.log", "a", encoding="utf-8") as log, redirect_stderr(log):
            self._run_for_rank(rank, local_rank=1)


class _Submitted(SlurmPipelineExecutor):
    """Tasks in an array of Slurm's."""

    def launch_merge_stats(self) -> None:
        """datatrove's job for statistics is not needed: tasks count by themselves."""


def run_here(jobs: Sequence[PhaseJob], workers: int, progress: Callable[[PhaseJob, int], None]) -> None:
    """Do all that is not done yet, phase by phase. `progress` is given a job and how many of its tasks are done.

    Raises a task's UserError, and one when a worker is killed; other tasks in progress are then ended.
    """
    cores = len(os.sched_getaffinity(0))
    workers = workers or cores
    remedy = "The same command resumes here; fewer executor.workers take less memory."
    with worker_pool(workers, _start_worker, (max(1, cores // workers),), remedy) as pool:
        for job in jobs:
            tasks = _Here([_Task(job)], tasks=job.phase.tasks, logging_dir=str(job.folder))
            left = tasks.get_incomplete_ranks()
            progress(job, job.phase.tasks - len(left))
            with ctrl_c_held():  # workers are started as they are needed
                waiting = [pool.submit(tasks.do, rank) for rank in left]
            for count, future in enumerate(as_completed(waiting), job.phase.tasks - len(left) + 1):
                future.result()
                progress(job, count)


def _start_worker(threads: int) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # models on all cores in each worker wait for each other


def submit(name: str, jobs: Sequence[PhaseJob], last: PhaseJob, config: ExecutorConfig, record: Path) -> list[str]:
    """Hand all that is not done to Slurm, and `last` in any case; a phase begins when the one before has succeeded.

    Returns the jobs' numbers, which are kept in `record`. Raises UserError when Slurm refuses.
    """
    if shutil.which("sbatch") is None:
        raise UserError("this machine has no sbatch: is Slurm installed, and its module loaded?")
    before: list[str] = []
    numbers: list[str] = []
    for job in (*jobs, last):
        first = len(numbers)
        executor = _slurm(name, job, config, skip=job is not last, submitted=numbers)
        # on all arrays of the phase before: its last one begins whether or not the others have failed
        executor.depends_job_id = ":".join(before) or None
        try:
            executor.run()
        except (subprocess.CalledProcessError, OSError) as error:
            if numbers:
                subprocess.run(["scancel", *numbers], capture_output=True)
            script = job.folder / "launch_script.slurm"
            raise UserError(f"sbatch refused {script}: {error}. Nothing is left in the queue.") from None
        if numbers[first:]:
            before = numbers[first:]
            record.write_text(json.dumps(numbers), encoding="utf-8")
    return numbers


def _slurm(name: str, job: PhaseJob, config: ExecutorConfig, skip: bool, submitted: list[str]) -> _Submitted:
    here = f'export PATH="{Path(sys.executable).parent}:$PATH"\ncd "{Path.cwd()}"'
    options = {"kill-on-invalid-dep": "yes", **config.options}
    if config.account:
        options["account"] = config.account
    return _Submitted(
        [_Task(job)],
        tasks=job.phase.tasks,
        time=config.time,
        partition=config.partition,
        cpus_per_task=config.cpus,
        mem_per_cpu_gb=config.memory_gib,
        workers=config.workers or -1,
        job_name=f"{name} {job.name}".replace(" ", "-"),
        qos=config.qos,
        env_command=config.setup or here,
        sbatch_args=options,
        tasks_per_job=config.tasks_per_job,
        logging_dir=str(job.folder),
        skip_completed=skip,
        requeue_signals=None,
        job_id_retriever=partial(_note, submitted),
    )


def _note(submitted: list[str], said: str) -> str:
    """The number of an array, of which a phase with very many tasks has several."""
    submitted.append(said.split()[-1])
    return submitted[-1]


def still_queued(record: Path) -> list[str]:
    """Of the jobs that were submitted, those that Slurm has not done with. Raises UserError when it does not say."""
    if not record.exists() or shutil.which("squeue") is None:
        return []
    numbers = json.loads(record.read_text(encoding="utf-8"))
    known = subprocess.run(
        ["squeue", "--noheader", "--format=%F", "--me"], capture_output=True, encoding="utf-8", errors="replace"
    )
    if known.returncode:
        raise UserError(
            f"squeue does not say whether the jobs of {record} are still at work: {known.stderr.strip()}. Run the same "
            "command again when it does: a second set of jobs beside the first would write the same files."
        )
    return sorted(set(known.stdout.split()) & set(numbers))
