"""Which files a corpus has."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from internevo.files.errors import UserError
from internevo.text.documents import ARROW, JSON_LINES, PARQUET

WARC = (".warc", ".warc.gz", ".wet", ".wet.gz")
"""Web archives. Common Crawl's texts, `….warc.wet.gz`, are archives too."""
KNOWN = (*WARC, *JSON_LINES, *PARQUET, *ARROW)
"""Endings of files that can be refined."""


def corpus_files(paths: Sequence[Path]) -> list[Path]:
    """The files below these paths, in order; hidden ones and those of other kinds are left out.

    Raises UserError for a path that is missing or of an unknown kind, a file that comes twice, and no file at all.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist")
        if path.is_dir():
            files += filter(_known, _visible(path))
        elif _known(path):
            files.append(path)
        else:
            raise UserError(f"{path} is of no known kind. Known endings are: {' '.join(KNOWN)}")
    if not files:
        raise UserError(f"{', '.join(map(str, paths))}: no file ends in {' '.join(KNOWN)}")
    seen: dict[Path, Path] = {}
    for file in files:
        if (first := seen.setdefault(file.resolve(), file)) is not file:
            raise UserError(f"{file} would be read twice: {first} is the same file. Name or link it once.")
    return files


def passed_over(paths: Sequence[Path]) -> Counter[str]:
    """How many files below these paths are of no known kind, by their endings."""
    below = (file for path in paths if path.is_dir() for file in _visible(path))
    return Counter(file.suffix.lower() for file in below if not _known(file))


def files_below(folder: Path, *, links: bool) -> Iterator[Path]:
    """The files below a folder, in the order of their paths. With `links`, also through links to folders, which may
    form a circle: a folder is entered once.
    Raises UserError for a folder that cannot be listed, and with `links` for a link to nothing."""
    entered: set[tuple[int, int]] = set()

    def walk(here: Path) -> Iterator[Path]:
        stat = here.stat()
        if (stat.st_dev, stat.st_ino) in entered:
            return
        entered.add((stat.st_dev, stat.st_ino))
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            raise cannot_list(error) from None
        for entry in entries:
            if entry.is_dir(follow_symlinks=links):
                yield from walk(here / entry.name)
            elif entry.is_file():
                yield here / entry.name
            elif links and entry.is_symlink():
                raise UserError(f"{here / entry.name} is a link to nothing. Fix it or remove it.")

    return walk(folder)


def cannot_list(error: OSError) -> UserError:
    return UserError(f"{error.filename} cannot be listed: {error.strerror}. Fix it or leave it out.")


def is_warc(file: Path) -> bool:
    """Whether it is a web archive, by its name."""
    return file.name.lower().endswith(WARC)


def _known(file: Path) -> bool:
    return file.name.lower().endswith(KNOWN)


def _visible(folder: Path) -> Iterator[Path]:
    for file in files_below(folder, links=True):
        if not any(part.startswith(".") for part in file.relative_to(folder).parts):
            yield file
