"""Functions from a text to a number, by name: `module:attribute`, or the file of a classifier that was trained here."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from internevo.refine.failures import NotJudged
from internevo.refine.named import named_object

Scorer = Callable[[str], float]


def check_scorer(key: str, name: str | None) -> None:
    """Raises UserError when it is a function that cannot be loaded."""
    if name and _in_module(name):
        named_object(name, key)


def scorer_files(name: str | None) -> list[Path]:
    """The file that it is, if it is one."""
    return [Path(name)] if name and not _in_module(name) else []


def _in_module(name: str) -> bool:
    return ":" in name and not Path(name).exists()


@lru_cache(maxsize=8)
def scorer(name: str) -> Scorer:
    """The function, loaded once in a process. It raises NotJudged for a score that is not finite: no threshold would
    ever drop that."""
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
