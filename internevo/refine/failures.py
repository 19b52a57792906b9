"""Documents that a step fails on: one must not stop the work, and a broken scorer must not empty a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from internevo.files.errors import UserError
from internevo.refine.shards import QUOTE, Document, read_shard

NO_FAULT_OF_A_DOCUMENT = (UserError, MemoryError, OSError)
"""Errors that stop the work wherever they come from."""
_MOST = 0.5
"""Share of a shard's documents that may fail."""


class NotJudged(Exception):
    """A document that a step can say nothing about; the message says why."""


class Failures:
    """Documents of one shard that a step fails on."""

    def __init__(self, step: Path, shard: Path):
        self._step, self._shard = step, shard
        self._documents = self._count = 0
        self._first: tuple[str, Exception] | None = None

    def documents(self) -> Iterator[Document]:
        """Those of the shard, which are counted."""
        for document in read_shard(self._shard):
            self._documents += 1
            yield document

    def note(self, document: Document, error: Exception) -> str:
        """The reason by which the document is dropped; its metadata gets the whole `error`."""
        said = f"{type(error).__name__}: {error}"[:QUOTE]
        document.metadata["error"] = said
        self._count += 1
        self._first = self._first or (f"{document.id!r}: {said}", error)
        return f"failed: {type(error).__name__}"

    def check(self) -> None:
        """Raises UserError when so many of a shard's documents have failed that it is no longer their fault."""
        if self._first and self._count > max(1, _MOST * self._documents):  # one alone proves nothing
            said, error = self._first
            raise UserError(
                f"{self._step.name} failed on {self._count:,} of the {self._documents:,} documents of {self._shard}, "
                f"first on {said}. Fix the step, or what it is given, and run the same command again."
            ) from error
