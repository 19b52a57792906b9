"""Cutting a corpus into pieces that are read apart from each other, in any order and by any process.

Where the cuts are depends on the files alone, never on who reads them: the same corpus always has the same pieces.
Every document belongs to exactly one of them, and they stand in the order of the documents.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from internevo.files.errors import UserError
from internevo.text.batches import in_batches
from internevo.text.columnar import RecordBatches, RowGroups, pyarrow_for, record_batches, row_groups
from internevo.text.documents import ARROW, JSON_LINES, PARQUET, Document, Item, Reject, Row, is_packed

PIECE_BYTES = 16 * 2**20
"""About how much input a piece is: seconds of tokenising, so that little is lost when a job is killed, and all cores
have work to the end."""
_NO_MAPPING = "not a mapping of keys to values"
_SKIP_BYTES = 2**20  # another piece's line is read so much at a time


def cut(files: Iterable[Path], piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """The pieces of these files, in order. Raises UserError for a file that is damaged."""
    small: list[Path] = []
    size = 0
    for file in files:
        name = file.name.lower()
        if not name.endswith((*JSON_LINES, *PARQUET, *ARROW)):
            small.append(file)
            size += file.stat().st_size
            if size < piece_bytes and len(small) < 1024:
                continue
        if small:
            yield Texts(tuple(small), size)
            small, size = [], 0
        if name.endswith(JSON_LINES):
            yield from _unpacked(file, piece_bytes) if is_packed(file) else line_ranges(file, piece_bytes)
        elif name.endswith(PARQUET):
            yield from row_groups(file, piece_bytes)
        elif name.endswith(ARROW):
            yield from record_batches(file, piece_bytes)
    if small:
        yield Texts(tuple(small), size)


@dataclass(frozen=True)
class Texts:
    """Files of one document each."""

    files: tuple[Path, ...]
    size: int
    begins: bool = True

    def rows(self) -> Iterator[Row]:
        """The mappings in JSON files, each of which holds one or a list of them; numbered in their file.

        Raises UserError for a file that is not JSON: all that it holds would be lost.
        """
        for file in self.files:
            try:
                value = json.loads(file.read_bytes())
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{file} is not JSON: {error}. Repair it, or leave it out. A file with one conversation a line has "
                    "to be named .jsonl."
                ) from None
            for number, one in enumerate(value if isinstance(value, list) else [value], 1):
                yield file, number, one if isinstance(one, dict) else Reject(str(file), number, _NO_MAPPING)

    def read(self, text_key: str) -> Iterator[Item]:
        """A file as a line."""
        for number, file in enumerate(self.files, 1):
            data = file.read_bytes()
            try:
                yield number, Document(data.decode())
            except UnicodeDecodeError as error:
                yield number, Reject(str(file), None, f"not UTF-8 (byte {error.start})")


@dataclass(frozen=True)
class LineRange:
    """The lines of a file of JSON lines that begin in a range of its bytes."""

    file: Path
    begin: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.begin

    @property
    def begins(self) -> bool:
        return self.begin == 0

    def read(self, text_key: str) -> Iterator[Item]:
        for number, (_, line) in enumerate(self.lines(), 1):
            yield number, _json_document(self.file, number, line, text_key)

    def rows(self) -> Iterator[Row]:
        """Its lines as mappings."""
        for number, (_, line) in enumerate(self.lines(), 1):
            yield self.file, number, _json_row(self.file, number, line)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Where each line begins, and the line: it goes to the piece in which it begins, and is read to its end."""
        with self.file.open("rb") as file:
            place = file.seek(max(self.begin - 1, 0))
            skipped = b"" if self.begin else b"\n"
            # the rest of a line of the piece before, or just its newline; it may be longer than this piece
            while not skipped.endswith(b"\n") and place < self.end and (skipped := file.readline(_SKIP_BYTES)):
                place += len(skipped)
            while place < self.end and (line := file.readline()):
                yield place, line
                place += len(line)


@dataclass(frozen=True)
class Unpacked:
    """Lines out of an archive, which can only be read from its beginning."""

    file: Path
    lines: tuple[bytes, ...]
    size: int
    begins: bool

    def read(self, text_key: str) -> Iterator[Item]:
        for number, line in enumerate(self.lines, 1):
            yield number, _json_document(self.file, number, line, text_key)

    def rows(self) -> Iterator[Row]:
        """Its lines as mappings."""
        for number, line in enumerate(self.lines, 1):
            yield self.file, number, _json_row(self.file, number, line)


Piece = Texts | LineRange | Unpacked | RowGroups | RecordBatches
"""A part of a corpus: `size` in bytes on the disk; `begins`, whether it is the first of its file; and `read`, its lines
or rows. A reject's line is counted from the piece's beginning."""


def line_ranges(file: Path, piece_bytes: int) -> Iterator[LineRange]:
    """A file of lines, cut."""
    size = file.stat().st_size
    for begin in range(0, size, piece_bytes):
        yield LineRange(file, begin, min(begin + piece_bytes, size))


def _unpacked(path: Path, piece_bytes: int) -> Iterator[Unpacked]:
    read = 0
    with path.open("rb") as raw:
        for lines in in_batches((line for _, line in _lines(path, raw)), len, piece_bytes):
            place = path.stat().st_size if raw.closed else raw.tell()  # pyarrow closes it at its end
            yield Unpacked(path, tuple(lines), place - read, begins=not read)
            read = place


def lines_of(file: Path) -> Iterator[tuple[int, bytes]]:
    """All lines of a file, unpacked, numbered from 1. Raises UserError for an archive that is damaged."""
    with file.open("rb") as raw:
        yield from _lines(file, raw)


def _lines(file: Path, raw: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        for number, line in enumerate(unpacking(file, raw) if is_packed(file) else raw, 1):
            yield number, line
    except (EOFError, OSError, zlib.error) as error:
        # not a reject: one torn archive may be a large part of the corpus
        raise UserError(f"{file} is damaged after line {number:,}: {error}. Fix it or leave it out.") from None


def unpacking(path: Path, raw: IO[bytes]) -> IO[bytes]:
    """What is packed in an archive, `.gz` or `.zst`. Reading a damaged one raises OSError, EOFError or zlib.error."""
    if path.name.lower().endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw))
    # pyarrow's reader takes a file that ends too early for an error, which the zstandard package does not
    pyarrow = pyarrow_for(path)
    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd"))


def _json_document(file: Path, number: int, line: bytes, text_key: str) -> Document | Reject | None:
    try:
        if isinstance(text := _under(json.loads(line), text_key), str):
            text.encode()
            return Document(text)
        reason = f"no text under {text_key!r}"
    except UnicodeEncodeError:
        reason = "holds half of a surrogate pair"
    except (ValueError, RecursionError) as error:
        if not line.strip():
            return None
        reason = f"not JSON: {error}"
    return _rejected(file, number, line, reason)


def _json_row(file: Path, number: int, line: bytes) -> dict[str, Any] | Reject | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return _rejected(file, number, line, f"not JSON: {error}") if line.strip() else None
    if isinstance(value, dict):
        return value
    return _rejected(file, number, line, _NO_MAPPING)


def _rejected(file: Path, number: int, line: bytes, reason: str) -> Reject:
    return Reject(str(file), number, reason, line.decode(errors="surrogateescape"))


def _under(value: Any, key: str) -> Any:
    """What a mapping has under `key`; when it has no such key, what mappings within it have under `outer.inner`."""
    while isinstance(value, dict) and key not in value and "." in key:
        outer, _, key = key.partition(".")
        value = value.get(outer)
    return value.get(key) if isinstance(value, dict) else None
