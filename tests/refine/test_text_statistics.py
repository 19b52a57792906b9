"""Figures of a text, against plain loops."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internevo.refine.text_statistics import TextStatistics
from tests.refine.corpus import CHINESE, docstrings

TEXTS = st.text(st.sampled_from("ab 的中\n.,。#-"), max_size=80)


def repeated_by_hand(units: list[str], n: int) -> float:
    seen: set[tuple[str, ...]] = set()
    covered = set()
    for place in range(len(units) - n + 1):
        gram = tuple(units[place : place + n])
        if gram in seen:
            covered |= set(range(place, place + n))
        seen.add(gram)
    return sum(len(units[place]) for place in covered) / max(sum(map(len, units)), 1)


def top_by_hand(units: list[str], n: int) -> float:
    grams = [tuple(units[place : place + n]) for place in range(len(units) - n + 1)]
    if not grams or len(set(grams)) == len(grams):
        return 0.0
    top, _ = Counter(grams).most_common(1)[0]  # of several the one that comes first
    covered = {place + more for place, gram in enumerate(grams) if gram == top for more in range(n)}
    return sum(len(units[place]) for place in covered) / max(sum(map(len, units)), 1)


@given(TEXTS, st.booleans(), st.integers(2, 6))
def test_repeated_ngrams(text: str, han: bool, n: int) -> None:
    statistics = TextStatistics(text, han)
    assert statistics.repeated_ngrams(n) == pytest.approx(repeated_by_hand(statistics.units, n))
    assert statistics.top_ngram(n) == pytest.approx(top_by_hand(statistics.units, n))
    assert statistics.repeated_ngrams(n + 1) <= statistics.repeated_ngrams(n)  # rules rely on it


def test_ngrams_of_real_text_do_not_collide() -> None:
    text = TextStatistics("\n".join(docstrings(60)), han=False)
    for n in (2, 5, 10):
        assert text.repeated_ngrams(n) == pytest.approx(repeated_by_hand(text.units, n))
        assert text.top_ngram(n) == pytest.approx(top_by_hand(text.units, n))


@given(TEXTS, st.booleans())
def test_shares_by_hand(text: str, han: bool) -> None:
    statistics = TextStatistics(text, han)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    solid = [character for character in text if not character.isspace()]

    def of(count: int, whole: int) -> float:
        return pytest.approx(count / whole if whole else 0.0)

    assert statistics.characters == len(solid)
    assert statistics.bullet_lines == of(sum(line[0] == "-" for line in lines), len(lines))
    assert statistics.ended_lines == of(sum(line[-1] in ".。" for line in lines), len(lines))
    assert statistics.short_lines(5) == of(sum(len(line) < 5 for line in lines), len(lines))
    assert statistics.line_breaks == of(text.count("\n"), len(solid))
    assert statistics.punctuation == of(sum(character in ".,。" for character in solid), len(solid))
    assert statistics.top_sign == of(max(text.count(sign) for sign in ".,。"), len(solid))
    assert statistics.separators == of(sum(character in "#-" for character in solid), len(solid))
    repeated = [line for number, line in enumerate(lines) if line in lines[:number]]
    assert statistics.repeated_lines()[0] == of(len(repeated), len(lines))
    assert statistics.repeated_lines()[1] == of(sum(map(len, repeated)), sum(map(len, lines)))


def test_units_of_chinese() -> None:
    mixed = TextStatistics("我用Python写了3个 programs，很快。", han=True)
    assert mixed.units == ["我", "用", "Python", "写", "了", "3", "个", "programs", "很", "快"]
    assert mixed.longest_unit == len("我用Python写了3个")
    assert TextStatistics(CHINESE[0], han=True).alphabetic > 0.85
    assert TextStatistics("one two", han=False).units == ["one", "two"]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_wrong_encodings_are_abnormal(encoding: str) -> None:
    good = "“Schöne Grüße”, sagte André – und ging… Ça va, señor?"
    assert TextStatistics(good, han=False).abnormal == 0
    wrong = good.encode().decode(encoding, errors="replace")
    assert TextStatistics(wrong, han=False).abnormal > 0.2
    assert TextStatistics(CHINESE[0].encode("gbk").decode("utf-8", "replace"), han=True).abnormal > 0.3
    # what Windows makes of U+FFFD: UTF-8 read as GBK
    assert TextStatistics(("\ufffd" * 40).encode().decode("gbk"), han=True).abnormal > 0.9


def test_empty() -> None:
    text = TextStatistics("", han=True)
    figures = [
        "characters",
        "mean_word",
        "longest_unit",
        "alphabetic",
        "hashes",
        "bullet_lines",
        "ended_lines",
        "top_sign",
    ]
    assert [getattr(text, name) for name in figures] == [0] * len(figures)
    assert text.repeated_lines() == text.repeated_paragraphs() == (0, 0)
