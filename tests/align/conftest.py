"""Models that talk, trained once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.align.talkers import talker


@pytest.fixture(scope="session")
def chatml_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned to answer in ChatML; its data and its tokenizer are elsewhere and gone."""
    run = talker(tmp_path_factory.mktemp("chatml"), "ChatML")
    return run.rename(tmp_path_factory.mktemp("moved") / "talker")
