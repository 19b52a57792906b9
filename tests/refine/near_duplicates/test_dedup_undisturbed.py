"""Deduplication in any order, on any number of processes, killed anywhere: the same bytes."""

from __future__ import annotations

import multiprocessing
import random
import signal
from functools import partial
from pathlib import Path

import pytest

from internevo.refine.near_duplicates import dedup
from internevo.refine.near_duplicates.dedup import Dedup
from tests.refine.near_duplicates.planted import deduplicated, mixture
from tests.refine.running import (
    dropped,
    kept,
    output,
    place_of,
    run_phases,
    run_phases_in_processes,
    run_until_killed,
)


def test_neither_order_nor_shards_nor_processes_change_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = mixture()
    place = deduplicated(tmp_path / "plain", documents, shards=5)
    expected = output(place)
    assert len(dropped(place)) > 300

    shuffled = place_of(tmp_path / "shuffled", documents, 5)
    run_phases(Dedup(), shuffled, random.Random(0))
    assert output(shuffled) == expected

    processes = place_of(tmp_path / "processes", documents, 5)
    run_phases_in_processes(Dedup(), processes, 3)
    assert output(processes) == expected

    monkeypatch.setattr(dedup, "_SHARDS_OF_A_PART", 2)  # three parts of each band
    monkeypatch.setattr(dedup, "_BATCH", 1000)
    for shards in (1, 7):
        other = deduplicated(tmp_path / str(shards), documents, shards=shards)
        assert kept(other) == kept(place)
        assert dropped(other) == dropped(place)


def test_killed_anywhere_and_run_again(tmp_path: Path) -> None:
    documents = mixture(20)
    expected = output(deduplicated(tmp_path / "whole", documents))
    place = place_of(tmp_path / "killed", documents, 3)
    context, moment, deaths = multiprocessing.get_context("spawn"), 5, 0
    while True:
        process = context.Process(target=partial(run_until_killed, Dedup(), place, moment))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        deaths += 1
        moment += 7
    assert deaths >= 4
    assert output(place) == expected
