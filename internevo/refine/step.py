"""What a step of the refinery is: phases of tasks, one after the other, each task on its own.

Tasks of a phase run side by side, in processes here or in jobs of Slurm's; a phase begins when all tasks of the one
before are done. A task that is done is not done again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from internevo.files.errors import UserError
from internevo.refine.shards import KEPT, QUOTE, Document, Judged, read_shard, shard_name, write_shard

NO_FAULT_OF_A_DOCUMENT = (UserError, MemoryError, OSError)  # errors that stop the work wherever they come from
_MOST = 0.5  # share of a shard's documents that may fail


@dataclass(frozen=True)
class Place:
    """Where a step works."""

    shards: tuple[Path, ...]  # what the step before has kept, in order; of the first step the input's files and folders
    folder: Path  # the step's own: `kept/`, `dropped/`, `counts/`, and `work/` for what it needs in between

    def kept(self, shards: int) -> tuple[Path, ...]:
        """The files of as many shards as the step makes."""
        return tuple(self.folder / KEPT / shard_name(number) for number in range(shards))

    def sifting(self, name: str, judged: Callable[[int], Iterable[Judged]], tasks: int | None = None) -> Phase:
        """A phase that writes shards, by default as many as it reads: a task keeps or drops what `judged` gives."""
        return Phase(name, len(self.shards) if tasks is None else tasks, partial(write_shard, self.folder, judged))


@dataclass(frozen=True)
class Phase:
    """Tasks that do not depend on each other."""

    name: str
    tasks: int
    run: Callable[[int], None]  # does the task of this number, unless it is done; picklable


class Step(ABC):
    """One step: a dataclass whose fields are its part of the configuration, each with a docstring under it. For wrong
    values `__post_init__` raises a UserError that begins with the key: `dedup.threshold: ...`."""

    reads_input: ClassVar[bool] = False
    """Whether it is a first step, which is given the input's paths instead of shards."""
    follows_links: ClassVar[bool] = False
    """Whether a first step reads what stands in folders that links in its input lead to."""

    @abstractmethod
    def phases(self, place: Place) -> list[Phase]:
        """What has to be done, in order. This is asked before the shards are there."""

    def kept(self, place: Place) -> tuple[Path, ...]:
        """The shards that there will be for the next step."""
        return place.kept(len(place.shards))

    def passed_over(self, inputs: Sequence[Path]) -> Counter[str]:
        """How many files of its input a first step leaves out for their kind, by their endings."""
        return Counter()

    def files(self) -> list[Path]:
        """Files that its work depends on, such as lists of words. They are looked for before anything begins."""
        return []


class NotJudged(Exception):
    """A document that a step can say nothing about; the message says why."""


JudgedOrFailed = Iterator[tuple[Document, str | Exception | None]]
"""Documents, and why each is dropped: a reason, or the error that the step failed with; None keeps it."""


def judged_shard(judge: Callable[[Iterator[Document]], JudgedOrFailed], place: Place, number: int) -> Iterator[Judged]:
    """What `judge` gives for a shard's documents. One that it fails on is dropped, with the error in its metadata: it
    must not stop the work. Nor may a broken scorer empty a corpus: raises UserError when more have failed than can be
    the documents' own fault."""
    shard = place.shards[number]
    documents = failed = 0
    first: tuple[str, Exception] | None = None
    for documents, (document, reason) in enumerate(judge(read_shard(shard)), 1):  # noqa: B007, used after the loop
        if isinstance(reason, Exception):
            failed += 1
            document.metadata["error"] = said = f"{type(reason).__name__}: {reason}"[:QUOTE]
            first = first or (f"{document.id!r}: {said}", reason)
            reason = f"failed: {type(reason).__name__}"
        yield document, reason
    if first and failed > max(1, _MOST * documents):  # one alone proves nothing
        said, error = first
        raise UserError(
            f"{place.folder.name} failed on {failed:,} of the {documents:,} documents of {shard}, first on {said}. "
            "Fix the step, or what it is given, and run the same command again."
        ) from error


class Sift(Step):
    """A step that looks at one document at a time."""

    def prepare(self) -> None:
        """Called by each task before it judges. What takes long should be loaded once in a process."""

    @abstractmethod
    def judge(self, document: Document) -> str | None:
        """Why the document is dropped, in a word or two out of a short list; None keeps it.

        May change the document's text and metadata. An error drops the document and is noted there.
        """

    def phases(self, place: Place) -> list[Phase]:
        return [place.sifting("sift", partial(judged_shard, self._verdicts, place))]

    def _verdicts(self, documents: Iterator[Document]) -> JudgedOrFailed:
        self.prepare()
        for document in documents:
            verdict: str | Exception | None
            try:
                verdict = self.judge(document)
            except NO_FAULT_OF_A_DOCUMENT:
                raise
            except Exception as error:
                verdict = error
            yield document, verdict
