"""What tests of several rooms share, such as pools of ranks: one for each world size, started when first needed."""

from __future__ import annotations

import os
import shutil
import tempfile
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


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that a user without rights may work in, as such a user; the superuser may read everything."""
    folder = Path(tempfile.mkdtemp())  # pytest's own are closed to others
    folder.chmod(0o777)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(before)
    shutil.rmtree(folder)
