"""Smoothed curves follow what they smooth: no lag behind a loss that falls, at the ends neither."""

from __future__ import annotations

import math

import numpy as np
import pytest

from internevo.monitor.smoothing import WIDTHS, smooth, widths


def test_a_falling_loss_is_not_lagged_behind() -> None:
    """As a run begins: from 9 nats towards 3, most of it within 40 steps. A trailing average is 0.7 nats off here."""
    noise = np.random.default_rng(0).normal(0, 0.05, 200)
    clean = [3 + 6 * math.exp(-step / 25) for step in range(1, 201)]
    curve = smooth([value + error for value, error in zip(clean, noise.tolist(), strict=True)], 10)
    assert abs(curve[29] - clean[29]) < 0.1
    assert max(abs(a - b) for a, b in zip(curve, clean, strict=True)) < 0.2


@pytest.mark.parametrize("width", WIDTHS)
def test_wide_smoothing_does_not_lag_early_in_a_run_either(width: int) -> None:
    clean = [2 + 8 * math.exp(-step / 15) for step in range(1, 401)]
    curve = smooth(clean, width)
    assert max(abs(a - b) for a, b in zip(curve, clean, strict=True) if a is not None) < 0.2


@pytest.mark.parametrize("width", WIDTHS)
def test_a_straight_line_stays_one_also_at_its_ends(width: int) -> None:
    line = [5 - 0.01 * step for step in range(120)]
    assert smooth(line, width) == pytest.approx(line, abs=1e-9)


def test_it_smooths() -> None:
    noise = np.random.default_rng(1).normal(0, 1, 2000).tolist()
    spread = [float(np.std([v for v in smooth(noise, width) if v is not None])) for width in WIDTHS]
    assert spread == sorted(spread, reverse=True)
    assert spread[0] < 0.4


def test_it_is_the_weighted_fit_of_numpy() -> None:
    values = np.random.default_rng(2).normal(0, 1, 60).tolist()
    values[10] = values[11] = None
    got = smooth(values, 10)
    for at in (30, 45, 59):  # before, fewer steps are looked at
        near = [i for i in range(max(0, at - 10), min(60, at + 11)) if values[i] is not None]
        weight = [(1 - (abs(i - at) / 11) ** 3) ** 3 for i in near]
        fit = np.polyfit([i - at for i in near], [values[i] for i in near], 1, w=np.sqrt(weight))
        assert got[at] == pytest.approx(float(fit[1]), abs=1e-9)
    assert got[10] is got[11] is None


@pytest.mark.parametrize("values", [[], [None], [2.0], [None, 2.0, None], [1.0, None, 3.0], [1e30, 1.0, 2.0]])
def test_little_and_odd(values: list[float | None]) -> None:
    for curve in widths(values).values():
        assert [one is None for one in curve] == [one is None for one in values]
