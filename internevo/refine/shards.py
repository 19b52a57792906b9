"""Documents on their way through the refinery: shards of JSON lines, and what a step makes of them.

A shard is a file of `{"text", "id", "metadata"}` a line, `00000.jsonl.zst` and so on: what datatrove writes and reads,
and `internevo data prepare` takes. A step's folder has the shards that it `kept/`, those that it `dropped/`, each
document with the reason, and what it counted, in `counts/`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from internevo.files.durable import aside_of, make_durable, write_durable
from internevo.files.errors import UserError

KEPT, DROPPED, COUNTS = "kept", "dropped", "counts"
EXAMPLES = 3  # documents with one verdict that a shard's counts quote
QUOTE = 400  # characters of a quoted document


@dataclass
class Document:
    """One text."""

    text: str
    id: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class DocumentCount:
    """Count, size and examples of documents with one verdict."""

    documents: int = 0
    characters: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)  # the first few: `id` and the beginning of `text`

    def add(self, document: Document) -> None:
        self.documents += 1
        self.characters += len(document.text)
        if len(self.examples) < EXAMPLES:
            self.examples.append({"id": document.id, "text": document.text[:QUOTE]})

    def merge(self, other: DocumentCount) -> None:
        self.documents += other.documents
        self.characters += other.characters
        self.examples = (self.examples + other.examples)[:EXAMPLES]


@dataclass
class Tally:
    """What became of the documents that a step was given."""

    kept: DocumentCount = field(default_factory=DocumentCount)
    dropped: dict[str, DocumentCount] = field(default_factory=dict)  # by reason

    def merge(self, other: Tally) -> None:
        self.kept.merge(other.kept)
        for reason, count in other.dropped.items():
            self.dropped.setdefault(reason, DocumentCount()).merge(count)

    @classmethod
    def load(cls, path: Path) -> Tally:
        found = json.loads(path.read_text(encoding="utf-8"))
        dropped = {reason: DocumentCount(**count) for reason, count in found["dropped"].items()}
        return cls(DocumentCount(**found["kept"]), dropped)


def shard_name(number: int) -> str:
    return f"{number:05}.jsonl.zst"


def read_shard(path: Path) -> Iterator[Document]:
    """A shard's documents. Raises UserError for a file that is damaged."""
    import pyarrow

    with pyarrow.OSFile(str(path)) as raw, pyarrow.CompressedInputStream(raw, "zstd") as file:
        try:
            if not path.stat().st_size:  # a shard without documents has the head of an archive
                raise ValueError("it is empty")
            for line in io.BufferedReader(file, 2**20):
                if not line.endswith(b"\n"):
                    raise ValueError("its last line does not end")
                yield Document(**json.loads(line))
        except (OSError, ValueError, TypeError) as error:
            remove = "Remove its step's folder and those after it, and run again."
            raise UserError(f"{path} is damaged: {error}. {remove}") from None


class ShardWriter:
    """What one task keeps and drops. The files get their names when all is well at the end, the counts last: a task
    whose counts are there is done."""

    def __init__(self, step: Path, number: int):
        self.tally = Tally()
        self._counts = counts_file(step, number)
        self._paths = [step / KEPT / shard_name(number), step / DROPPED / shard_name(number)]

    def write(self, document: Document, reason: str | None = None) -> None:
        """Keep a document, or drop it for a reason, which is one of few: it is what documents are counted by."""
        count, file = self.tally.kept, self._files[0]
        if reason is not None:
            count, file = self.tally.dropped.setdefault(reason, DocumentCount()), self._files[1]
            document = Document(document.text, document.id, {**document.metadata, "reason": reason})
        count.add(document)
        file.write(_json(vars(document)) + b"\n")

    def __enter__(self) -> ShardWriter:
        import pyarrow

        for path in (*self._paths, self._counts):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._files = [pyarrow.CompressedOutputStream(str(aside_of(path)), "zstd") for path in self._paths]
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for file in self._files:
            file.close()
        if kind is not None:
            for path in self._paths:
                aside_of(path).unlink(missing_ok=True)
            return
        for path in self._paths:
            make_durable(path)
        write_durable(self._counts, _json(asdict(self.tally)))


Judged = tuple[Document, str | None]  # a document, and the reason why it is dropped; None keeps it


def write_shard(step: Path, judged: Callable[[int], Iterable[Judged]], number: int) -> None:
    """The task of this number, unless it is done: keep or drop what `judged` gives for it."""
    if done(step, number):
        return
    with ShardWriter(step, number) as out:
        for document, reason in judged(number):
            out.write(document, reason)


def _json(value: Any) -> bytes:
    # halves of surrogate pairs, as in names of files that are not UTF-8, have no bytes
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")


def counts_file(step: Path, number: int) -> Path:
    """What a task of this step has counted; the last that it writes."""
    return step / COUNTS / f"{number:05}.json"


def done(step: Path, number: int) -> bool:
    """Whether a task of this step has written all it had to."""
    return counts_file(step, number).is_file()


def write_array(path: Path, array: np.ndarray) -> None:
    """Write what `np.load` reads, at once or not at all, into a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durable(path, lambda file: np.save(file, array))
