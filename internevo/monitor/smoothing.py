"""Smoothed curves that do not lag: at each step a straight line fitted to the steps around it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WIDTHS = (10, 30, 100, 300)  # steps to each side that a reader of the page can choose
_LEAST = 2


def smooth(values: Sequence[float | None], width: int) -> list[float | None]:
    """Each value replaced by that of a line fitted to the values up to `width` steps before and after it.

    The nearer ones weigh more (tricube weights, as in lowess). A trailing average of a falling loss is too high by as
    much as the loss falls within its memory; a line through both sides follows the slope, also at the ends, where one
    side is missing. Early in a run, where the loss falls fast, no more than a third of the steps so far are looked at
    to each side: at step 30, ten. Gaps stay gaps, and no line is fitted through what is not there.
    """
    curve = _fitted(values, width)
    for at in range(min(len(values), 3 * width)):
        near = min(width, max(_LEAST, at // 3))
        first = max(0, at - near)
        curve[at] = _fitted(values[first : at + near + 1], near)[at - first]
    return curve


def _fitted(values: Sequence[float | None], width: int) -> list[float | None]:
    """The same with one width for all."""
    there = np.array([value is not None for value in values], bool)
    if not there.any():
        return [None] * len(values)
    y = np.array([0.0 if value is None else float(value) for value in values])
    away = np.arange(-width, width + 1)
    weight = (1 - np.abs(away / (width + 1)) ** 3) ** 3

    def summed(kernel: np.ndarray, of: np.ndarray) -> np.ndarray:
        # convolution turns the kernel round; that of odd powers of the distance changes its sign
        return np.convolve(of, kernel[::-1])[width : width + len(of)]

    s0, s1, s2 = (summed(weight * away**power, there.astype(float)) for power in range(3))
    t0, t1 = (summed(weight * away**power, y) for power in range(2))
    with np.errstate(all="ignore"):
        spread = s0 * s2 - s1 * s1
        line = (s2 * t0 - s1 * t1) / spread
        found = np.where(spread > 1e-9 * s0 * s0, line, t0 / s0)
    return [float(value) if ok and np.isfinite(value) else None for value, ok in zip(found, there, strict=True)]


def widths(values: Sequence[float | None]) -> dict[str, list[float | None]]:
    """A curve for each width that a reader can choose; `0` has the values as they are."""
    return {"0": list(values), **{str(width): smooth(values, width) for width in WIDTHS}}


def control() -> str:
    """The choice of a width, as HTML, for all curves that have several."""
    options = (("0", "none"), *((str(width), f"{width} steps to each side") for width in WIDTHS))
    chosen = str(WIDTHS[0])
    listed = "".join(f'<option value="{v}"{" selected" if v == chosen else ""}>{word}</option>' for v, word in options)
    return f'<label>smoothing: <select id="smoothing">{listed}</select></label>'
