"""Rules of form: heuristics that detect pages without prose.

From the InternLM2 report (arXiv 2403.17297, section 3.1.1): separators and line breaks, abnormal characters, the
distribution of punctuation. From Gopher (arXiv 2112.11446, appendix A1): lengths, symbols, bullets, stop words,
repeated lines and n-grams. From C4 (arXiv 1910.10683): braces, placeholder text, endless words. From FineWeb (arXiv
2406.17557): lines that end as sentences do, short lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from internevo.config.bounds import Between, Count
from internevo.refine.shards import Document
from internevo.refine.step import Sift
from internevo.refine.text_statistics import HAN, TextStatistics

ENGLISH_STOP_WORDS = ["the", "be", "to", "of", "and", "that", "have", "with"]
CHINESE_STOP_WORDS = list("的是了在和有不这我他为就也与而及以中")
_LOREM = re.compile("lorem ipsum", re.I)
_HAN = re.compile(f"[{HAN}]")
_HAN_SHARE = 0.3  # of the first characters; from here on a text whose language nobody has noted is judged as Chinese


@dataclass
class Thresholds:
    """What a document may be like. `null` for a number, or an empty list, leaves a rule out. A unit is a word, or in
    Chinese a character; shares of characters leave white space out."""

    min_units: Annotated[int | None, Between(0, 10**12)] = 50
    """Least number of units."""
    max_units: Annotated[int | None, Between(0, 10**12)] = 1_000_000
    """Greatest number of units. Gopher's limit of 100,000 words leaves out books."""
    min_mean_word: Annotated[float | None, Between(0, 10**12)] = 3.0
    """Mean characters of a word."""
    max_mean_word: Annotated[float | None, Between(0, 10**12)] = 10.0
    """Mean characters of a word."""
    max_unit: Annotated[int | None, Between(0, 10**12)] = 1000
    """Characters of the longest stretch without white space; in Chinese, without punctuation either."""
    min_alphabetic: Annotated[float | None, Between(0, 1)] = 0.8
    """Share of the words that have a letter; in Chinese, share of the characters that are Chinese."""
    stop_words: list[str] = field(default_factory=lambda: list(ENGLISH_STOP_WORDS))
    """Words that all prose has."""
    min_stop_words: Annotated[int | None, Between(0, 10**12)] = 2
    """How many different ones of them must occur."""
    max_hashes: Annotated[float | None, Between(0, 10**12)] = 0.1
    """`#` for each unit."""
    max_ellipses: Annotated[float | None, Between(0, 10**12)] = 0.1
    """Ellipses for each unit."""
    max_bullet_lines: Annotated[float | None, Between(0, 1)] = 0.9
    """Share of the lines that begin with a bullet."""
    max_ellipsis_lines: Annotated[float | None, Between(0, 1)] = 0.3
    """Share of the lines that end with an ellipsis."""
    min_ended_lines: Annotated[float | None, Between(0, 1)] = 0.12
    """Share of the lines that end with a mark that sentences end with."""
    short_line: Count = 30
    """Characters that a line needs not to be short."""
    max_short_lines: Annotated[float | None, Between(0, 1)] = 0.67
    """Share of the lines that are short."""
    max_line_breaks: Annotated[float | None, Between(0, 1)] = 0.1
    """Line breaks for each character."""
    max_separators: Annotated[float | None, Between(0, 1)] = 0.1
    """Share of the characters that draw lines, boxes, arrows or paths."""
    max_abnormal: Annotated[float | None, Between(0, 1)] = 0.002
    """Share of the characters that are controls, private, or what a wrong encoding leaves behind."""
    min_punctuation: Annotated[float | None, Between(0, 1)] = 0.005
    """Share of the characters that are punctuation. Lists of keywords have none."""
    max_punctuation: Annotated[float | None, Between(0, 1)] = 0.25
    """Share of the characters that are punctuation."""
    max_top_sign: Annotated[float | None, Between(0, 1)] = 0.12
    """Share of the characters that are one and the same punctuation mark."""
    max_braces: Annotated[float | None, Between(0, 1)] = 0.01
    """Share of the characters that are curly braces. 0 is C4's rule, which also drops prose about programs."""
    lorem_ipsum: bool = True
    """Whether text with `lorem ipsum` in it is dropped."""
    max_repeated_lines: Annotated[float | None, Between(0, 1)] = 0.3
    """Share of the lines that stood before."""
    max_repeated_line_characters: Annotated[float | None, Between(0, 1)] = 0.2
    """The characters in them, as a share of all."""
    max_repeated_paragraphs: Annotated[float | None, Between(0, 1)] = 0.3
    """Share of the paragraphs that stood before."""
    max_repeated_paragraph_characters: Annotated[float | None, Between(0, 1)] = 0.2
    """The characters in them, as a share of all."""
    max_top_ngram: Annotated[list[float], Between(0, 1)] = field(default_factory=lambda: [0.20, 0.18, 0.16])
    """Share of the characters in the commonest 2-, 3- and 4-gram."""
    max_repeated_ngrams: Annotated[list[float], Between(0, 1)] = field(
        default_factory=lambda: [0.15, 0.14, 0.13, 0.12, 0.11, 0.10]
    )
    """Share of the characters in 5-grams that stood before, in 6-grams, and so on to 10-grams."""
    ngram_scale: Annotated[int, Between(1, 100)] = 1
    """An n-gram has this many times n units. A Chinese word is taken for two characters."""


def chinese() -> Thresholds:
    """Where Chinese differs."""
    return Thresholds(
        min_units=100,
        max_units=2_000_000,
        min_mean_word=None,
        max_mean_word=None,
        max_unit=200,
        min_alphabetic=0.5,
        stop_words=list(CHINESE_STOP_WORDS),
        min_stop_words=3,
        short_line=10,
        min_punctuation=0.02,
        ngram_scale=2,
    )


@dataclass
class Rules(Sift):
    """Drop what is not prose by its form. Which thresholds count depends on the `language` in the document's metadata,
    and without one on whether the text has Chinese characters."""

    en: Thresholds = field(default_factory=Thresholds)
    """For English, and without `stop_words` for all other languages with spaces."""
    zh: Thresholds = field(default_factory=chinese)
    """For Chinese, both scripts."""

    def judge(self, document: Document) -> str | None:
        language = str(document.metadata.get("language") or "").partition("-")[0]
        if not language:
            beginning = document.text[:2000]
            language = "zh" if len(_HAN.findall(beginning)) > _HAN_SHARE * len(beginning) else "en"
        limits = self.zh if language == "zh" else self.en
        text = TextStatistics(document.text, han=language == "zh")
        rules = [_size(text, limits), _signs(text, limits), _lines(text, limits), _repetition(text, limits)]
        if language in ("en", "zh"):
            rules.append(_stop_words(text, limits))
        return next((reason for some in rules for reason, broken in some if broken), None)


Verdicts = Iterator[tuple[str, bool]]
"""Reasons, and whether they hold; each computed when it is asked for, the cheap ones first."""


def _size(text: TextStatistics, limits: Thresholds) -> Verdicts:
    yield "empty", not text.characters
    units = len(text.words)
    yield "too few words", _below(units, limits.min_units)
    yield "too many words", _above(units, limits.max_units)
    yield "words too short", _below(text.mean_word, limits.min_mean_word)
    yield "words too long", _above(text.mean_word, limits.max_mean_word)
    yield "endless word", _above(text.longest_unit, limits.max_unit)


def _signs(text: TextStatistics, limits: Thresholds) -> Verdicts:
    yield "abnormal characters", _above(text.abnormal, limits.max_abnormal)
    yield "placeholder text", limits.lorem_ipsum and _LOREM.search(text.text) is not None
    yield "curly braces", _above(text.braces, limits.max_braces)
    yield "hashes", _above(text.hashes, limits.max_hashes)
    yield "ellipses", _above(text.ellipses, limits.max_ellipses)
    yield "separators", _above(text.separators, limits.max_separators)
    yield "too few letters", _below(text.alphabetic, limits.min_alphabetic)
    yield "too little punctuation", _below(text.punctuation, limits.min_punctuation)
    yield "too much punctuation", _above(text.punctuation, limits.max_punctuation)
    yield "one sign again and again", _above(text.top_sign, limits.max_top_sign)


def _lines(text: TextStatistics, limits: Thresholds) -> Verdicts:
    yield "line breaks", _above(text.line_breaks, limits.max_line_breaks)
    yield "bullet lines", _above(text.bullet_lines, limits.max_bullet_lines)
    yield "ellipsis lines", _above(text.ellipsis_lines, limits.max_ellipsis_lines)
    yield "short lines", _above(text.short_lines(limits.short_line), limits.max_short_lines)
    yield "lines that do not end", _below(text.ended_lines, limits.min_ended_lines)


def _repetition(text: TextStatistics, limits: Thresholds) -> Verdicts:
    lines, characters = text.repeated_lines()
    yield "repeated lines", _above(lines, limits.max_repeated_lines)
    yield "repeated lines", _above(characters, limits.max_repeated_line_characters)
    paragraphs, characters = text.repeated_paragraphs()
    yield "repeated paragraphs", _above(paragraphs, limits.max_repeated_paragraphs)
    yield "repeated paragraphs", _above(characters, limits.max_repeated_paragraph_characters)
    for n, most in enumerate(limits.max_top_ngram, 2):
        yield "one n-gram again and again", _above(text.top_ngram(n * limits.ngram_scale), most)
    for n, most in enumerate(limits.max_repeated_ngrams, 5):
        share = text.repeated_ngrams(n * limits.ngram_scale)
        yield "repeated n-grams", share > most
        if share <= min(limits.max_repeated_ngrams):  # in longer ones there is never more
            return


def _stop_words(text: TextStatistics, limits: Thresholds) -> Verdicts:
    if limits.stop_words:
        yield "too few stop words", _below(text.stop_words(limits.stop_words), limits.min_stop_words)


def _below(value: float, least: float | None) -> bool:
    return least is not None and value < least


def _above(value: float, most: float | None) -> bool:
    return most is not None and value > most
