"""What parts of a model record, and their losses, are the same under every layout: values and gradients."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from internevo.files.errors import UserError
from internevo.model.metrics import Combine, record
from internevo.parallel.world import World
from tests.parallel.jobs import ALONE, engine_of, stage_of, train
from tests.parallel.recording import train_measured
from tests.parallel.test_layouts import LAYOUTS, shape_of

MORE: dict[str, tuple[int, dict[str, Any]]] = {
    "one rank, micro-batches of 3, recompute": (1, {"micro_batch": 3, "recompute": "full"}),
    "one rank, recompute selective": (1, {"recompute": "selective", "micro_batch": 2}),
    "one rank, compiled, recompute": (1, {"compile": True, "recompute": "selective", "micro_batch": 4}),
    "one rank, compiled, recompute all": (1, {"compile": True, "recompute": "full", "micro_batch": 4}),
    "tp2, compiled": (2, {"tensor": 2, "compile": True, "micro_batch": 4}),
    "pp2, zbv, recompute": (2, {"pipeline": 2, "schedule": "zbv", "recompute": "full"}),
    "dp2 x pp2, 1f1b, compiled": (4, {"pipeline": 2, "compile": True, "zero": 2}),
    "dp2 x tp2 x pp2, no sequence parallelism": (8, {"tensor": 2, "pipeline": 2, "sequence": False, "micro_batch": 2}),
}
LIGHT = [
    "one rank, micro-batches of 3, recompute",
    "dp2, zero 3, micro-batches of 2, recompute",
    "tp2",
    "tp2, no sequence parallelism",
    "pp2, zbv",
]
ROWS = [pytest.param(name, marks=[pytest.mark.heavy] * (name not in LIGHT)) for name in {**MORE, **LAYOUTS}]
STEPS = 3


@cache
def reference(store: Path, **shape: Any) -> Any:
    """One rank, one micro-batch."""
    torch.set_num_threads(1)
    return train_measured(ALONE, {"micro_batch": 8, **shape}, store, STEPS)


@pytest.mark.parametrize("name", ROWS)
def test_a_layout_records_the_same(name: str, store: Path, ranks: Any) -> None:
    world, changes = {**MORE, **LAYOUTS}[name]
    expected, values, _ = reference(store, **shape_of(changes))
    if world == 1:
        results = [train_measured(ALONE, changes, store, STEPS)]
    else:
        results = ranks(world).run(train_measured, changes, store, STEPS)
    for result in results:
        assert result[0].losses == results[0][0].losses
        assert result[1] == results[0][1]  # every rank says the same
    got, recorded, _ = results[0]
    assert got.losses == pytest.approx(expected.losses, rel=1e-4)
    assert got.norms[0] == pytest.approx(expected.norms[0], rel=1e-4)
    for step, (ours, theirs) in enumerate(zip(recorded, values, strict=True)):
        assert ours.pop("rank") == world - 1
        expected_values = {key: value for key, value in theirs.items() if key != "rank"}
        assert ours == pytest.approx(expected_values, rel=1e-3 if step else 1e-4, abs=1e-6)
    assert set(got.gradients) == set(expected.gradients)
    for key, gradient in expected.gradients.items():
        error = (got.gradients[key] - gradient).norm() / gradient.norm()
        assert error < 1e-4, (key, float(error))


@pytest.mark.parametrize(("world", "changes"), [(2, {"zero": 1}), (2, {"pipeline": 2, "schedule": "zbv"})])
def test_recording_takes_one_message_a_step_and_none_where_nothing_is_recorded(
    world: int, changes: dict[str, Any], store: Path, ranks: Any
) -> None:
    measured = ranks(world).run(train_measured, changes, store, 2)
    usual = ranks(world).run(train_measured, changes, store, 2, 1.0, False)
    plain = ranks(world).run(train, changes, store, 2)
    for (_, recorded, messages), (trained, nothing, without), same in zip(measured, usual, plain, strict=True):
        assert recorded[1]
        assert nothing == [{}, {}]
        assert messages == without + 1
        assert trained.losses == same.losses


@pytest.mark.parametrize("changes", [{"zero": 3}, {"pipeline": 2}])
def test_the_main_loss_is_reported_without_the_others(changes: dict[str, Any], store: Path, ranks: Any) -> None:
    with_losses, recorded, _ = ranks(2).run(train_measured, changes, store, 1)[0]
    without, zeros, _ = ranks(2).run(train_measured, changes, store, 1, 0.0)[0]
    assert with_losses.losses == without.losses
    assert with_losses.norms[0] > 1.1 * without.norms[0]
    for name in ("router z", "inner", "residual"):
        assert recorded[0][name] > 0 == zeros[0][name]


def test_ranks_that_combine_one_name_in_two_ways_say_so(ranks: Any) -> None:
    for told in ranks(2).run(record_in_two_ways):
        assert told == "ranks record 'waited' to be combined in two ways: use two names."


def record_in_two_ways(world: World) -> str:
    """What a rank is told."""
    engine = engine_of(stage_of({}), world)
    record(engine, "waited", 1.0, Combine.max if world.main else Combine.min)
    with pytest.raises(UserError) as error:
        engine.recorder.gather(engine, engine.device)
    return str(error.value)


@pytest.mark.parametrize("name", ["tp2", "pp2, zbv"])
def test_a_layout_records_the_same_in_bf16(name: str, store: Path, ranks: Any) -> None:
    world, changes = LAYOUTS[name]
    expected, values, _ = reference(store, precision="bf16")
    got, recorded, _ = ranks(world).run(train_measured, {**changes, "precision": "bf16"}, store, STEPS)[0]
    assert got.losses == pytest.approx(expected.losses, rel=5e-3)
    assert got.norms[0] == pytest.approx(expected.norms[0], rel=1e-2)
    for ours, theirs in zip(recorded, values, strict=True):
        for key in ("router z", "inner", "residual", "stream", "inner total", "total"):
            assert ours[key] == pytest.approx(theirs[key], rel=2e-2), key
    for key, gradient in expected.gradients.items():
        error = (got.gradients[key] - gradient).norm() / gradient.norm()
        assert error < 3e-2, (key, float(error))
