"""Folders of repositories as documents, a file each.

A document's metadata has its `repository`, `path` inside it with `/`, `language` and `date`. A repository's files stand
together in one shard, in the order of their paths.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, NoReturn

from internevo.config.bounds import Between
from internevo.files.errors import UserError
from internevo.files.hashing import hash64
from internevo.refine.code.languages import language_of
from internevo.refine.corpus_files import cannot_list
from internevo.refine.shards import Document, Judged
from internevo.refine.step import Phase, Place, Step

_HISTORY = (".git", ".hg", ".svn", ".bzr", "CVS")  # a repository's own records: no files of it, and not counted
_VENDORED = (
    *("node_modules", "bower_components", "vendor", "vendored", "_vendor", "third_party", "thirdparty", "3rdparty"),
    *("site-packages", ".venv", "venv", "virtualenv", "Pods", "Carthage", "__pycache__", ".tox", ".gradle"),
)

_HEAD_LINES = 15  # programs say at the top what they have made
_SAYS_SO = re.compile(
    r"@generated\b"
    r"|\bauto-?generated\b(?!\s+(?:id|key|name|value)s?\b)"
    r"|\bautomatically (?:generated|created)\s+(?:by|from|with|using|file|code|on)\b"
    r"|\b(?:this|the) (?:file|code|module) (?:is|was|has been) (?:automatically )?generated\b"
    r"|\bgenerated (?:by|from)\b.*\bdo not (?:edit|modify|change)\b"
    r"|\bdo not (?:edit|modify|change) (?:this file|by hand|manually|it by hand)\b",
    re.IGNORECASE,
)
_NAMES = re.compile(
    r"\.min\.(?:js|css|mjs)$|\.bundle\.js$|[._]pb2?(?:_grpc)?\.(?:pyi?|go|cc|h|js|d\.ts)$"
    r"|^(?:package-lock|npm-shrinkwrap|composer-lock)\.json$|^pnpm-lock\.yaml$|\.designer\.cs$|\.g\.(?:cs|dart)$",
    re.IGNORECASE,
)


@dataclass
class Repositories(Step):
    """The first step of the code chain: its inputs are folders of repositories."""

    reads_input: ClassVar[bool] = True

    levels: Annotated[int, Between(0, 100)] = 1
    """How deep in an input the repositories are: 1 for `NAME`, 2 for `OWNER/NAME`, 0 when each input is one itself."""
    shards: Annotated[int, Between(1, 10**6)] = 16
    """Files to write, which is also how many tasks each later step has. A repository is never spread over two."""
    max_bytes: Annotated[int, Between(1, 10**12)] = 2**20
    """Larger files are left out."""
    vendored: list[str] | None = None
    """Names of folders with other people's code, which are left out; when absent, `node_modules`, `vendor`,
    `third_party` and the like."""
    max_mean_line: Annotated[float, Between(0, 10**12)] = 200.0
    """A file of code or data whose lines have more characters on average is taken for minified."""
    max_line: Annotated[int, Between(1, 10**12)] = 5000
    """So is one with a longer line."""

    def phases(self, place: Place) -> list[Phase]:
        """Raises UserError for an input that is no folder, one without repositories, and one name in two inputs."""
        found: dict[str, Path] = {}
        for folder in place.shards:
            here = dict(self._repositories(folder))
            if not here:
                raise UserError(f"{folder} has no repositories {self.levels} folders deep; `levels` says how deep")
            if twice := found.keys() & here.keys():
                name = min(twice)
                raise UserError(f"there are two repositories {name!r}: {found[name]} and {here[name]}. Rename one.")
            found |= here
        shares: list[list[tuple[str, Path]]] = [[] for _ in range(self.shards)]
        for name, path in sorted(found.items()):
            shares[hash64(name.encode(errors="surrogateescape")) % self.shards].append((name, path))
        return [place.sifting("read", partial(_read, self, shares), self.shards)]

    def kept(self, place: Place) -> tuple[Path, ...]:
        return place.kept(self.shards)

    def _repositories(self, folder: Path) -> Iterator[tuple[str, Path]]:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; the inputs of `repositories` are folders of repositories")
        if not self.levels:
            yield folder.resolve().name, folder
            return
        for path in sorted(folder.glob("/".join("*" * self.levels))):
            if path.is_dir() and not path.is_symlink():
                yield path.relative_to(folder).as_posix(), path

    def judge(self, path: Path, inside: str) -> tuple[str, str | None]:
        """A file's text, and why it is left out; no text where it was not read."""
        language = language_of(inside)
        if path.is_symlink():
            return "", "link"
        if language is None:
            return "", "unknown kind"
        if path.stat().st_size > self.max_bytes:
            return "", "too large"
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except PermissionError:
            return "", "not readable"
        except UnicodeDecodeError:
            return "", "not UTF-8"
        if "\0" in text:
            return "", "not text"
        text = text.replace("\r\n", "\n")
        if not text.strip():
            return text, "empty"
        if _is_generated(inside, text):
            return text, "generated"
        lines = text.splitlines()
        # prose is left alone: its lines may be paragraphs
        long = len(text) / len(lines) > self.max_mean_line or max(map(len, lines)) > self.max_line
        return text, "minified" if long and not language.prose else None


def _is_generated(path: str, text: str) -> bool:
    """Whether a file's name or one of its first lines says that a program made it."""
    head = text[:4000].split("\n", _HEAD_LINES)[:_HEAD_LINES]
    return bool(_NAMES.search(PurePosixPath(path).name)) or any(map(_SAYS_SO.search, head))


def _read(step: Repositories, shares: list[list[tuple[str, Path]]], number: int) -> Iterator[Judged]:
    skipped = frozenset(_VENDORED if step.vendored is None else step.vendored)
    for name, root in shares[number]:
        for path, inside, vendored in _files(root, skipped):
            text, reason = ("", "vendored") if vendored else step.judge(path, inside)
            yield Document(text, f"{name}/{inside}", _metadata(name, path, inside)), reason


def _files(root: Path, vendored: frozenset[str]) -> Iterator[tuple[Path, str, bool]]:
    """A repository's files, their paths inside it, in that order, and whether each is in a vendored folder."""

    def stop(error: OSError) -> NoReturn:
        raise cannot_list(error) from None

    for folder, folders, names in os.walk(root, onerror=stop):
        folders[:] = sorted(name for name in folders if name not in _HISTORY)
        here = Path(folder).relative_to(root)
        inside = not vendored.isdisjoint(here.parts)
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() or path.is_symlink():
                yield path, (here / name).as_posix(), inside


def _metadata(name: str, path: Path, inside: str) -> dict[str, object]:
    stat = path.lstat()
    language = language_of(inside)
    return {
        "repository": name,
        "path": inside,
        "language": language.name if language else None,
        "bytes": stat.st_size,
        "date": datetime.fromtimestamp(int(stat.st_mtime), UTC).isoformat(),
    }
