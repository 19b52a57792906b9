"""A user's own functions and classes by name, `module:attribute`; and what scores a text: such a function, or a
classifier's file."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from internevo.files.errors import UserError
from internevo.refine.step import NotJudged

Scorer = Callable[[str], float]


def named_object(name: str, key: str) -> Any:
    """What `module:attribute` names. Raises UserError, which begins with `key`, when it cannot be imported."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise UserError(f"{key}: expected `module:attribute`, found {name!r}")
    try:
        found = getattr(import_module(module), attribute)
    except ImportError as error:
        raise UserError(f"{key}: {module} cannot be imported: {error}. Is its folder in PYTHONPATH?") from None
    except AttributeError:
        raise UserError(f"{key}: {module} has no {attribute!r}") from None
    if not callable(found):
        raise UserError(f"{key}: {name} cannot be called")
    return found


def check_scorer(key: str, name: str | None) -> None:
    """Raises UserError when it is a function that cannot be loaded."""
    if name and _in_module(name):
        named_object(name, key)


def scorer_files(name: str | None) -> list[Path]:
    """Its file, unless it is a function."""
    return [Path(name)] if name and not _in_module(name) else []


def _in_module(name: str) -> bool:
    return ":" in name and not Path(name).exists()


@lru_cache(maxsize=8)
def scorer(name: str) -> Scorer:
    """The function, loaded once in a process. It raises NotJudged for scores that no threshold drops, as NaN."""
    if _in_module(name):
        function = named_object(name, "classifier")
    else:
        from internevo.refine.classifier import load_classifier

        function = load_classifier(Path(name)).score

    def finite(text: str) -> float:
        score = float(function(text))
        if not math.isfinite(score):
            raise NotJudged(f"{name} gave the score {score}")
        return score

    return finite
