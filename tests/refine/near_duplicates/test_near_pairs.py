"""Pairs of a band against all pairs of its buckets."""

from __future__ import annotations

from itertools import combinations

import networkx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.refine.near_duplicates.near_pairs import near_pairs


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=40), st.randoms())
def test_links_what_is_alike_in_a_bucket(documents: list[tuple[int, int]], chance: object) -> None:
    """Documents of a kind are alike: those of a bucket are linked, through others or directly, and no more."""
    kinds = np.array([kind for _, kind in documents], np.int64)
    hashes = np.array([bucket for bucket, _ in documents], np.uint64)
    order = np.array(sorted(range(len(documents)), key=lambda _: chance.random()), np.int64)  # type: ignore[attr-defined]
    found = near_pairs(hashes[order], order, lambda left, right: kinds[left] == kinds[right])
    ours = networkx.Graph(found.tolist())
    every = networkx.Graph([(i, j) for i, j in combinations(range(len(documents)), 2) if documents[i] == documents[j]])
    assert {frozenset(one) for one in networkx.connected_components(ours)} == {
        frozenset(one) for one in networkx.connected_components(every)
    }
    assert (
        found == near_pairs(hashes, np.arange(len(documents)), lambda left, right: kinds[left] == kinds[right])
    ).all()


def test_a_large_bucket_takes_a_bounded_number_of_comparisons_a_document() -> None:
    count, compared = 200_000, 0

    def alike(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(left)
        return left % 50_000 == right % 50_000

    found = near_pairs(np.zeros(count, np.uint64), np.arange(count), alike)
    assert compared <= 16 * count
    assert sorted(map(tuple, found.tolist())) == [
        (centre, centre + step) for centre in range(16) for step in range(50_000, count, 50_000)
    ]


def test_a_bucket_of_the_same_takes_one_comparison_a_document() -> None:
    calls = []

    def alike(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        calls.append(len(left))
        return np.ones(len(left), bool)

    found = near_pairs(np.zeros(100_000, np.uint64), np.arange(100_000), alike)
    assert calls == [99_999]
    assert (found[:, 0] == 0).all()
    assert (found[:, 1] == np.arange(1, 100_000)).all()
