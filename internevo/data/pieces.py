"""Cutting a corpus into pieces that are read apart from each other, in any order and by any process.

Where the cuts are depends on the files alone, never on who reads them: the same corpus always has the same pieces.
Every document belongs to exactly one of them, and they stand in the order of the documents.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

from internevo.config.errors import UserError
from internevo.data.corpus import ARROW, JSON_LINES, PARQUET, Document, Reject

PIECE_BYTES = 16 * 2**20
"""How much input a piece is about: seconds of tokenising, so that little is lost when a job is killed and all cores
have work to the end, and few enough pieces of a large corpus."""

Item = tuple[int, Document | Reject | None]
"""The number of a line or row in its piece, from 1, and what it held; None for a blank line."""


class Piece(Protocol):
    """A part of a corpus."""

    @property
    def file(self) -> Path:
        """Where it is from; of several files the first."""

    @property
    def size(self) -> int:
        """Bytes on disk that it stands for."""

    def read(self, text_key: str) -> Iterator[Item]:
        """All its lines or rows. A reject's line is counted from the beginning of the piece."""


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
        if name.endswith(".jsonl"):
            yield from _line_ranges(file, piece_bytes)
        elif name.endswith(JSON_LINES):
            yield from _unpacked(file, piece_bytes)
        elif name.endswith(PARQUET):
            yield from _row_groups(file, piece_bytes)
        elif name.endswith(ARROW):
            yield from _record_batches(file, piece_bytes)
    if small:
        yield Texts(tuple(small), size)


@dataclass(frozen=True)
class Texts:
    """Files of one document each."""

    files: tuple[Path, ...]
    size: int

    @property
    def file(self) -> Path:
        """The first."""
        return self.files[0]

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
        """Bytes."""
        return self.end - self.begin

    def read(self, text_key: str) -> Iterator[Item]:
        """A line goes to the piece in which it begins, and is read to its end."""
        with self.file.open("rb") as file:
            file.seek(max(self.begin - 1, 0))
            if self.begin:
                file.readline()  # the rest of a line of the piece before, or just its newline
            place = file.tell()
            number = 0
            while place < self.end and (line := file.readline()):
                number, place = number + 1, place + len(line)
                yield number, _json_document(self.file, number, line, text_key)


@dataclass(frozen=True)
class Unpacked:
    """Lines out of an archive, which can only be read from its beginning."""

    file: Path
    lines: tuple[bytes, ...]
    size: int

    def read(self, text_key: str) -> Iterator[Item]:
        """All of them."""
        for number, line in enumerate(self.lines, 1):
            yield number, _json_document(self.file, number, line, text_key)


@dataclass(frozen=True)
class RowGroups:
    """Some row groups of a parquet file."""

    file: Path
    groups: tuple[int, ...]
    size: int

    def read(self, text_key: str) -> Iterator[Item]:
        """All their rows."""
        file = _parquet(self.file)
        _check_column(self.file, text_key, file.schema_arrow.names)
        batches = file.iter_batches(batch_size=256, row_groups=list(self.groups), columns=[text_key])
        yield from _rows(self.file, batches, text_key)


@dataclass(frozen=True)
class RecordBatches:
    """Some record batches of an arrow file."""

    file: Path
    begin: int
    end: int
    size: int

    def read(self, text_key: str) -> Iterator[Item]:
        """All their rows."""
        batches = islice(_arrow(self.file), self.begin, self.end)
        yield from _rows(self.file, batches, text_key)


def _line_ranges(file: Path, piece_bytes: int) -> Iterator[LineRange]:
    size = file.stat().st_size
    for begin in range(0, size, piece_bytes):
        yield LineRange(file, begin, min(begin + piece_bytes, size))


def _unpacked(path: Path, piece_bytes: int) -> Iterator[Unpacked]:
    with path.open("rb") as raw:
        file, number = _unpacking(path, raw), 0
        lines: list[bytes] = []
        held = read = 0
        try:
            for line in file:
                number += 1
                lines.append(line)
                held += len(line)
                if held >= piece_bytes:
                    yield Unpacked(path, tuple(lines), raw.tell() - read)
                    lines, held, read = [], 0, raw.tell()
        except (EOFError, OSError, zlib.error) as error:
            # not a reject: one torn archive may be a large part of the corpus
            raise UserError(f"{path} is damaged after line {number:,}: {error}. Mend it or leave it out.") from None
        if lines:
            yield Unpacked(path, tuple(lines), os.fstat(raw.fileno()).st_size - read)


def _unpacking(path: Path, raw: IO[bytes]) -> IO[bytes]:
    if path.name.lower().endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw))
    # pyarrow's reader takes a file that ends too early for an error, which the zstandard package does not
    pyarrow = _pyarrow(path)
    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd"))


def _row_groups(path: Path, piece_bytes: int) -> Iterator[RowGroups]:
    file = _parquet(path)
    groups: list[int] = []
    size = 0
    for number in range(file.num_row_groups):
        groups.append(number)
        group = file.metadata.row_group(number)
        size += sum(group.column(column).total_compressed_size for column in range(group.num_columns))
        if size >= piece_bytes or number + 1 == file.num_row_groups:
            yield RowGroups(path, tuple(groups), size)
            groups, size = [], 0


def _record_batches(path: Path, piece_bytes: int) -> Iterator[RecordBatches]:
    begin = size = end = 0
    for end, batch in enumerate(_arrow(path), 1):
        size += batch.nbytes
        if size >= piece_bytes:
            yield RecordBatches(path, begin, end, size)
            begin, size = end, 0
    if end > begin:
        yield RecordBatches(path, begin, end, size)


def _json_document(file: Path, number: int, line: bytes, text_key: str) -> Document | Reject | None:
    try:
        value: Any = json.loads(line)
        if isinstance(value, dict) and isinstance(text := value.get(text_key), str):
            text.encode()
            return Document(text)
        reason = f"no text under {text_key!r}"
    except UnicodeEncodeError:
        reason = "holds half of a surrogate pair"
    except (ValueError, RecursionError) as error:
        if not line.strip():
            return None
        reason = f"not JSON: {error}"
    return Reject(str(file), number, reason, line.decode(errors="surrogateescape"))


def _rows(path: Path, batches: Iterable[Any], text_key: str) -> Iterator[Item]:
    number = 0
    try:
        for batch in batches:
            _check_column(path, text_key, batch.schema.names)
            for text in batch.column(text_key).to_pylist():
                number += 1
                good = isinstance(text, str)
                yield number, Document(text) if good else Reject(str(path), number, f"no text under {text_key!r}")
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these kinds
        raise UserError(f"{path} is damaged: {error}. Mend it or leave it out.") from None


def _check_column(path: Path, text_key: str, names: list[str]) -> None:
    if text_key not in names:
        raise UserError(f"{path} has no column {text_key!r}; it has {', '.join(names)}")


def _parquet(path: Path) -> Any:
    pyarrow = _pyarrow(path)
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a parquet file: {error}") from None


def _arrow(path: Path) -> Iterator[Any]:
    """The record batches of either of arrow's two formats, memory mapped: the file (Feather) and the stream, which
    Hugging Face's datasets writes."""
    pyarrow = _pyarrow(path)
    try:
        with pyarrow.memory_map(str(path)) as mapped:
            if mapped.read(6) == b"ARROW1":
                file = pyarrow.ipc.open_file(mapped)
                yield from (file.get_batch(number) for number in range(file.num_record_batches))
            else:
                mapped.seek(0)
                yield from pyarrow.ipc.open_stream(mapped)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not an arrow file, or damaged: {error}") from None


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading it needs pyarrow: pip install 'internevo[data]'") from None
    return pyarrow
