"""Every schedule of a pipeline with every ZeRO, recomputation, precision, compiled and not: the whole table.

Each combination loads, and trains the same model as one rank: its first step's loss, gradient norm and every gradient.
Two steps are trained, so that the second has weights and gradients as the first one left them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from internevo.config.load import load_config
from internevo.model.budget import activation_bytes
from internevo.model.recompute import Policy
from internevo.parallel.block_settings import compute_dtype
from internevo.parallel.pipeline import in_flight
from internevo.train.build import check_engine
from tests.parallel.jobs import ALONE, ROWS, SEQ_LEN, Trained, notes_of, stage_of, train, train_strictly
from tests.test_repository import ROOT

LAYERS, STEPS = 6, 2
"""Enough blocks for a stage of two."""
SCHEDULES, PRECISIONS = ("1f1b", "interleaved", "zbv"), ("fp32", "bf16")
RECOMPUTE = ("none", "selective", "full", "budget")

Row = tuple[str, int, str, bool, str]
"""Schedule, ZeRO stage, recomputation, whether compiled, precision."""
TABLE: list[Row] = list(product(SCHEDULES, (1, 2, 3), RECOMPUTE, (False, True), PRECISIONS))
LIGHT: list[Row] = [
    ("zbv", 3, "none", False, "fp32"),
    ("zbv", 1, "selective", False, "fp32"),
    ("zbv", 2, "budget", False, "bf16"),
    ("interleaved", 3, "selective", False, "fp32"),
]
"""Those that every test run trains; the others are heavy."""


def rows() -> Iterator[Any]:
    for row in TABLE:
        name = f"{row[0]}, zero {row[1]}, {row[2]}{', compiled' * row[3]}, {row[4]}"
        yield pytest.param(row, id=name, marks=[pytest.mark.heavy] * (row not in LIGHT))


def changes_of(row: Row) -> dict[str, Any]:
    schedule, zero, recompute, compiled, precision = row
    changes = {"pipeline": 2, "schedule": schedule, "zero": zero, "layers": LAYERS, "compile": compiled}
    changes |= {"recompute": recompute, "precision": precision}
    if recompute == "budget":
        # not quite two blocks: a stage of one recomputes nothing, the others some of theirs
        stage = stage_of(changes)
        kept = SEQ_LEN * in_flight(stage.parallel.pipeline, ROWS)
        size = compute_dtype(stage).itemsize
        changes["activation_gib"] = 1.9 * kept * activation_bytes(stage.model, Policy.none, size) / 2**30
    return changes


@cache
def reference(store: Path, precision: str) -> Trained:
    """One rank, uncompiled, which recomputes nothing."""
    torch.set_num_threads(1)
    return train(ALONE, {"micro_batch": 8, "precision": precision, "layers": LAYERS}, store, STEPS)


@pytest.mark.parametrize("row", list(rows()))
def test_a_combination_trains_the_same_model(row: Row, store: Path, ranks: Any) -> None:
    expected = reference(store, row[-1])
    got = ranks(2).run(train_strictly, changes_of(row), store, STEPS)[0]
    loss, norm, every = (1e-5, 1e-4, 1e-4) if row[-1] == "fp32" else (5e-3, 1e-2, 3e-2)
    assert got.digests == expected.digests
    assert got.losses == pytest.approx(expected.losses, rel=loss)
    assert got.norms == pytest.approx(expected.norms, rel=norm)
    assert set(got.gradients) == set(expected.gradients)
    for key, gradient in expected.gradients.items():
        error = (got.gradients[key] - gradient).norm() / gradient.norm()
        assert error < every, (key, float(error))


def test_every_combination_loads(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("{name: run, model: {preset: tiny, layers: 6}, data: {sources: [{path: web}]}}")
    usual = ("train={seq_len: 64, batch_tokens: 512, micro_batch: 1, steps: 2}", "parallel.pipeline.size=2")
    for schedule, zero, recompute, compiled, precision in TABLE:
        keys = {"parallel.pipeline.schedule": schedule, "parallel.zero.stage": zero, "train.precision": precision}
        keys |= {"train.recompute": recompute, "train.compile": str(compiled).lower()}
        keys |= {"train.activation_gib": 1} if recompute == "budget" else {}
        load_config(config, [*usual, *(f"{key}={value}" for key, value in keys.items())], check_data=False)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_shipped_config_in_a_pipeline_is_in_the_table(schedule: str) -> None:
    overrides = [f"parallel.pipeline={{size: 2, schedule: {schedule}}}"]
    config = load_config(ROOT / "configs" / "internlm2-7b.yaml", overrides, check_data=False)
    for stage in config.stages:
        check_engine(stage, 16, torch.device("cpu"))
        train, zero = stage.train, stage.parallel.zero.stage
        assert (schedule, zero, train.recompute, train.compile, train.precision) in TABLE


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ""),
        ({"recompute": "full"}, "2 of this rank's 2 parts (train.recompute=full); where it splits none"),
        ({"zero": 3, "compile": True}, "2 of this rank's 2 parts (train.compile=true, parallel.zero.stage=3)"),
        ({**changes_of(("zbv", 1, "budget", False, "fp32"))}, "1 of this rank's 2 parts (train.recompute=budget)"),
    ],
)
def test_backward_passes_that_zbv_does_not_split_are_told(changes: dict[str, Any], told: str, ranks: Any) -> None:
    notes = ranks(2).run(notes_of, {"pipeline": 2, "schedule": "zbv", **changes})[0]
    assert len(notes) == bool(told)
    assert told in "".join(notes)
    assert not ranks(2).run(notes_of, {"pipeline": 2, **changes, "schedule": "1f1b"})[0]
