"""How much context helps: against plain sums over a small adaptive model, and where texts are cut."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internevo.files.errors import UserError
from internevo.refine.long.context_gain import Segments, context_gains
from internevo.refine.long.perplexity_difference import NO_GAIN, TOO_SHORT, PerplexityDifference
from internevo.refine.shards import Document
from tests.refine.running import dropped, kept, output, place_of, run_phases

VOCAB = 0x3000


class Adaptive:
    """A language model that expects the characters that it has seen: P(c) = (count(c) + 1) / (seen + VOCAB)."""

    def __init__(self, model: str = "", max_tokens: int = 10**9, device: str = "cpu"):
        self.max_tokens = max_tokens

    def encode(self, text: str) -> np.ndarray:
        return np.array([ord(sign) % VOCAB for sign in text], np.int64)

    def log_likelihoods(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float]:
        return [self._one(prefix.tolist(), ids.tolist()) for prefix, ids in pairs]

    def _one(self, prefix: list[int], ids: list[int]) -> float:
        assert len(prefix) + len(ids) < self.max_tokens
        seen, total = Counter(prefix), 0.0
        for number, token in enumerate(ids):
            total += math.log((seen[token] + 1) / (len(prefix) + number + VOCAB))
            seen[token] += 1
        return total / len(ids)


class Letters(Adaptive):
    """The same for few characters, where context tells much."""

    def encode(self, text: str) -> np.ndarray:
        return np.array([ord(sign) % 97 for sign in text], np.int64)


@given(
    st.text(st.characters(max_codepoint=0x2FFF, exclude_categories=["Cs"]) | st.sampled_from(" \n"), max_size=400),
    st.builds(Segments, st.integers(1, 20), st.integers(1, 20), st.integers(0, 30), st.integers(1, 4)),
)
def test_segments_stand_where_they_should(text: str, segments: Segments) -> None:
    pairs = list(segments.of(text, Adaptive()))
    assert len(pairs) <= segments.cuts
    ends = []
    for first, second in pairs:
        before, behind = ("".join(map(chr, ids)) for ids in (first, second))
        assert 1 <= len(before) <= segments.context_tokens
        assert 1 <= len(behind) <= segments.target_tokens
        # they are of the text, with the gap between, in which no line and no word near by is torn
        found = [
            (end, begin)
            for end in range(len(before), len(text) + 1)
            if text[:end].endswith(before)
            for begin in range(end + segments.gap_characters, len(text))
            if text[begin:].startswith(behind)
        ]
        assert found
        ends.append(found)
    for number in range(segments.cuts):
        at = len(text) * (number + 1) // (segments.cuts + 1)
        if len(pairs) == segments.cuts:
            assert any(at <= end < max(at + 256, at + 1) for end, _ in ends[number])


def test_cuts_are_made_between_lines_or_words() -> None:
    (pair,) = Segments(100, 100, 0, 1).of("one two three four\nfive six", Adaptive())
    assert ["".join(map(chr, ids)) for ids in pair] == ["one two three four", "\nfive six"]
    (pair,) = Segments(6, 7, 0, 1).of("one two three four five six", Adaptive())
    assert ["".join(map(chr, ids)) for ids in pair] == [" three"[-6:], " four f"]
    (pair,) = Segments(3, 3, 2, 1).of("a" * 20 + "b" * 80, Adaptive())
    assert ["".join(map(chr, ids)) for ids in pair] == ["bbb", "bbb"]


def test_gains_are_those_of_plain_sums() -> None:
    model, segments = Adaptive(), Segments(50, 30, 10, 3)
    chance = random.Random(0)
    texts = ["".join(chance.choices("abcdefgh \n", k=length)) for length in (2, 60, 500, 1000)] + ["", "x"]
    for text, gain in zip(texts, context_gains(texts, segments, model), strict=True):
        pairs = list(segments.of(text, model))
        if not pairs:
            assert gain is None
            continue
        given = [model.log_likelihoods([pair])[0] for pair in pairs]
        alone = [model.log_likelihoods([(np.empty(0, np.int64), second)])[0] for _, second in pairs]
        assert gain == pytest.approx((sum(given) - sum(alone)) / len(pairs), abs=1e-12)


HERE = "tests.refine.long.test_context_gain"


def test_texts_are_sifted_by_their_gains(tmp_path: Path) -> None:
    chance = random.Random(1)
    halves = ["".join(chance.choices(letters, k=600)) for letters in ("abc", "xyz")]
    documents = [Document(one * 2, f"one-{n}") for n, one in enumerate(halves)] * 10
    documents += [Document(halves[0] + halves[1], "two"), Document("a", "short")]
    place = place_of(tmp_path, documents, 3)
    step = PerplexityDifference(
        model="any", scorer=f"{HERE}:Letters", context_tokens=200, target_tokens=100, cuts=1, min_gain=0.01
    )
    run_phases(step, place, chance)
    assert {one.metadata["reason"]: one.id for one in dropped(place)} == {NO_GAIN: "two", TOO_SHORT: "short"}
    assert len(kept(place)) == 20
    assert all(one.metadata["context_gain"] >= 0.01 for one in kept(place))
    before = output(place)
    run_phases(step, place)
    assert output(place) == before


def test_a_missing_model_is_told_at_once() -> None:
    with pytest.raises(UserError, match=r"perplexity_difference\.model"):
        PerplexityDifference()


def test_a_scorer_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"perplexity_difference\.scorer"):
        PerplexityDifference(model="x", scorer="no_such:one").phases(place_of(tmp_path, [], 1))
    assert PerplexityDifference(model=str(tmp_path / "none")).files() == [tmp_path / "none"]
