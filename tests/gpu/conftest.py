"""Tests that need a GPU: `make test-gpu`. Where there is none they are skipped, and say so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.gpu.numbers import NOOP, excused

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {item.name}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Let a test's report carry which of its assertions were excused, from a worker too."""
    item.user_properties += [("excused", name) for name in excused]
    excused.clear()
    return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not NOOP:
        return
    reports = (one for group in terminalreporter.stats.values() for one in group if isinstance(one, pytest.TestReport))
    properties = (pair for one in reports if one.when == "teardown" for pair in one.user_properties)
    names = Counter(name for key, name in properties if key == "excused")
    told = ", ".join(f"{name} ({count})" for name, count in names.most_common()) or "none"
    terminalreporter.write_line(f"the GPU was a driver that does nothing; assertions about numbers excused: {told}")


@pytest.fixture
def gpu() -> torch.device:
    """The GPU, with nothing left on it from the test before."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.device("cuda")
