"""The examples of docs/extending.md run, and do what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from internevo.model import transformer
from internevo.train.step import StepResult, train_step
from tests.parallel.jobs import ALONE, LR, engine_of, next_batches, stage_of
from tests.test_repository import ROOT


def examples() -> dict[str, Any]:
    """What the page's blocks of Python define, run one after the other."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "docs/extending.md", "exec"), names)
    return names


@pytest.mark.parametrize(("name", "recorded"), [("Watched", "feed_forward/largest input"), ("Gated", "gatekeeper")])
def test_an_example_trains(name: str, recorded: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(transformer.FEED_FORWARDS, "dense", examples()[name])
    engine = engine_of(stage_of({"micro_batch": 4}), ALONE)
    (batch,) = next_batches(store, engine, 1)
    result: StepResult = train_step(engine, engine.stage_batch(batch), LR)
    assert list(result.recorded) == [recorded]
    assert result.recorded[recorded] > 0
