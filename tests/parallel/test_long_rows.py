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
DOCUMENTS = (12_000, 1, 9_000, 11_000, 3, 512, 10_000, 9_000)


def peak_of_a_step(world: World, changes: dict[str, Any]) -> int:
    """Bytes by which the process grows, at most, in the forward and backward passes of one long row."""
    stage = stage_of({**changes, "layers": 2})
    stage.train.seq_len = stage.train.batch_tokens = TOKENS
    lengths = (*DOCUMENTS, TOKENS - sum(DOCUMENTS))
    tokens = np.random.default_rng(0).integers(0, VOCAB, (1, TOKENS))
    positions = np.concatenate([np.arange(length) for length in lengths])[None]
    batch = Batch(tokens, np.roll(tokens, -1, axis=1), positions, (lengths,), (TOKENS,), ("long",), TOKENS, slice(0, 1))
    engine = engine_of(stage, world)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    engine.forward_backward(batch)
    return memory("VmHWM") - before


def memory(key: str) -> int:
    """Bytes, from the kernel's own account of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
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
def test_a_long_row_takes_a_quarter_of_the_memory() -> None:
    """On a ring. Ulysses takes a third more than a quarter so far: docs/lab-notes.md."""
    alone = one_rank()
    assert alone < TOKENS**2 / 4  # far from any mask or matrix of scores
    peaks = fresh(4, {"context": 4, "ulysses": 1})
    print(f"one rank {alone / 2**20:,.0f} MiB, four ranks {[round(peak / 2**20) for peak in peaks]} MiB each")
    assert max(peaks) <= 1.25 * alone / 4
