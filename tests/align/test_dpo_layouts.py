"""Every layout learns the same preferences as one rank."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.align.pair_stores import random_pairs, write_pairs
from tests.align.preference_jobs import Learned, learn
from tests.parallel.jobs import ALONE, SEQ_LEN, VOCAB
from tests.parallel.test_layouts import LAYOUTS, shape_of

LIGHT = ("dp2, zero 3", "tp2", "ring2", "pp2, tied head", "ulysses2", "pp2, interleaved, 1 micro-batch")
HEAVY = (
    "dp2 x tp2, zero 3, tied head, qkv bias",
    "ring2, micro-batches of 2",
    "ulysses2 x ring2",
    "pp2, zbv, tied head",
    "ring2 x tp2",
    "tp2 x pp2, zbv, micro-batches of 2",
    "dp4, hybrid zero 3, 2x2",
    "ring2 x ulysses2 x pp2, zero 3",
)
STEPS = 3


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two sources, each with references that make some pairs preferred and others not."""
    found = []
    for number, name in enumerate(("manners", "facts")):
        pairs = random_pairs(60, VOCAB, SEQ_LEN // 2 - 2, seed=number)
        draw = np.random.default_rng(number)
        given = np.array([[-(len(side.ids) - side.first) * 6.3 for side in pair] for pair in pairs])
        found.append(write_pairs(tmp_path_factory.mktemp("pairs") / name, pairs, given + draw.normal(0, 3, (60, 2))))
    return found


@cache
def alone(stores: tuple[Path, ...], **shape: Any) -> Learned:
    """One rank, all rows in one micro-batch."""
    torch.set_num_threads(1)
    return learn(ALONE, {"micro_batch": 8, **shape}, list(stores), STEPS)


@pytest.mark.parametrize("name", [*LIGHT, *(pytest.param(one, marks=pytest.mark.heavy) for one in HEAVY)])
def test_a_layout_learns_the_same(name: str, stores: list[Path], ranks: Any) -> None:
    world, changes = LAYOUTS[name]
    expected = alone(tuple(stores), **shape_of(changes))
    results = ranks(world).run(learn, changes, stores, STEPS)
    for result in results:
        assert result.digests == expected.digests
        assert result.losses == results[0].losses
        assert result.recorded == results[0].recorded
        assert result.held_out == results[0].held_out == pytest.approx(expected.held_out, rel=1e-4)
    got = results[0]
    assert got.losses[0] == pytest.approx(expected.losses[0], rel=1e-5)
    assert got.losses == pytest.approx(expected.losses, rel=1e-3)
    assert got.norms[0] == pytest.approx(expected.norms[0], rel=1e-4)
    assert set(got.gradients) == set(expected.gradients)
    for key, gradient in expected.gradients.items():
        assert (got.gradients[key] - gradient).norm() <= 1e-4 * gradient.norm(), key
    kinds = [f"pairs/{name}" for name in ("chosen", "rejected")]
    kinds += [f"pairs/{name}{of}" for name in ("accuracy", "margin") for of in ("", " facts", " manners")]
    assert sorted(got.recorded[0]) == sorted(expected.recorded[0]) == sorted(kinds)
    assert 0 < expected.recorded[0]["pairs/accuracy"] < 1
    assert sorted(expected.held_out) == ["loss", "pairs/accuracy", "pairs/loss", "pairs/margin"]
    assert expected.recorded[0]["pairs/margin facts"] != expected.recorded[0]["pairs/margin manners"]
    for kind in kinds:
        assert got.recorded[0][kind] == pytest.approx(expected.recorded[0][kind], rel=1e-4, abs=1e-4), kind
