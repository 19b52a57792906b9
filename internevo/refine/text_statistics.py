"""What the rules look at in a text: its units, lines, signs, and repetition."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
PUNCTUATION = ".,;:!?\"'()[]…—–‘’“”、。，；：！？（）《》「」【】·"
ENDS = tuple(".!?\"'):…”’。！？；）」：")  # what a line of prose ends with
_HAN_OR_WORD = re.compile(rf"[{HAN}]|[^\W{HAN}]+")
_SIGNS = re.compile(rf"[{re.escape(PUNCTUATION)}]")
_SEPARATORS = re.compile(r"[|\\/=_*~#<>^+\-\u2190-\u21ff\u2500-\u25ff•·»«›‹\t]")
_ABNORMAL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff\ud800-\udfff\ufff0-\ufffb\U000f0000-\U0010ffff]"
    # UTF-8 read as Windows' Latin, and what Chinese Windows makes of U+FFFD and of unset memory
    "|\u00c3[\u0080-\u00bf\u0192\u201a\u2020-\u2022\u2026\u2030\u20ac\u2122]|\u00c2[\u00a0-\u00bf]"
    "|\u00e2\u20ac[\u0080-\u00bf\u2122\u0153\u201c\u201d\u2018\u02dc\u00a2\u00a6\u00af]|\u00ef\u00bf\u00bd|\u00ef\u00bb\u00bf"
    "|\u951f\u65a4\u62f7|\u951f\u65a4|\u70eb\u70eb\u70eb|\u5c6f\u5c6f\u5c6f"
)
_BULLETS = tuple("•-*·●▪►○■")
_ELLIPSES = ("...", "…", "。。。")


class TextStatistics:
    """Figures of one text, each computed when it is asked for. Shares are between 0 and 1. A unit is what stands
    between white space, or with `han` a Chinese character or a word in another script."""

    def __init__(self, text: str, han: bool):
        self.text = text
        self._han = han

    @cached_property
    def units(self) -> list[str]:
        return _HAN_OR_WORD.findall(self.text) if self._han else self.text.split()

    @cached_property
    def words(self) -> list[str]:
        """Units without the signs around them; those of signs alone are left out."""
        stripped = (unit.strip(PUNCTUATION + "*_`#<>|=-+~/\\") for unit in self.units)
        return [word for word in stripped if word]

    @cached_property
    def lines(self) -> list[str]:
        """Lines that are not blank, stripped."""
        return [line for line in map(str.strip, self.text.split("\n")) if line]

    @cached_property
    def characters(self) -> int:
        """White space aside."""
        return sum(map(len, self.text.split()))

    @property
    def mean_word(self) -> float:
        return _share(sum(map(len, self.words)), len(self.words))

    @property
    def longest_unit(self) -> int:
        """Characters of the longest stretch without white space, and with `han` without punctuation."""
        stretches = re.split(rf"[\s{re.escape(PUNCTUATION)}]+", self.text) if self._han else self.units
        return max(map(len, stretches), default=0)

    @property
    def alphabetic(self) -> float:
        """Share of units with a letter; with `han`, share of the characters that are Chinese."""
        if self._han:
            return _share(len(re.findall(rf"[{HAN}]", self.text)), self.characters)
        return _share(sum(any(map(str.isalpha, unit)) for unit in self.units), len(self.units))

    def stop_words(self, known: Sequence[str]) -> int:
        """How many of these occur."""
        return len({word.lower() for word in self.words} & set(known))

    @property
    def hashes(self) -> float:
        return _share(self.text.count("#"), len(self.units))

    @property
    def ellipses(self) -> float:
        return _share(sum(self.text.count(one) for one in _ELLIPSES), len(self.units))

    def _line_share(self, counts: Callable[[str], bool]) -> float:
        return _share(sum(map(counts, self.lines)), len(self.lines))

    @property
    def bullet_lines(self) -> float:
        return self._line_share(lambda line: line.startswith(_BULLETS))

    @property
    def ellipsis_lines(self) -> float:
        return self._line_share(lambda line: line.endswith(_ELLIPSES))

    @property
    def ended_lines(self) -> float:
        """Those that end as prose does."""
        return self._line_share(lambda line: line.endswith(ENDS))

    def short_lines(self, length: int) -> float:
        """Those with fewer characters than this."""
        return self._line_share(lambda line: len(line) < length)

    @property
    def line_breaks(self) -> float:
        """Line breaks for each character that is not white space."""
        return _share(self.text.count("\n"), self.characters)

    @property
    def separators(self) -> float:
        """Share of characters that draw lines, boxes, arrows and paths."""
        return _share(len(_SEPARATORS.findall(self.text)), self.characters)

    @property
    def abnormal(self) -> float:
        """Share of characters that are controls, private, or come from a wrong encoding."""
        return _share(sum(map(len, _ABNORMAL.findall(self.text))), self.characters)

    @cached_property
    def _signs(self) -> Counter[str]:
        return Counter(_SIGNS.findall(self.text))

    @property
    def punctuation(self) -> float:
        return _share(self._signs.total(), self.characters)

    @property
    def top_sign(self) -> float:
        """The commonest punctuation mark's share of all characters."""
        return _share(max(self._signs.values(), default=0), self.characters)

    @property
    def braces(self) -> float:
        return _share(self.text.count("{") + self.text.count("}"), self.characters)

    def repeated_lines(self) -> tuple[float, float]:
        """Share of the lines that stood before already, and of the characters in them."""
        return _repeated(self.lines)

    def repeated_paragraphs(self) -> tuple[float, float]:
        """The same for paragraphs, which blank lines divide."""
        return _repeated([part for part in map(str.strip, re.split(r"\n\s*\n", self.text)) if part])

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.fromiter(map(len, self.units), np.int64)

    @cached_property
    def _numbers(self) -> np.ndarray:
        """The units as whole numbers, equal for equal ones."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(unit, len(numbers)) for unit in self.units], np.uint64)

    def _ngrams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """For each n-gram, which kind it is, and for each kind, where it is first."""
        with np.errstate(over="ignore"):
            hashes = np.zeros(max(len(self._numbers) - n + 1, 0), np.uint64)
            for place in range(n):
                hashes = (hashes ^ self._numbers[place : place + len(hashes)]) * np.uint64(0x9E3779B97F4A7C15)
                hashes ^= hashes >> np.uint64(29)
        _, first, kinds = np.unique(hashes, return_index=True, return_inverse=True)
        return kinds, first

    def top_ngram(self, n: int) -> float:
        """Share of the units' characters in the commonest n-gram, overlaps counted once; 0 when none comes twice."""
        kinds, first = self._ngrams(n)
        counts = np.bincount(kinds)
        if counts.max(initial=0) < 2:
            return 0.0
        # of several the one that begins first
        top = min(np.flatnonzero(counts == counts.max()), key=lambda kind: first[kind])
        return self._covered(np.flatnonzero(kinds == top), n)

    def repeated_ngrams(self, n: int) -> float:
        """Share of the units' characters in n-grams that stood before, overlaps counted once. It never grows with n."""
        kinds, first = self._ngrams(n)
        return self._covered(np.flatnonzero(first[kinds] < np.arange(len(kinds))), n)

    def _covered(self, starts: np.ndarray, n: int) -> float:
        size = len(self.units) + 1
        inside = np.cumsum(np.bincount(starts, minlength=size) - np.bincount(starts + n, minlength=size))[:-1] > 0
        return _share(int(self._lengths[inside].sum()), int(self._lengths.sum()))


def _repeated(parts: Sequence[str]) -> tuple[float, float]:
    seen: set[str] = set()
    again = [part for part in parts if part in seen or seen.add(part)]  # type: ignore[func-returns-value]
    return _share(len(again), len(parts)), _share(sum(map(len, again)), sum(map(len, parts)))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
