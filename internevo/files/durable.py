"""Files and folders that are whole under their name or not there; files also after a power cut."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ASIDE = ".partial"  # after the name of a file that is being written


def write_durable(path: Path, content: str | bytes | Callable[[IO[bytes]], object]) -> Path:
    """Write a file at once or not at all, from text (as UTF-8), bytes, or by a function that is given the open file.

    On return the content and all names in its folder are on the disk. After an error the folder is as it was.
    """
    aside = aside_of(path)
    try:
        with aside.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
        make_durable(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return path


def aside_of(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(path.name + ASIDE)


def make_durable(path: Path) -> None:
    """Give a file that was written aside its name, when what is in it is on the disk."""
    with aside_of(path).open("rb") as written:
        os.fsync(written.fileno())
    aside_of(path).rename(path)
    sync_folder(path.parent)


@contextmanager
def made_aside(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which is called `folder` when all is well at the end, and is removed otherwise."""
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    aside.mkdir(parents=True)
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside)
        raise
    aside.rename(folder)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: a file's own fsync does not, by POSIX."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno != errno.EINVAL:  # from file systems that write names at once
            raise
    finally:
        os.close(opened)
