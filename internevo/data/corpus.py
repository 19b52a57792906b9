"""Reading text: JSON lines, parquet, arrow, plain text files and folders of code, one document at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from internevo.config.errors import UserError

JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")
PARQUET = (".parquet",)
ARROW = (".arrow", ".feather")
PROSE = (".txt", ".md", ".rst", ".tex", ".html", ".css", ".yaml", ".yml", ".toml", ".json", ".xml")
CODE = (
    *(".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".java", ".js", ".ts", ".tsx", ".jsx", ".go", ".rs"),
    *(".rb", ".php", ".cs", ".swift", ".kt", ".scala", ".sh", ".sql", ".lua", ".jl", ".r", ".pl", ".hs", ".ml"),
)
KNOWN = (*JSON_LINES, *PARQUET, *ARROW, *PROSE, *CODE)
"""Endings of files that can be read; prose and code are one document each."""


@dataclass(frozen=True)
class Document:
    """One text."""

    text: str


@dataclass(frozen=True)
class Reject:
    """A place in the input that held no usable text, and why."""

    file: str
    line: int | None
    """The line or row, from 1; None where the file is one document."""
    reason: str
    raw: str | None = None
    """The line as it was, bytes that are not UTF-8 as lone surrogates (`surrogateescape`); None for rows and files."""

    @property
    def where(self) -> str:
        """`file:line`, or `file`."""
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def after(self, lines: int) -> Reject:
        """The same reject where so many lines of the file stand before the piece that it was found in."""
        return self if self.line is None else replace(self, line=self.line + lines)


def read_documents(path: Path, text_key: str = "text") -> Iterator[Document | Reject]:
    """The documents of a file, or of all files below a folder in the order of their names.

    JSON lines, parquet and arrow hold a document a line or row, under `text_key`; a text or code file is one document.
    Memory does not grow with the input. A document that cannot be read comes out as a `Reject`. Raises UserError
    for a path that is missing or of an unknown kind, and for an archive, parquet or arrow file that is damaged.
    """
    from internevo.data.pieces import cut

    file, before = None, 0
    for piece in cut(input_files(path)):
        if piece.file != file:
            file, before = piece.file, 0
        lines = 0
        for lines, one in piece.read(text_key):  # noqa: B007, how many there were is asked behind the loop
            if one is not None:
                yield one.after(before) if isinstance(one, Reject) else one
        before += lines


def input_files(path: Path) -> list[Path]:
    """The files that `read_documents` reads of `path`, in order.

    In folders, hidden files and files of other kinds are left out; a file given by itself must be of a known kind.
    Raises UserError for a path that is missing or of an unknown kind.
    """
    if path.is_dir():
        return list(_below(path))
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if not path.name.lower().endswith(KNOWN):
        raise UserError(f"{path} is of no known kind. Known endings are: {' '.join(KNOWN)}")
    return [path]


def _below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _below(path)
        elif path.name.lower().endswith(KNOWN):
            yield path
