"""How a number of a step is shown, said once where the number is declared: `loss: Annotated[float, Shown(...)]`."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Shown:
    """wandb and TensorBoard show it as a curve; the console and the report where it says how."""

    title: str = ""
    """Of its chart in the report; no chart without."""
    unit: str = ""
    label: str = "each step"
    colour: int = 0
    smooth: bool = False
    """Whether the chart has a smoothed line too."""
    options: Mapping[str, Any] | None = None
    """Of the chart, as `report.js` knows them: zero, log, percent, height."""
    head: str = ""
    """Of its column in the console; no column without."""
    width: int = 0
    format: str = "{:.4g}"
    share: bool = False
    """Whether it is a share of a peak: above 1 it is not shown, as the peak was measured too low."""

    def cell(self, value: float | None) -> str:
        """The number in its column, right-aligned; a dash for none."""
        return f"{'–' if value is None else self.format.format(value):>{self.width}}"


@cache
def shown(schema: type) -> dict[str, Shown]:
    """The numbers of a dataclass that are shown, by field."""
    hints = typing.get_type_hints(schema, include_extras=True).items()
    return {name: one for name, hint in hints for one in getattr(hint, "__metadata__", ()) if isinstance(one, Shown)}
