"""Reading a corpus for the refinery: web archives, JSON lines, parquet and arrow, a page or document at a time.

datatrove's readers do not count the pages and lines that they cannot decode.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from internevo.files.errors import UserError
from internevo.refine.corpus_files import is_warc
from internevo.refine.shards import Document, Judged
from internevo.text.columnar import batches_of
from internevo.text.documents import JSON_LINES
from internevo.text.pieces import lines_of, unpacking

HTML = ("text/html", "application/xhtml+xml", "")  # kinds of content that are pages; old crawls do not say any

NO_DOCUMENT = "not a document"
NOT_A_PAGE = "not a page of text"


@dataclass(frozen=True)
class Page:
    """What a server answered."""

    id: str
    body: bytes
    charset: str | None  # what the answer's head says it is encoded in
    plain: bool  # whether it is text already, as in Common Crawl's WET files
    metadata: dict[str, Any] = field(default_factory=dict)


Found = Page | Document | Judged
"""Judged is something that is no document: what is known of it, and why."""


def read(file: Path, text_key: str, id_key: str) -> Iterator[Found]:
    """What a file holds, in order. Raises UserError for an archive, parquet or arrow file that is damaged."""
    if is_warc(file):
        yield from _warc(file)
        return
    json_lines = file.name.lower().endswith(JSON_LINES)
    for number, row, line in _json_rows(file) if json_lines else _column_rows(file, text_key):
        found: Found | None = None
        if isinstance(row, dict) and isinstance(text := row.get(text_key), str):
            with suppress(UnicodeEncodeError, RecursionError):  # half of a surrogate pair; nested too deeply
                text.encode()
                found = _document(file, number, row, text_key, id_key)
        if found is None:
            raw = line.decode(errors="replace")
            found = Document(raw, f"{file}:{number}", {"file": str(file)}), NO_DOCUMENT
        yield found


def _warc(file: Path) -> Iterator[Found]:
    """The answers of a web archive (ISO 28500), and the texts of Common Crawl's `conversion` records."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    number = 0
    try:
        _check_whole(file)
        with file.open("rb") as raw:
            for number, record in enumerate(ArchiveIterator(raw), 1):
                if record.rec_type in ("response", "conversion"):
                    yield _page(record, file, number)
    except (ArchiveLoadFailed, OSError, EOFError, ValueError, AttributeError, zlib.error) as error:
        where = f"at record {number:,}" if number else "or torn"
        raise UserError(f"{file} is damaged {where}: {error}. Fix it or leave it out.") from None


def _check_whole(file: Path) -> None:
    """Raises EOFError for an archive that does not end with a blank line, as a record does.

    warcio does not see that one is torn within a record's head. Unpacking it once more is nothing beside extraction.
    """
    with file.open("rb") as raw:
        end = b""
        if file.suffix.lower() == ".gz":
            stream = unpacking(file, raw)
            while chunk := stream.read(2**20):
                end = (end + chunk)[-4:]
        else:
            raw.seek(max(file.stat().st_size - 4, 0))
            end = raw.read()
    if end and not end.endswith((b"\r\n\r\n", b"\n\n")):
        raise EOFError("it does not end as a record does")


def _page(record: Any, file: Path, number: int) -> Found:
    head, answer = record.rec_headers, record.http_headers
    name = (head.get_header("WARC-Record-ID") or f"{file}:{number}").strip("<>")
    metadata = {"url": head.get_header("WARC-Target-URI"), "date": head.get_header("WARC-Date"), "file": str(file)}
    said = (answer.get_header("Content-Type") or "") if answer else ""
    kind, _, more = said.partition(";")
    kind = (head.get_header("WARC-Identified-Payload-Type") or kind).strip().lower()
    plain = record.rec_type == "conversion" or kind == "text/plain"
    if not (plain or kind in HTML) or (answer and answer.get_statuscode() not in ("200", "203")):
        return Document("", name, metadata), NOT_A_PAGE
    body = record.content_stream().read()
    if record.raw_stream.limit:  # warcio takes the end of the file for the end of the record
        raise EOFError("it is cut off")
    charset = more.partition("charset=")[2].strip("\"' ") or None
    return Page(name, body, charset=charset, plain=plain, metadata=metadata)


Row = tuple[int, Any, bytes]
"""The number of a line or row, from 1; what it says, None where that is not JSON; and the line as it was."""


def _json_rows(file: Path) -> Iterator[Row]:
    for number, line in lines_of(file):
        if line.strip():
            try:
                yield number, json.loads(line), line
            except (ValueError, RecursionError):
                yield number, None, line


def _column_rows(file: Path, text_key: str) -> Iterator[Row]:
    before = 0
    for batch in batches_of(file):
        if text_key not in batch.schema.names:
            has = ", ".join(batch.schema.names)
            raise UserError(f"{file} has no column {text_key!r}; it has {has}. Set extract.text_key.")
        for number, row in enumerate(_rows(batch), before + 1):
            yield number, row, b""
        before += batch.num_rows


def _document(file: Path, number: int, row: dict[str, Any], text_key: str, id_key: str) -> Document:
    """The row's own id when it has one; what else it has is metadata, as is what it calls so itself."""
    text, own = row.pop(text_key), row.pop(id_key, None)
    inner = row.pop("metadata", None)
    metadata = {**row, **inner} if isinstance(inner, dict) else row if inner is None else {**row, "metadata": inner}
    metadata = {str(key): _plain(value) for key, value in metadata.items()}
    name = f"{file}:{number}" if own is None else str(own)
    return Document(text, name, {"file": str(file), **metadata})


def _rows(batch: Any) -> list[dict[str, Any]]:
    """A batch's rows. Values that cannot be decoded (not UTF-8, or a date beyond Python's years) become None."""
    try:
        found: list[dict[str, Any]] = batch.to_pylist()
    except (ValueError, OverflowError):
        return [
            {name: _value(column[row]) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
            for row in range(batch.num_rows)
        ]
    return found


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        return None


def _plain(value: Any) -> Any:
    """A value as JSON can say it."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
