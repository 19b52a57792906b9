"""Reading text: JSON lines, parquet, plain text files and folders of code, one document at a time."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from internevo.config.errors import UserError

JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")
PARQUET = (".parquet",)
TEXT = [
    ".txt",
    ".md",
    ".rst",
    ".tex",
    ".py",
    ".pyi",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".hpp",
    ".cu",
    ".java",
    ".js",
    ".ts",
    ".tsx",
    ".jsx",
    ".go",
    ".rs",
    ".rb",
    ".php",
    ".cs",
    ".swift",
    ".kt",
    ".scala",
    ".sh",
    ".sql",
    ".lua",
    ".jl",
    ".r",
    ".pl",
    ".hs",
    ".ml",
    ".html",
    ".css",
    ".yaml",
    ".yml",
    ".toml",
    ".json",
    ".xml",
]
"""Endings of files that are one document each."""


@dataclass(frozen=True)
class Document:
    """One text and where it came from (`file`, or `file:line`)."""

    text: str
    where: str


@dataclass(frozen=True)
class Reject:
    """A place in the input that held no usable text, and why."""

    where: str
    reason: str


def read_documents(path: Path, text_key: str = "text") -> Iterator[Document | Reject]:
    """The documents of a file, or of all files below a folder in the order of their names.

    JSON lines and parquet hold a document a line or row, under `text_key`; a text or code file is one document. In
    folders, hidden files and files of other kinds are left out; a file given by itself must be of a known kind.
    Memory does not grow with the input. A document that cannot be read comes out as a `Reject`. Raises UserError
    for a path that is missing or of an unknown kind, and for an archive or parquet file that is damaged.
    """
    if path.is_dir():
        for file in _files(path):
            yield from _read_file(file, text_key)
    elif not path.exists():
        raise UserError(f"{path} does not exist")
    elif not path.name.lower().endswith((*JSON_LINES, *PARQUET, *TEXT)):
        known = " ".join((*JSON_LINES, *PARQUET, *TEXT))
        raise UserError(f"{path} is of no known kind. Known endings are: {known}")
    else:
        yield from _read_file(path, text_key)


def input_files(path: Path) -> list[Path]:
    """The files that `read_documents` reads of `path`, in order."""
    return list(_files(path)) if path.is_dir() else [path]


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path)
        elif path.name.lower().endswith((*JSON_LINES, *PARQUET, *TEXT)):
            yield path


def _read_file(path: Path, text_key: str) -> Iterator[Document | Reject]:
    name = path.name.lower()
    if name.endswith(JSON_LINES):
        yield from _json_lines(path, text_key)
    elif name.endswith(PARQUET):
        yield from _parquet(path, text_key)
    else:
        yield _checked(path.read_bytes(), str(path))


def _json_lines(path: Path, text_key: str) -> Iterator[Document | Reject]:
    number = 0
    with _open(path) as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _json_document(line, text_key, f"{path}:{number}")
        except (EOFError, OSError, zlib.error) as error:
            # not a reject: one torn archive may be a large part of the corpus
            raise UserError(f"{path} is damaged after line {number:,}: {error}. Mend it or leave it out.") from None


def _json_document(line: bytes, text_key: str, where: str) -> Document | Reject:
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        return Reject(where, f"not JSON: {error}")
    if not isinstance(value, dict) or not isinstance(value.get(text_key), str):
        return Reject(where, f"no text under {text_key!r}")
    text = value[text_key]
    try:
        text.encode()
    except UnicodeEncodeError:
        return Reject(where, "holds half of a surrogate pair")
    return Document(text, where)


def _parquet(path: Path, text_key: str) -> Iterator[Document | Reject]:
    pyarrow = _pyarrow(path)
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is not a parquet file: {error}") from None
    if text_key not in file.schema_arrow.names:
        raise UserError(f"{path} has no column {text_key!r}; it has {', '.join(file.schema_arrow.names)}")
    number = 0
    for batch in file.iter_batches(batch_size=256, columns=[text_key]):
        for text in batch.column(0).to_pylist():
            number += 1
            where = f"{path}:{number}"
            yield (Document(text, where) if isinstance(text, str) else Reject(where, f"no text under {text_key!r}"))


def _checked(data: bytes, where: str) -> Document | Reject:
    try:
        return Document(data.decode(), where)
    except UnicodeDecodeError as error:
        return Reject(where, f"not UTF-8 (byte {error.start})")


def _open(path: Path) -> IO[bytes]:
    name = path.name.lower()
    if name.endswith(".gz"):
        return io.BufferedReader(gzip.open(path, "rb"))
    if name.endswith(".zst"):
        # pyarrow's reader takes a file that ends too early for an error, which the zstandard package does not
        return io.BufferedReader(_pyarrow(path).input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading it needs pyarrow: pip install 'internevo[data]'") from None
    return pyarrow
