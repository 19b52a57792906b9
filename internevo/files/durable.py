"""Files that are whole under their name or not there, also after a power cut."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

ASIDE = ".partial"
"""After the name of a file that is being written."""


def write_durable(path: Path, content: str | bytes | Callable[[IO[bytes]], object]) -> Path:
    """Write a file at once or not at all, from text (as UTF-8), bytes, or by a function that is given the open file.

    When this returns, content and name are on the disk, and so are the names that others of the folder were given.
    After an error nothing is left of it, and what was called so before is as it was.
    """
    aside = path.with_name(path.name + ASIDE)
    try:
        with aside.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
        make_durable(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return path


def make_durable(aside: Path, path: Path) -> None:
    """Give a file that was written aside its name, when what is in it is on the disk."""
    with aside.open("rb") as written:
        os.fsync(written.fileno())
    aside.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: a file's own fsync does not, by POSIX."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what file systems say that keep no names back
            raise
    finally:
        os.close(opened)
