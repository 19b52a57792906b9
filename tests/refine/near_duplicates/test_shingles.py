"""Shingles against n-grams of words in plain Python."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.refine.near_duplicates.shingles import shingles
from tools.near_duplicates import shingle_set, words

ALPHABET = "aAbé_0 .,\n\t中文ひカー한ศก္ကñ\u0301\U00020000\U0001f600（。\ud800"
"""Cases, accents, a mark, scripts with and without spaces, characters outside of the basic plane, half of a pair."""

texts = st.lists(st.text(ALPHABET, max_size=40), min_size=1, max_size=12)


def sets(found: list[str], ngrams: int) -> list[frozenset[int]]:
    rows = shingles(found, ngrams)
    return [frozenset(rows[np.array([number])].values.tolist()) for number in range(len(rows))]


@settings(max_examples=300, deadline=None)
@given(texts, st.integers(1, 6))
def test_two_shingles_are_equal_when_their_words_are(found: list[str], ngrams: int) -> None:
    ours, exact = sets(found, ngrams), [shingle_set(text, ngrams) for text in found]
    assert [len(one) for one in ours] == [len(one) for one in exact]
    for i in range(len(found)):
        for j in range(i):
            assert len(ours[i] & ours[j]) == len(exact[i] & exact[j])


@settings(max_examples=100, deadline=None)
@given(texts, st.integers(1, 6))
def test_documents_do_not_depend_on_their_neighbours(found: list[str], ngrams: int) -> None:
    assert sets(found, ngrams) == [sets([text], ngrams)[0] for text in found]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["", "!", "?", "a", "A", "a b", "a b.", "中", "中文"]), min_size=2, max_size=2))
def test_documents_of_a_few_words_are_like_none_but_the_same(two: list[str]) -> None:
    one, other = sets(two, 5)
    assert len(one) == len(other) == 1
    assert (one == other) == (two[0] == two[1])


def long_text(between: str) -> str:
    """A few times as long as what is looked at together."""
    chance = random.Random(between)
    return between.join("".join(chance.choices("abcdefgh", k=chance.randrange(1, 9))) for _ in range(100_000))


@pytest.mark.parametrize("between", [" ", "\n"])
def test_a_long_document_is_the_same_wherever_it_is_cut(between: str) -> None:
    found = [long_text(between), "first\n" + long_text(between)]
    ours, exact = sets(found, 3), [shingle_set(text, 3) for text in found]
    assert [len(one) for one in ours] == [len(one) for one in exact]
    assert len(ours[0] & ours[1]) == len(exact[0] & exact[1])


def test_a_cut_where_there_is_no_space_costs_a_few_shingles() -> None:
    text = long_text("，")
    cuts = len(text) // 2**17
    assert cuts >= 3
    ours, exact = sets([text, "first" + text], 3), shingle_set(text, 3)
    assert abs(len(ours[0]) - len(exact)) <= 4 * cuts
    assert len(ours[0] & ours[1]) >= len(exact) - 8 * cuts


def test_ten_megabytes_of_chinese_without_a_space() -> None:
    chance = random.Random(0)
    text = "".join(chance.choices([chr(code) for code in range(0x4E00, 0x9FA6)], k=3_300_000))
    assert len(text.encode()) > 9_000_000
    rows = shingles([text], 5)
    assert len(rows.values) == len(text) - 4
    assert len(set(rows.values.tolist())) == len(text) - 4  # a repeated one of 20,902**5 would be a wonder


def test_hashes_are_spread_evenly() -> None:
    """Each bit of a hash is set in half of them, whatever the text: MinHash needs it."""
    text = " ".join(f"{number}" for number in range(100_000))
    found = shingles([text], 5).values
    for bit in range(64):
        share = ((found >> np.uint64(bit)) & np.uint64(1)).mean()
        assert abs(share - 0.5) < 0.01  # six deviations of chance


def test_the_hashes_never_change() -> None:
    """Tasks of a job that goes on with another version must agree with those that are done."""
    text = "One two, THREE four_4 five; 六"
    assert words(text) == ["one", "two", "three", "four_4", "five", "六"]
    assert shingles([text, "short"], 5).values.tolist() == [
        5756207751442335222,
        133465642677217284,
        15101359320313389336,
    ]
