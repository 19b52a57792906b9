"""The files of one repository, to be found by path, by the end of a path, and by folder."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple


class Import(NamedTuple):
    """One file needs another."""

    path: str  # of the file that is imported
    at_once: bool = True  # whether it is needed as soon as the file is read; not so an import inside a function


class FileTree:
    """The paths of a repository, and the texts of those that say how others are named, each `go.mod`."""

    def __init__(self, paths: Iterable[str], settings: Mapping[str, str] | None = None):
        self.paths = frozenset(paths)
        self.settings = dict(settings or {})
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_folder: dict[str, list[str]] = defaultdict(list)
        self._folders: dict[str, set[str]] = defaultdict(set)
        for path in sorted(self.paths):
            folder, name = posixpath.split(path)
            self._by_name[name].append(path)
            self._by_folder[folder].append(path)
            self._folders[posixpath.basename(folder)].add(folder)

    def __contains__(self, path: str) -> bool:
        return path in self.paths

    def first(self, candidates: Iterable[str]) -> str | None:
        return next((path for path in candidates if path in self.paths), None)

    def in_folder(self, folder: str) -> list[str]:
        """The files right in a folder, by name."""
        return self._by_folder.get(folder, [])

    def ending(self, tail: str, near: str) -> str | None:
        """The file whose path ends with the path `tail`; of several the one that shares most folders with `near`."""
        return _nearest(self._by_name.get(posixpath.basename(tail), ()), tail, near)

    def folder_ending(self, tail: str, near: str) -> str | None:
        """The same for folders with files in them."""
        return _nearest(self._folders.get(posixpath.basename(tail), ()), tail, near)


def _nearest(paths: Iterable[str], tail: str, near: str) -> str | None:
    def shared(path: str) -> int:
        return len(posixpath.commonprefix([path.split("/"), near.split("/")]))  # of lists it is that of their items

    found = [path for path in paths if path == tail or path.endswith("/" + tail)]
    return min(found, key=lambda path: (-shared(path), len(path), path), default=None)


def above(path: str) -> Iterator[str]:
    """The folders that a file is in, innermost first, the repository's own (``) last."""
    folder = posixpath.dirname(path)
    while folder:
        yield folder
        folder = posixpath.dirname(folder)
    yield ""


def join(*parts: str) -> str:
    """A path put together, without `.` and `..`; one that leaves the repository begins with `..`."""
    return posixpath.normpath(posixpath.join(*parts)).removeprefix("./")


def indented(text: str, at: int) -> bool:
    """Whether the line of a place in a text begins with white space."""
    begin = text.rfind("\n", 0, at) + 1
    return text[begin : begin + 1].isspace()


_C_COMMENTS = re.compile(
    r"""//[^\n]*|/\*.*?(?:\*/|\Z)|(\\.|"(?:\\.|[^"\\\n])*+"|'(?:\\.|[^'\\\n])*+'|`(?:\\.|[^`\\])*+`)""", re.DOTALL
)
"""C's comments, and strings, which may look like them. The time is linear in the text: a comment that never ends goes
to the end, and after a backslash no string begins, so that a line has one of each kind that does not end."""


def without_comments(text: str) -> str:
    """A text in a language with C's comments, without them. Lines stay lines."""
    return _C_COMMENTS.sub(lambda match: match[1] or "\n" * match[0].count("\n"), text)
