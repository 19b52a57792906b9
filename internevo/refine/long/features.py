"""What a long text is like, in figures that a threshold can be set for."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

from internevo.refine.long.words import Words
from internevo.refine.text_statistics import HAN

_UNITS = re.compile(rf"[{HAN}]|[^\W\d_{HAN}]+(?:['’][^\W\d_{HAN}]+)*")
"""Words; Chinese characters one at a time, since what a word is there takes a model to say."""
_SENTENCE_END = re.compile(r"[.!?](?=[\s\"'”’)]|$)|[。！？；]|\n\s*\n")
_WINDOW = 1000


@dataclass(frozen=True)
class Features:
    """Figures of one text. A unit is a word, or a Chinese character."""

    connectives: float  # for 1,000 units
    conjunctions: float  # for 1,000 units
    function_words: float  # for 1,000 units
    punctuation: float  # share of the characters that are not white space
    digits: float  # share of the characters that are not white space
    paragraph: float  # units of a paragraph on average; blank lines divide paragraphs, in a text without any, lines do
    sentence: float  # units of a sentence on average
    # share of different units in a stretch of 1,000, averaged over stretches: the standardised type-token ratio, which
    # unlike the plain one does not fall with the length of a text
    unique: float


def features(text: str, words: Words) -> Features:
    """The figures of a text in the language that the words are of. They are 0 for a text without a unit."""
    lower = text.lower()
    units = _UNITS.findall(lower)
    shown = sum(map(len, text.split()))
    if not units or not shown:
        return Features(*[0.0] * 8)
    # of each character once: a text has few different ones
    signs = Counter(text)
    punctuation = sum(count for sign, count in signs.items() if unicodedata.category(sign)[0] == "P")
    digits = sum(count for sign, count in signs.items() if sign.isdigit())
    thousands = len(units) / 1000
    return Features(
        connectives=len(words.connectives.findall(lower)) / thousands,
        conjunctions=len(words.conjunctions.findall(lower)) / thousands,
        function_words=len(words.function_words.findall(lower)) / thousands,
        punctuation=punctuation / shown,
        digits=digits / shown,
        paragraph=len(units) / _paragraphs(text),
        sentence=len(units) / sum(bool(_UNITS.search(part)) for part in _SENTENCE_END.split(text)),
        unique=_unique(units),
    )


def _paragraphs(text: str) -> int:
    parts = re.split(r"\n\s*\n", text.strip())
    if len(parts) == 1:
        parts = text.split("\n")
    return sum(bool(part.strip()) for part in parts)


def _unique(units: list[str]) -> float:
    """Over whole stretches; over all of a text that is shorter than one."""
    starts = range(0, max(len(units) - _WINDOW, 0) + 1, _WINDOW)
    shares = [len(set(window)) / len(window) for window in (units[at : at + _WINDOW] for at in starts)]
    return sum(shares) / len(shares)
