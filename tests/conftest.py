"""One pool of ranks for each world size, started when a test first needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.parallel.jobs import write_documents
from tests.parallel.ranks import RankPool


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[[int], RankPool]]:
    """`ranks(n)` is a pool of `n` ranks; a pool that a failure ended is started anew."""
    pools: dict[int, RankPool] = {}

    def get(world: int) -> RankPool:
        if world not in pools or not pools[world].alive:
            pools[world] = RankPool(world)
        return pools[world]

    yield get
    for pool in pools.values():
        pool.close()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of wildly different lengths, for every test of layouts."""
    return write_documents(tmp_path_factory.mktemp("documents") / "train")
