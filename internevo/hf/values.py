"""Values of a `config.json`, each of the kind that it must be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from internevo.files.errors import UserError


def number(file: Path, key: str, value: Any, *, least: float = -math.inf, above: float = -math.inf) -> float:
    """A finite number that is at least `least` and above `above`. Raises UserError, which names the key."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{file}: {key} must be a number, found {value!r}")
    if value < least or value <= above:
        bound = f"at least {least:g}" if value < least else f"above {above:g}"
        raise UserError(f"{file}: {key} must be {bound}, found {value!r}")
    return float(value)


def whole(file: Path, key: str, value: Any) -> int:
    """A whole number from 1 on. Raises UserError, which names the key."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{file}: {key} must be a whole number from 1 on, found {value!r}")
    return value


def truth(file: Path, key: str, value: Any) -> bool:
    """True or false. Raises UserError, which names the key."""
    if not isinstance(value, bool):
        raise UserError(f"{file}: {key} must be true or false, found {value!r}")
    return value
