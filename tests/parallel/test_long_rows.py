"""Rows of 65,536 tokens over four context ranks: a quarter of the memory each, and no dense mask anywhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from internevo.data.batch import Batch
from internevo.parallel.world import World
from tests.parallel.jobs import VOCAB, engine_of, stage_of
from tests.parallel.ranks import RankPool

TOKENS = 65_536
DOCUMENTS = (12_000, 1, 9_000, 11_000, 3, 512, 10_000, 9_000, 14_020)


def row_of(*lengths: int) -> Batch:
    """One row of documents of these lengths."""
    seq_len = sum(lengths)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (1, seq_len))
    positions = np.concatenate([np.arange(length) for length in lengths])[None]
    labels = np.roll(tokens, -1, axis=1)
    return Batch(tokens, labels, positions, (lengths,), (seq_len,), ("long",), seq_len, slice(0, 1))


def peak_of_a_step(world: World, changes: dict[str, Any]) -> int:
    """Bytes by which the process grows, at most, in the forward and backward passes of one long row."""
    stage = stage_of({**changes, "layers": 2})
    stage.train.seq_len = stage.train.batch_tokens = TOKENS
    engine = engine_of(stage, world)
    # libraries load code and buffers with their first work
    engine.forward_backward(engine.stage_batch(row_of(200, 56)))
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak counts from here
    engine.forward_backward(engine.stage_batch(row_of(*DOCUMENTS)))
    return memory("VmHWM") - before


def memory(key: str) -> int:
    """Bytes, from the kernel's own account of this process."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise AssertionError(key)


def fresh(world: int, changes: dict[str, Any]) -> list[int]:
    """On processes of their own: what earlier work left to the allocator would hide what this one takes."""
    pool = RankPool(world)
    try:
        return pool.run(peak_of_a_step, changes)
    finally:
        pool.close()


@cache
def one_rank() -> int:
    """Its peak."""
    return fresh(1, {})[0]


@pytest.mark.heavy
@pytest.mark.parametrize("ulysses", [1, 2, 4])
def test_a_long_row_takes_a_quarter_of_the_memory(ulysses: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # so that what is freed leaves the process at once
    alone = one_rank()
    assert alone < TOKENS**2 / 4  # far from any mask or matrix of scores
    peaks = fresh(4, {"context": 4, "ulysses": ulysses})
    print(f"one rank {alone / 2**20:,.0f} MiB, four ranks {[round(peak / 2**20) for peak in peaks]} MiB each")
    assert max(peaks) <= 1.25 * alone / 4
