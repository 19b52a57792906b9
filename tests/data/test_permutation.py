"""The permutation that shuffles documents without being stored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.data.permutation import Permutation

keys = st.integers(0, 2**64 - 1)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), keys)
def test_every_index_comes_once(size: int, key: int) -> None:
    permutation = Permutation(size, key)
    order = permutation(np.arange(size))
    assert order.dtype == np.int64
    assert np.array_equal(permutation.all(), order)
    assert sorted(order.tolist()) == list(range(size))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2**48), keys, st.data())
def test_any_part_can_be_asked_for_alone(size: int, key: int, data: st.DataObject) -> None:
    some = data.draw(st.lists(st.integers(0, size - 1), max_size=20))
    permutation = Permutation(size, key)
    together = permutation(np.array(some, dtype=np.int64))
    assert together.tolist() == [int(permutation(np.array([one]))[0]) for one in some]
    assert len(set(together.tolist())) == len(set(some))
    assert all(0 <= one < size for one in together)


def test_two_keys_give_orders_that_have_nothing_in_common() -> None:
    size = 100_000
    orders = [Permutation(size, key)(np.arange(size)) for key in range(4)]
    identity = np.arange(size)
    for i, order in enumerate(orders):
        for other in (identity, *orders[:i]):
            assert abs(np.corrcoef(order, other)[0, 1]) < 0.02  # six deviations of chance are 0.019
            assert (order == other).sum() < 12  # one place in a hundred thousand agrees by chance
        neighbours = np.abs(np.diff(order))
        assert abs(neighbours.mean() / (size / 3) - 1) < 0.02  # the mean distance of two random places


def test_small_sizes_reach_every_order() -> None:
    seen = {tuple(Permutation(4, key)(np.arange(4)).tolist()) for key in range(2000)}
    assert len(seen) == 24


def test_the_order_of_a_run_never_changes() -> None:
    """A resumed run must find its place in the order that an earlier version of the code made."""
    assert Permutation(10, 7)(np.arange(10)).tolist() == [2, 1, 9, 0, 6, 4, 3, 8, 7, 5]
    assert Permutation(10**12, 7)(np.arange(3)).tolist() == [897617841545, 481054340462, 889383764228]


def test_nothing_cannot_be_permuted() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Permutation(0, 1)


def test_the_worked_example_of_its_file() -> None:
    assert Permutation(5, 1).all().tolist() == [1, 2, 4, 0, 3]
