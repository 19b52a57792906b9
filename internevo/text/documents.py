"""Files of text by their endings, and what readers give: documents, and rejects where there was none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PACKED = (".gz", ".zst")
JSON_LINES = (".jsonl", ".ndjson", *(kind + packed for kind in (".jsonl", ".ndjson", ".json") for packed in PACKED))
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
    line: int | None  # the line or row, from 1; None where the file is one document
    reason: str
    # the line as it was, bytes that are not UTF-8 as lone surrogates (`surrogateescape`); None for rows and files
    raw: str | None = None

    @property
    def where(self) -> str:
        """`file:line`, or `file`."""
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def after(self, lines: int) -> Reject:
        """The same reject, where `lines` lines of the file stand before the piece that it was found in."""
        return self if self.line is None else replace(self, line=self.line + lines)


Item = tuple[int, Document | Reject | None]
"""The number of a line or row in its piece, from 1, and what it held; None for a blank line."""


Row = tuple[Path, int, dict[str, Any] | Reject | None]
"""A file, the number of a line or row in its piece, from 1, and the mapping of keys to values that it held, whole."""


def is_packed(file: Path) -> bool:
    """Whether it is an archive, by its name."""
    return file.name.lower().endswith(PACKED)
