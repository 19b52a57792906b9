"""What is known of shards' documents, written and found again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.refine.near_duplicates.ragged import Ragged, running
from internevo.refine.near_duplicates.signed_shard import (
    SignedBatch,
    SignedShards,
    by_shard,
    key_of,
    write_signed_shard,
)

HASHES, BANDS = 6, 3


class Plain:
    """Shards of random values, in lists."""

    def __init__(self, sizes: list[int], generator: np.random.Generator):
        self.keys = [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
        count = len(self.keys)
        self.signatures = generator.integers(0, 2**32, (count, HASHES), dtype=np.uint32)
        self.bands = generator.integers(0, 4, (BANDS, count), dtype=np.uint64) << np.uint64(62)
        self.sketches = [generator.integers(0, 2**32, generator.integers(0, 9), dtype=np.uint32) for _ in self.keys]
        self.priorities = generator.integers(-(2**63), 2**63 - 1, count)
        self.ids = [f"id {number} 中" for number in range(count)]

    def write(self, folder: Path, sizes: list[int], batch: int) -> None:
        begin = 0
        for shard, size in enumerate(sizes):
            end = begin + size
            batches = (self.batch(slice(at, min(at + batch, end))) for at in range(begin, end, batch))
            write_signed_shard(folder / f"{shard:05}", batches)
            begin = end

    def batch(self, at: slice) -> SignedBatch:
        lengths = np.array([len(one) for one in self.sketches[at]], np.int64)
        sketches = Ragged(np.concatenate(self.sketches[at]), running(lengths))
        priorities = self.priorities[at].tolist()
        return SignedBatch(self.signatures[at], self.bands[:, at], sketches, priorities=priorities, ids=self.ids[at])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 2**32), st.data())
def test_all_is_found_again(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], batch: int, seed: int, data: st.DataObject
) -> None:
    plain, folder = Plain(sizes, np.random.default_rng(seed)), tmp_path_factory.mktemp("signed")
    plain.write(folder, sizes, batch)
    shards = SignedShards(folder, len(sizes))
    keys = np.array([key_of(shard, np.array([row]))[0] for shard, row in plain.keys], np.int64)
    assert (np.diff(keys) > 0).all()

    for band in range(BANDS):
        first = data.draw(st.integers(0, 3))
        last = data.draw(st.integers(first, 3))
        hashes, found = shards.band(band, first << 62, (last << 62) + 2**62 - 1)
        quarters = plain.bands[band] >> np.uint64(62)
        inside = (quarters >= first) & (quarters <= last)
        assert sorted(zip(found.tolist(), hashes.tolist(), strict=True)) == sorted(
            zip(keys[inside].tolist(), plain.bands[band][inside].tolist(), strict=True)
        )

    if len(keys):
        numbers = data.draw(st.lists(st.integers(0, len(keys) - 1), min_size=1, max_size=8))
        some = sorted(set(numbers))
        assert (shards.signatures(keys[some]) == plain.signatures[some]).all()
        assert (shards.priorities(keys[some]) == plain.priorities[some]).all()
        sketches = shards.sketches(keys[some])
        assert sketches.values.tolist() == [value for number in some for value in plain.sketches[number].tolist()]
        assert sketches.lengths.tolist() == [len(plain.sketches[number]) for number in some]
        assert shards.ids(keys[numbers]) == [plain.ids[number] for number in numbers]
    assert [shard for shard, _ in by_shard(keys)] == [shard for shard, size in enumerate(sizes) if size]


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[SignedBatch]:
        yield Plain([2], np.random.default_rng(0)).batch(slice(0, 2))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_signed_shard(tmp_path / "00000", failing())
    assert list(tmp_path.iterdir()) == []
