"""Signatures and bands against exact similarities and the formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.refine.near_duplicates.minhash import Bands, band_hashes, bands_for, signatures
from internevo.refine.near_duplicates.ragged import Ragged, running


def pairs_of_sets(generator: np.random.Generator, pairs: int, common: int, own: int) -> Ragged:
    """Two sets and two sets, each two with so many hashes in common and so many of their own."""
    size = common + own
    hashes = generator.integers(0, 2**64, (pairs, 2, size), dtype=np.uint64)
    hashes[:, 1, :common] = hashes[:, 0, :common]
    return Ragged(hashes.reshape(-1), running(np.full(2 * pairs, size)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(0, 400), st.integers(0, 2**32))
def test_places_that_agree_estimate_the_similarity(common: int, own: int, seed: int) -> None:
    pairs, hashes = 64, 128
    signed = signatures(pairs_of_sets(np.random.default_rng(seed), pairs, common, own), hashes)
    estimates = (signed[::2] == signed[1::2]).mean(axis=1)
    exact = common / (common + 2 * own)
    deviation = (exact * (1 - exact) / hashes) ** 0.5
    assert abs(estimates.mean() - exact) <= 6 * deviation / pairs**0.5
    assert np.abs(estimates - exact).max() <= 6 * deviation


@pytest.mark.parametrize("similarity", [0.4, 0.6, 0.7, 0.8])
def test_bands_find_what_the_formula_says(similarity: float) -> None:
    pairs, common = 2000, 200
    own = round((common / similarity - common) / 2)
    bands = bands_for(128, 0.7)
    hashed = band_hashes(signatures(pairs_of_sets(np.random.default_rng(0), pairs, common, own), 128), bands)
    assert hashed.shape == (bands.count, 2 * pairs)
    share = (hashed[:, ::2] == hashed[:, 1::2]).any(axis=0).mean()
    expected = bands.found(common / (common + 2 * own))
    # rensa's places are a little less independent than the formula has them, which moves it by up to 0.02
    assert abs(share - expected) < 0.02 + 6 * (expected * (1 - expected) / pairs) ** 0.5


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 512), st.floats(0.01, 1))
def test_bands_miss_few_at_the_threshold_and_are_as_long_as_they_can_be(hashes: int, threshold: float) -> None:
    bands = bands_for(hashes, threshold)
    assert 1 <= bands.count * bands.rows <= hashes
    if bands.rows > 1:
        assert bands.found(threshold) >= 0.98
    if bands.rows < hashes:
        longer = Bands(hashes // (bands.rows + 1), bands.rows + 1)
        assert longer.found(threshold) < 0.98


def test_bands_of_the_defaults() -> None:
    bands = bands_for(128, 0.7)
    assert (bands.count, bands.rows) == (25, 5)
    assert bands.found(0.7) == pytest.approx(0.98995, abs=1e-5)
    assert bands.found(0.8) == pytest.approx(0.99995, abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 6))
def test_bands_are_equal_where_all_their_hashes_are(seed: int, count: int, rows: int) -> None:
    generator = np.random.default_rng(seed)
    signed = generator.integers(0, 2, (40, count * rows + 1), dtype=np.uint32)  # many agree
    hashed = band_hashes(signed, Bands(count, rows))
    for band in range(count):
        part = [tuple(row) for row in signed[:, band * rows : (band + 1) * rows].tolist()]
        assert [part[0] == one for one in part] == (hashed[band] == hashed[band, 0]).tolist()


def test_a_set_is_the_same_in_any_order_and_with_repetitions() -> None:
    generator = np.random.default_rng(1)
    found = generator.integers(0, 2**64, 300, dtype=np.uint64)
    again = generator.permutation(np.concatenate([found, found[:50], found[:7]]))
    signed = signatures(Ragged(np.concatenate([found, again]), np.array([0, 300, 657])), 128)
    assert (signed[0] == signed[1]).all()


def test_the_signatures_never_change() -> None:
    """A job that goes on with another version of the library must agree with what is done."""
    signed = signatures(Ragged(np.arange(1000, dtype=np.uint64) * 2654435761, np.array([0, 999, 1000])), 4)
    assert signed.tolist() == [[1738519, 4727788, 511304, 7135804], [3324065521, 4080489653, 197063594, 2028819655]]
