"""Sketches against sets."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.refine.near_duplicates.bottom_sketch import bottom_sketches, similarities
from internevo.refine.near_duplicates.ragged import Ragged, joined, running

sets = st.lists(st.integers(0, 30), min_size=1, max_size=40)


def ragged(rows: list[list[int]]) -> Ragged:
    """Hashes whose upper halves are these numbers."""
    values = np.array([value for row in rows for value in row], np.uint64) << np.uint64(32)
    return Ragged(values, running(np.array([len(row) for row in rows], np.int64)))


def lists(rows: Ragged) -> list[list[int]]:
    return [rows.values[begin:end].tolist() for begin, end in zip(rows.borders[:-1], rows.borders[1:], strict=True)]


@settings(max_examples=200, deadline=None)
@given(st.lists(sets, max_size=8), st.integers(1, 40))
def test_a_sketch_is_the_lowest_hashes_of_a_set(rows: list[list[int]], size: int) -> None:
    assert lists(bottom_sketches(ragged(rows), size)) == [sorted(set(row))[:size] for row in rows]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(sets, sets), min_size=1, max_size=8), st.integers(1, 70))
def test_the_share_in_both_of_the_lowest_of_the_union(pairs: list[tuple[list[int], list[int]]], size: int) -> None:
    left, right = (bottom_sketches(ragged([pair[side] for pair in pairs]), size) for side in (0, 1))
    for (one, other), similarity in zip(pairs, similarities(left, right, size).tolist(), strict=True):
        lowest = sorted({*one, *other})[:size]
        assert similarity == len({*one} & {*other} & {*lowest}) / len(lowest)
        if size >= len({*one, *other}):
            assert similarity == len({*one} & {*other}) / len({*one, *other})


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.1, 0.9))
def test_larger_sets_are_estimated(seed: int, similarity: float) -> None:
    generator = np.random.default_rng(seed)
    common = generator.integers(0, 2**64, 5000, dtype=np.uint64)
    own = round((5000 / similarity - 5000) / 2)
    two = [np.concatenate([common, generator.integers(0, 2**64, own, dtype=np.uint64)]) for _ in range(2)]
    left, right = (bottom_sketches(Ragged(one, np.array([0, len(one)])), 1024) for one in two)
    exact = 5000 / (5000 + 2 * own)
    assert abs(similarities(left, right, 1024)[0] - exact) < 6 * (exact * (1 - exact) / 1024) ** 0.5


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=8), st.data())
def test_rows_of_different_lengths(rows: list[list[int]], data: st.DataObject) -> None:
    some = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    values = np.array([value for row in rows for value in row], np.int64)
    whole = Ragged(values, running(np.array([len(row) for row in rows], np.int64)))
    assert lists(whole[np.array(some, np.int64)]) == [rows[number] for number in some]
    assert lists(joined([whole, whole])) == rows + rows
    assert whole.row_numbers().tolist() == [number for number, row in enumerate(rows) for _ in row]
