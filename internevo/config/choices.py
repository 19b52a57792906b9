"""What a key of text may say, written where its field is: `precision: Literal["bf16", "fp32"]`.

With `Annotated[Literal[...], Instead({...})]` the refusal of a value that a person may expect says why. With
`OrYours()` the key may also name code of the user's own.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from internevo.files.errors import UserError

_YOURS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Instead:
    """Values that are not offered, and for each why, and what there is instead."""

    reasons: Mapping[str, str]


@dataclass(frozen=True)
class OrYours:
    """Beside the choices, `PACKAGE.MODULE:NAME` is allowed: code that Python can import on every rank."""


def is_yours(value: str) -> bool:
    """Whether the value has the form `PACKAGE.MODULE:NAME`."""
    return _YOURS.fullmatch(value) is not None


def choose(value: str, known: Mapping[str, Any]) -> Any:
    """What `value` names: one of the known, or, as `PACKAGE.MODULE:NAME`, what Python imports from there.

    Raises UserError when nothing can be imported.
    """
    if value in known:
        return known[value]
    module, _, name = value.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
        if not callable(found):
            raise AttributeError(f"{name} is a {type(found).__name__}, neither a class nor a function")
        return found
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{value} cannot be imported ({error}). It must be PACKAGE.MODULE:NAME, and its package be installed or in "
            "a folder of PYTHONPATH."
        ) from error
