"""`internevo data refine`: a chain of steps from a corpus to shards that are worth training on.

Everything is in the output's folder:

- `01-extract/`, `02-language/` ...: what each step kept and dropped, its counts, the logs of its tasks, and
  `plan.json`, what it was begun with;
- `kept`: a link to what the last step kept, for `internevo data prepare`, when all is done;
- `report.html`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from internevo.files.errors import UserError
from internevo.refine.config import Refinery
from internevo.refine.plan import begin, check_inputs, step_folders, unfinished
from internevo.refine.shards import KEPT
from internevo.refine.step import Phase
from internevo.tokens.work_folder import alone_in

LOGS = "logs"
SUBMITTED = "slurm.json"

Report = Callable[[Path], object]
"""Writes a page of what is in an output's folder. It travels to Slurm's jobs by pickle."""


@dataclass(frozen=True)
class PhasesDone:
    """How far the work is."""

    job: str  # the phase in progress, `02-language sift`
    done: int
    of: int  # tasks of it
    all_done: int
    all_of: int  # tasks of all phases


def refine(
    refinery: Refinery, report: Report, progress: Callable[[PhasesDone], None] = lambda progress: None
) -> list[str]:
    """Do all steps of a chain that are not done yet.

    The result depends neither on the executor nor on how often the work was stopped. Returns the numbers of Slurm's
    jobs, in which the work continues; without Slurm none, and all is done. Raises UserError when the folder was begun
    otherwise, the input changes meanwhile, something is damaged, or the disk is full.
    """
    from internevo.refine.executors import PhaseJob, run_here, still_queued, submit

    output = refinery.output
    with alone_in(output):
        if queued := still_queued(output / SUBMITTED):
            raise UserError(
                f"{output} is being worked on by Slurm's jobs {', '.join(queued)}. Wait for them, or end them first: "
                f"scancel {' '.join(queued)}"
            )
        places = begin(refinery)
        jobs = [
            PhaseJob(f"{place.folder.name} {phase.name}", phase, place.folder / LOGS / phase.name)
            for one, place in zip(refinery.steps, places, strict=True)
            for phase in one.step.phases(place)
        ]
        finish = partial(_finish, refinery, report)
        if refinery.executor.kind == "slurm":
            last = PhaseJob("report", Phase("report", 1, finish), output / LOGS / "report")
            return submit(refinery.name, jobs, last, refinery.executor, output / SUBMITTED)
        tasks = [job.phase.tasks for job in jobs]

        def show(job: PhaseJob, done: int) -> None:
            before = sum(tasks[: jobs.index(job)])
            progress(PhasesDone(job.name, done, of=job.phase.tasks, all_done=before + done, all_of=sum(tasks)))

        run_here(jobs, refinery.executor.workers, show)
        finish(0)
    return []


def _finish(refinery: Refinery, report: Report, number: int) -> None:
    """When all is done: the link to the result, and the page. Raises UserError when it is not."""
    check_inputs(refinery)
    if left := unfinished(refinery.output):
        raise UserError(
            f"{refinery.output} is not all done: {', '.join(left)}. Why is in the step's {LOGS}/PHASE/logs. The same "
            "command resumes; if nothing is left for it to do, remove the step's folder and those after it first."
        )
    link = refinery.output / KEPT
    aside = link.with_name(f"{KEPT}.partial")
    aside.unlink(missing_ok=True)
    aside.symlink_to(Path(step_folders(refinery)[-1].name, KEPT))
    aside.rename(link)
    report(refinery.output)
