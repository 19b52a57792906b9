"""How a number of a step is shown, said once where the number is declared: `loss: Annotated[float, Shown(...)]`."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Column:
    """A column of the console: its head, its width in characters, and a format for `str.format`."""

    head: str
    width: int
    format: str

    def cell(self, value: float | None) -> str:
        """The number, right-aligned; a dash for none."""
        return f"{'–' if value is None else self.format.format(value):>{self.width}}"


@dataclass(frozen=True)
class Chart:
    """A chart of the report; colours are numbered. `smooth` adds a smoothed line."""

    title: str
    unit: str = ""
    label: str = "each step"
    colour: int = 0
    smooth: bool = False
    options: Mapping[str, Any] | None = None
    """What `report.js` knows: zero, log, percent, height."""


@dataclass(frozen=True)
class Shown:
    """A number that wandb and TensorBoard show as a curve, and the console and the report if it says how."""

    column: Column | None = None
    chart: Chart | None = None
    share: bool = False
    """Whether it is a share of a peak: above 1 it is not shown, as the peak was measured too low."""


@cache
def shown(schema: type) -> dict[str, Shown]:
    """The numbers of a dataclass that are shown, by field."""
    hints = typing.get_type_hints(schema, include_extras=True).items()
    return {name: one for name, hint in hints for one in getattr(hint, "__metadata__", ()) if isinstance(one, Shown)}
