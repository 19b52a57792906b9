"""Reading text: JSON lines, parquet, arrow, plain text files and folders of code, one document at a time."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from internevo.files.errors import UserError, some
from internevo.files.foreign import other_store
from internevo.files.urls import was_url
from internevo.text.documents import KNOWN, PACKED, Document, Reject
from internevo.text.pieces import cut

_LINE_BYTES = 2**24  # a line is looked at up to here, to see whether the file holds JSON lines


def read_documents(path: Path, text_key: str = "text") -> Iterator[Document | Reject]:
    """The documents of a file, or of all files below a folder in the order of their names.

    JSON lines, parquet and arrow hold a document a line or row, under `text_key`; a text or code file is one document.
    Memory does not grow with the input. A document that cannot be read comes out as a `Reject`. Raises UserError
    for a path that is missing or of an unknown kind, and for an archive, parquet or arrow file that is damaged.
    """
    before = 0
    for piece in cut(input_files(path).files):
        lines, before = 0, 0 if piece.begins else before
        for lines, one in piece.read(text_key):  # noqa: B007, how many there were is asked after the loop
            if one is not None:
                yield one.after(before) if isinstance(one, Reject) else one
        before += lines


@dataclass(frozen=True)
class InputFiles:
    """What is read of a path."""

    files: list[Path]
    left_out: Counter[str]  # how many others stand there, by their endings


def input_files(path: Path) -> InputFiles:
    """The files that `read_documents` reads of `path`.

    In folders, hidden files and files of other kinds are left out, and a folder to which several links lead is read
    once. Raises UserError for a path that is missing, of an unknown kind or a folder without text, for JSON lines that
    are called `.json`, and for what cannot be read: pipes, links to nowhere, files without the rights.
    """
    left_out: Counter[str] = Counter()
    if path.is_dir():
        if what := other_store(path):
            raise UserError(f"{what}.")
        files = list(_below(path, left_out, set()))
        if not files:
            raise UserError(f"{path} holds no text. Known endings are: {' '.join(KNOWN)}")
    elif was_url(path):
        raise UserError(f"{path} is in object storage, from which only token stores are read. Copy the text to a disk.")
    elif not path.exists():
        raise UserError(f"{path} does not exist")
    elif path.name.lower().endswith((".bin", ".idx", ".npy", ".ds")):
        raise UserError(
            f"{path} is not text, but a file of token ids by its name. Stores and .ds files can be named in a config; "
            "`internevo data index` and `internevo data import` are for others."
        )
    elif not path.name.lower().endswith(KNOWN):
        raise UserError(f"{path} is of no known kind. Known endings are: {' '.join(KNOWN)}")
    else:
        files = [path]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is no file, or a link to nowhere. Fix it or move it away.")
        if not os.access(file, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            raise UserError(f"{file} may not be read by this user.")
    _check_json(files)
    return InputFiles(files, left_out)


def _below(folder: Path, left_out: Counter[str], seen: set[Path]) -> Iterator[Path]:
    if (real := folder.resolve()) in seen:  # links may lead in circles
        left_out["linked folder that is read already"] += 1
        return
    seen.add(real)
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _below(path, left_out, seen)
        elif path.name.lower().endswith(KNOWN):
            yield path
        else:
            left_out[_ending(path)] += 1


def _ending(path: Path) -> str:
    """The last one, and what is packed in an archive."""
    archive = path.suffix.lower() in (*PACKED, ".bz2", ".xz", ".zstd", ".zip")
    return "".join(path.suffixes[-2 if archive else -1 :]).lower() or "without an ending"


def _check_json(files: Sequence[Path]) -> None:
    """In repositories a `.json` may well have a JSON object a line; where most of the text does, it is a corpus."""
    lines = [file for file in files if file.name.lower().endswith(".json") and _holds_lines(file)]
    if lines and 2 * sum(file.stat().st_size for file in lines) > sum(file.stat().st_size for file in files):
        raise UserError(
            f"{some(lines, 1)} holds JSON lines, and a .json is read as one document. Rename it to "
            f"{lines[0].stem}.jsonl, or move it away."
        )


def _holds_lines(file: Path) -> bool:
    """Whether the first two lines are JSON objects of their own."""
    with file.open("rb") as opened:
        lines = [opened.readline(_LINE_BYTES) for _ in range(2)]
    try:
        return all(isinstance(json.loads(line), dict) for line in lines)
    except (ValueError, RecursionError):
        return False
