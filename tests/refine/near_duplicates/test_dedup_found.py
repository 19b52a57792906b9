"""What deduplication finds, against exact similarities."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.refine.near_duplicates.dedup import DUPLICATE_OF
from internevo.refine.step import Place
from tests.refine.near_duplicates.planted import ORIGINALS, deduplicated, numbered, originals
from tests.refine.running import dropped, kept
from tools.near_duplicates import altered, exact_pairs, shingle_set, words


def representatives(place: Place, count: int) -> list[int]:
    """Of each document the one that is kept in its place, or itself."""
    found = list(range(count))
    for document in dropped(place):
        found[int(document.id)] = int(document.metadata[DUPLICATE_OF])
    return found


@pytest.mark.parametrize("kind", ORIGINALS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_planted_near_duplicates_are_found_and_nothing_else(
    kind: str, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Versions of all similarities; the hard ones around the threshold are among them."""
    chance = random.Random(seed)
    texts = originals(kind) + [altered(text, chance.uniform(0.3, 1), chance) for text in originals(kind)]
    chance.shuffle(texts)
    place = deduplicated(tmp_path_factory.mktemp("dedup"), numbered(texts))
    representative = representatives(place, len(texts))
    pairs = exact_pairs([shingle_set(text) for text in texts], 0.7)
    clear = [pair for pair, similarity in pairs.items() if similarity >= 0.8]
    assert len(clear) > 50  # some 86 are expected, with a deviation of 8
    found = sum(representative[i] == representative[j] for i, j in clear)
    assert found >= 0.99 * len(clear)
    assert sum(representative[i] == representative[j] for i, j in pairs) >= 0.97 * len(pairs)
    alike = {number for pair in pairs for number in pair}
    gone = [number for number, other in enumerate(representative) if other != number]
    assert sum(number not in alike for number in gone) < 0.01 * len(gone)
    assert len(kept(place)) + len(gone) == len(texts)


def test_long_documents_are_told_apart_by_estimates(tmp_path: Path) -> None:
    """Documents of many more shingles than a sketch has."""
    chance = random.Random(0)
    vocabulary = sorted({word for text in originals("English") for word in words(text)})
    texts = [" ".join(chance.choices(vocabulary, k=6000)) for _ in range(60)]
    targets = [0.5, 0.6, 0.64, 0.76, 0.8, 0.9]
    texts += [altered(text, targets[number % len(targets)], chance) for number, text in enumerate(texts)]
    place = deduplicated(tmp_path, numbered(texts))
    pairs = exact_pairs([shingle_set(text) for text in texts], 0.7)
    assert len(pairs) == 30
    assert {(int(one.metadata[DUPLICATE_OF]), int(one.id)) for one in dropped(place)} == set(pairs)


@settings(max_examples=6, deadline=None)
@given(hashes=st.sampled_from([16, 64, 200]), ngrams=st.integers(1, 8), threshold=st.sampled_from([0.3, 0.5, 0.9, 1.0]))
def test_other_hashes_ngrams_and_thresholds(
    hashes: int, ngrams: int, threshold: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    chance = random.Random(hashes + ngrams)
    texts = originals("English")[:100]
    texts = texts + [altered(text, chance.uniform(0.2, 1), chance, ngrams) for text in texts]
    place = deduplicated(
        tmp_path_factory.mktemp("other"), numbered(texts), hashes=hashes, ngrams=ngrams, threshold=threshold
    )
    representative = representatives(place, len(texts))
    pairs = exact_pairs([shingle_set(text, ngrams) for text in texts], threshold)
    alike = {number for pair in pairs for number in pair}
    gone = [number for number, other in enumerate(representative) if other != number]
    assert sum(number not in alike for number in gone) <= 0.01 * len(gone)
    assert sum(representative[i] == representative[j] for i, j in pairs) >= 0.93 * len(pairs)
