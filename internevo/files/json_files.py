"""JSON files that may be damaged: read without an exception, so that who reads them can say what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

_LARGEST = 1e100  # no number that was measured is larger, and sums of numbers below it stay finite


def parsed(text: bytes) -> Any:
    """What JSON says, or None where it is damaged."""
    try:
        return json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def read_mapping(path: Path) -> Mapping[str, Any]:
    """A JSON file's mapping; an empty one where there is no such file, or it is damaged."""
    found = parsed(path.read_bytes()) if path.is_file() else None
    return found if isinstance(found, dict) else {}


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether it can be computed and shown with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
