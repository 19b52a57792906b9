"""What a refinery has counted so far, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from internevo.refine.plan import begun_folders, shards_of
from internevo.refine.shards import Tally, counts_file


@dataclass(frozen=True)
class StepCounts:
    """What became of the documents in those shards of a step that are done."""

    name: str  # of its folder, `02-rules`
    tally: Tally
    # documents that the step before kept in these shards; of a first step, all that it found
    given: int  # may be fewer than are kept: `sample` repeats some
    dropped: int  # documents, for all reasons
    done: int  # shards
    shards: int


def step_counts(output: Path) -> list[StepCounts]:
    """All steps that a refinery in this folder was begun with, in order."""
    found: list[StepCounts] = []
    before: dict[int, int] | None = None
    for folder in begun_folders(output):
        shards = shards_of(folder)
        files = {number: counts_file(folder, number) for number in range(shards)}
        tallies = {number: Tally.load(file) for number, file in files.items() if file.is_file()}
        total = Tally()
        for tally in tallies.values():
            total.merge(tally)
        dropped = sum(one.documents for one in total.dropped.values())
        given = total.kept.documents + dropped
        if before is not None:
            given = sum(before.get(number, 0) for number in tallies)
        found.append(StepCounts(folder.name, total, given, dropped, done=len(tallies), shards=shards))
        before = {number: tally.kept.documents for number, tally in tallies.items()}
    return found


def share(part: int, whole: int) -> str:
    """`75.0%`; of what has become more, `2.50 times`."""
    if not whole:
        return "–"
    return f"{part / whole:.1%}" if part <= whole else f"{part / whole:.2f} times"
