"""Learning rates against curves written out by hand."""

from __future__ import annotations

import math

import pytest

from internevo.config.schema import OptimizerConfig, ScheduleConfig, StageConfig, TrainConfig
from internevo.optim.schedule import learning_rate


def stage(steps: int, lr: float = 1.0, **schedule) -> StageConfig:
    return StageConfig(
        optimizer=OptimizerConfig(lr=lr), schedule=ScheduleConfig(**schedule), train=TrainConfig(steps=steps)
    )


def curve(stages: list[StageConfig], number: int) -> list[float]:
    steps = stages[number].train.steps
    assert steps is not None
    return [learning_rate(stages, number, step) for step in range(steps)]


def test_constant() -> None:
    assert curve([stage(4, name="constant", final=0.1)], 0) == [1.0] * 4


def test_linear_with_warmup() -> None:
    got = curve([stage(6, name="linear", warmup=2, final=0.0)], 0)
    assert got == pytest.approx([0.5, 1.0, 1.0, 2 / 3, 1 / 3, 0.0])


def test_cosine_starts_at_the_peak_halves_in_the_middle_and_ends_at_final() -> None:
    got = curve([stage(101, lr=2.0, name="cosine", final=0.1)], 0)
    assert got[0] == pytest.approx(2.0)
    assert got[50] == pytest.approx(2.0 * 0.55)
    assert got[100] == pytest.approx(0.2)
    assert got[25] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))))


def test_wsd_is_flat_then_linear() -> None:
    got = curve([stage(101, name="wsd", decay=0.2, final=0.0)], 0)
    assert got[:81] == pytest.approx([1.0] * 81)
    assert got[90] == pytest.approx(0.5)
    assert got[100] == pytest.approx(0.0)


def test_a_later_stage_warms_up_from_where_the_one_before_ended() -> None:
    stages = [stage(10, lr=1.0, name="linear", final=0.5), stage(10, lr=2.0, name="constant", warmup=3)]
    assert curve(stages, 1)[:4] == pytest.approx([1.0, 1.5, 2.0, 2.0])
    stages[1].schedule.warmup = 0
    assert curve(stages, 1)[0] == 2.0


def test_one_curve_over_the_run() -> None:
    whole = curve([stage(30, name="cosine", warmup=5)], 0)
    parts = [stage(10, name="cosine", warmup=5, over="run"), stage(20, name="cosine", warmup=5, over="run")]
    assert curve(parts, 0) + curve(parts, 1) == pytest.approx(whole)


def test_a_stage_of_one_step() -> None:
    assert curve([stage(1, name="cosine")], 0) == [1.0]
