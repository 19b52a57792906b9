"""The range of a number, said where its field is: `lr: Annotated[float, Between(0, 1000)]`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Between:
    """From `least` to `most`, both included unless `open_below` or `open_above` says otherwise.

    Of a list, the range of each number in it.
    """

    least: float
    most: float
    open_below: bool = False
    open_above: bool = False

    def problem(self, value: float) -> str | None:
        """What is wrong with the value; None when it is within."""
        if value < self.least or (self.open_below and value == self.least) or math.isnan(value):
            return f"must be {'above' if self.open_below else 'at least'} {shown(self.least)}, found {shown(value)}"
        if value > self.most or (self.open_above and value == self.most):
            return f"must be {'below' if self.open_above else 'at most'} {shown(self.most)}, found {shown(value)}"
        return None

    def __str__(self) -> str:
        least = f"{'above ' if self.open_below else ''}{shown(self.least)}"
        return f"{least} to {'below ' if self.open_above else ''}{shown(self.most)}"


def shown(value: float) -> str:
    """A number as a person reads it: `1,048,576`, `1e+15`, `0.001`."""
    large = abs(value) >= 2**63 or (abs(value) >= 10**12 and value % 10**9 == 0)
    if large or not math.isfinite(value) or value != int(value):
        return f"{value:g}"
    return f"{int(value):,}"


Share = Annotated[float, Between(0, 1)]
Size = Annotated[int, Between(1, 2**20)]
"""Of a part of a model, or ranks."""
Steps = Annotated[int, Between(0, 10**9)]
"""At ten a second, three years."""
Tokens = Annotated[int, Between(0, 10**15)]
"""More than there is text."""
SomeTokens = Annotated[int, Between(1, 10**15)]
Count = Annotated[int, Between(0, 10**12)]
"""Of bytes, characters or words."""
Seed = Annotated[int, Between(0, 2**63 - 1)]
