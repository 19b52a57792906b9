"""Parquet and arrow files in pieces, and the texts of a column."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from internevo.files.errors import UserError
from internevo.text.batches import in_batches
from internevo.text.documents import PARQUET, Document, Item, Reject, Row

_ROWS = 256  # that are read at a time


@dataclass(frozen=True)
class RowGroups:
    """Some row groups of a parquet file."""

    file: Path
    groups: tuple[int, ...]
    size: int
    begins: bool

    def read(self, text_key: str) -> Iterator[Item]:
        file = _parquet(self.file)
        _check_column(self.file, text_key, file.schema_arrow.names)
        columns = [text_key, text_key.partition(".")[0]]  # a name that is none is passed over
        batches = file.iter_batches(batch_size=_ROWS, row_groups=list(self.groups), columns=columns)
        yield from _rows(self.file, batches, text_key)

    def rows(self) -> Iterator[Row]:
        """Its rows as mappings."""
        yield from _mappings(self.file, _parquet(self.file).iter_batches(_ROWS, row_groups=list(self.groups)))


@dataclass(frozen=True)
class RecordBatches:
    """Some record batches of an arrow file."""

    file: Path
    begin: int
    end: int
    size: int
    begins: bool

    def read(self, text_key: str) -> Iterator[Item]:
        yield from _rows(self.file, _arrow(self.file, self.begin, self.end), text_key)

    def rows(self) -> Iterator[Row]:
        """Its rows as mappings."""
        yield from _mappings(self.file, _arrow(self.file, self.begin, self.end))


def row_groups(path: Path, piece_bytes: int) -> Iterator[RowGroups]:
    """A parquet file, cut."""
    file = _parquet(path)

    def size(number: int) -> int:
        group = file.metadata.row_group(number)
        return sum(group.column(column).total_compressed_size for column in range(group.num_columns))

    for groups in in_batches(range(file.num_row_groups), size, piece_bytes):
        yield RowGroups(path, tuple(groups), sum(map(size, groups)), begins=groups[0] == 0)


def record_batches(path: Path, piece_bytes: int) -> Iterator[RecordBatches]:
    """An arrow file, cut."""
    begin = 0
    for sizes in in_batches((batch.nbytes for batch in _arrow(path, 0, None)), int, piece_bytes):
        yield RecordBatches(path, begin, begin + len(sizes), sum(sizes), begins=begin == 0)
        begin += len(sizes)


def batches_of(path: Path) -> Iterator[Any]:
    """All rows of a parquet or arrow file, in record batches of at most 256. Raises UserError for a damaged file."""
    try:
        if path.name.lower().endswith(PARQUET):
            yield from _parquet(path).iter_batches(batch_size=_ROWS)
        else:
            for batch in _arrow(path, 0, None):
                yield from (batch.slice(begin, _ROWS) for begin in range(0, batch.num_rows, _ROWS))
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these kinds
        raise UserError(f"{path} is damaged: {error}. Fix it or leave it out.") from None


def pyarrow_for(path: Path) -> Any:
    """The package, or a UserError that says how to get it."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading it needs pyarrow: pip install 'internevo[data]'") from None
    return pyarrow


def _rows(path: Path, batches: Iterable[Any], text_key: str) -> Iterator[Item]:
    before = 0
    try:
        for batch in batches:
            _check_column(path, text_key, batch.schema.names)
            yield from _documents(path, before, batch, text_key)
            before += batch.num_rows
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these kinds
        raise UserError(f"{path} is damaged: {error}. Fix it or leave it out.") from None


def _mappings(path: Path, batches: Iterable[Any]) -> Iterator[Row]:
    number = 0
    try:
        for batch in batches:
            for begin in range(0, batch.num_rows, _ROWS):
                for row in batch.slice(begin, _ROWS).to_pylist():
                    number += 1
                    yield path, number, row
    except UnicodeDecodeError as error:
        raise UserError(f"{path} holds text that is not UTF-8 (byte {error.start}) after row {number:,}.") from None
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these kinds
        raise UserError(f"{path} is damaged: {error}. Fix it or leave it out.") from None


def _documents(path: Path, before: int, batch: Any, text_key: str) -> Iterator[Item]:
    column = _column(batch, text_key)
    reason = f"no text under {text_key!r}"
    values: Iterable[str | UnicodeDecodeError | None] = repeat(None, batch.num_rows)
    if column is not None and _is_text(column.type):
        values = _texts(column)
    elif column is not None:
        reason += f": the column is {column.type}"
    for number, value in enumerate(values, before + 1):
        if isinstance(value, str):
            yield number, Document(value)
        elif value is None:
            yield number, Reject(str(path), number, reason)
        else:
            raw = value.object.decode(errors="surrogateescape")
            yield number, Reject(str(path), number, f"not UTF-8 (byte {value.start})", raw)


def _column(batch: Any, key: str) -> Any:
    """What rows have under `key`, or, without such a column, what mappings have under `outer.inner`; else None."""
    from pyarrow import compute, types

    found = batch.to_struct_array()
    while key and types.is_struct(found.type):
        name, key = (key, "") if found.type.get_field_index(key) >= 0 else key.partition(".")[::2]
        if (index := found.type.get_field_index(name)) < 0:
            return None
        found = compute.struct_field(found, [index])
    return None if key else found


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _texts(column: Any) -> Iterator[str | UnicodeDecodeError | None]:
    """A column's values; in place of one that is not UTF-8, which arrow's own reading does not see, what is wrong."""
    from pyarrow import types

    try:
        yield from column.to_pylist()
        return
    except UnicodeDecodeError:
        column = column.dictionary_decode() if types.is_dictionary(column.type) else column
    for value in column.cast("large_binary").to_pylist():
        try:
            yield None if value is None else value.decode()
        except UnicodeDecodeError as error:
            yield error


def _check_column(path: Path, text_key: str, names: list[str]) -> None:
    if text_key not in names and text_key.partition(".")[0] not in names:
        raise UserError(f"{path} has no column {text_key!r}; it has {', '.join(names)}")


def _parquet(path: Path) -> Any:
    pyarrow = pyarrow_for(path)
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a parquet file: {error}") from None


def _arrow(path: Path, begin: int, end: int | None) -> Iterator[Any]:
    """Some record batches of either of arrow's two formats, memory mapped: the file (Feather), and the stream, which
    Hugging Face's datasets writes. Of a file no others are unpacked."""
    pyarrow = pyarrow_for(path)
    try:
        with pyarrow.memory_map(str(path)) as mapped:
            if mapped.read(6) == b"ARROW1":
                file = pyarrow.ipc.open_file(mapped)
                yield from map(file.get_batch, range(file.num_record_batches)[begin:end])
            else:
                mapped.seek(0)
                yield from islice(pyarrow.ipc.open_stream(mapped), begin, end)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not an arrow file, or damaged: {error}") from None
