"""Lists of domains and of words from files, a line each, found quickly in addresses and texts."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from internevo.files.errors import UserError
from internevo.files.hashing import hash64

_WORDS = re.compile(r"\w+")
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_RUNS = re.compile(f"[{_SPACELESS}]+")  # stretches of scripts that put no spaces between words
_LETTER = re.compile(rf"(?![{_SPACELESS}])\w")  # of a script with spaces


class Domains:
    """A set of domains; a domain stands for all below it. 8 bytes each, as lists have millions."""

    def __init__(self, names: Iterator[str]):
        self._hashes = np.unique(np.fromiter((_hash(name.rstrip(".")) for name in names), np.uint64))

    def of(self, url: str) -> str | None:
        """The one that the address is in."""
        try:
            host = (urlsplit(url if "://" in url else f"//{url}").hostname or "").rstrip(".")
        except ValueError:  # no address
            return None
        while host:
            value = np.uint64(_hash(host))
            place = int(self._hashes.searchsorted(value))
            if place < len(self._hashes) and self._hashes[place] == value:
                return host
            host = host.partition(".")[2]
        return None


def _hash(name: str) -> int:
    return hash64(name.lower().encode(errors="replace"))


class Words:
    """A set of words and phrases. Where a script has spaces, whole words are found; in Chinese and the like, and where
    an entry mixes both, such as `K粉`, the characters wherever they stand, unless a word with spaces around it
    continues at an end of them. Upper and lower case are the same."""

    def __init__(self, entries: Iterator[str]):
        # by their lengths, in words or characters
        self._phrases: dict[int, set[tuple[str, ...]]] = defaultdict(set)
        self._strings: dict[int, set[str]] = defaultdict(set)
        for entry in map(str.lower, entries):
            if _RUNS.search(entry):
                self._strings[len(entry)].add(entry)
            elif phrase := tuple(_WORDS.findall(entry)):
                self._phrases[len(phrase)].add(phrase)

    def __bool__(self) -> bool:
        return bool(self._phrases or self._strings)

    def find(self, text: str) -> tuple[int, int]:
        """How many there are in a text, and how many words it has; a character of a script without spaces is one."""
        text = text.lower()
        words = _WORDS.findall(_RUNS.sub(" ", text))
        characters = sum(map(len, _RUNS.findall(text)))
        found = 0
        for length, phrases in self._phrases.items():
            found += sum(tuple(words[at : at + length]) in phrases for at in range(len(words) - length + 1))
        for length, strings in self._strings.items() if characters else ():
            ends = range(length, len(text) + 1)
            found += sum(text[end - length : end] in strings and _whole(text, end - length, end) for end in ends)
        return found, len(words) + characters


def _whole(text: str, begin: int, end: int) -> bool:
    """Whether no word continues across an end of a stretch."""
    return not any(at and _LETTER.match(text, at - 1) and _LETTER.match(text, at) for at in (begin, end))


@lru_cache(maxsize=8)
def domains(files: Sequence[Path]) -> Domains:
    """All domains of these files, read once in a process."""
    return Domains(entry for file in files for entry in _entries(file))


@lru_cache(maxsize=8)
def words(files: Sequence[Path]) -> Words:
    """All words of these files, read once in a process."""
    return Words(entry for file in files for entry in _entries(file))


def _entries(file: Path) -> Iterator[str]:
    """Lines that say something; `#` begins a remark."""
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for line in lines:
                if entry := line.partition("#")[0].strip():
                    yield entry
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start})") from None
