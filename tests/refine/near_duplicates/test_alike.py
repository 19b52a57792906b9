"""Whether two documents are alike, against exact similarities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from internevo.refine.near_duplicates import near_pairs
from internevo.refine.near_duplicates.bottom_sketch import bottom_sketches
from internevo.refine.near_duplicates.minhash import signatures
from internevo.refine.near_duplicates.near_pairs import SKETCH, alike_in
from internevo.refine.near_duplicates.ragged import Ragged, running
from internevo.refine.near_duplicates.signed_shard import SignedBatch, SignedShards, key_of, write_signed_shard


def test_pairs_of_all_similarities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of a thousand hashes, one in either shard. What is in memory together makes no difference."""
    pairs, size = 600, 1000
    generator = np.random.default_rng(0)
    common = np.linspace(0, size, pairs).astype(int)
    two = generator.integers(0, 2**64, (2, pairs, size), dtype=np.uint64)
    for number, shared in enumerate(common):
        two[1, number, :shared] = two[0, number, :shared]
    for shard in range(2):
        shingles = Ragged(two[shard].reshape(-1), running(np.full(pairs, size)))
        bands = np.zeros((1, pairs), np.uint64)
        sketches = bottom_sketches(shingles, SKETCH)
        batch = SignedBatch(signatures(shingles, 128), bands, sketches, priorities=[0] * pairs, ids=["id"] * pairs)
        write_signed_shard(tmp_path / f"{shard:05}", [batch])
    order = generator.permutation(pairs)
    left, right = key_of(0, order), key_of(1, order)
    exact = common / (2 * size - common)
    for threshold in (0.3, 0.7, 0.9, 1.0):
        found = alike_in(SignedShards(tmp_path, 2), threshold, left, right)
        assert (found == (exact >= threshold)[order]).all()
        with monkeypatch.context() as patch:
            patch.setattr(near_pairs, "_SIGNATURES", 100)
            patch.setattr(near_pairs, "_SKETCHES", 7)
            assert (alike_in(SignedShards(tmp_path, 2), threshold, left, right) == found).all()
