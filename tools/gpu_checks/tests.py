"""tests/gpu by pytest, each test's outcome written down when it is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from .parts import Part
from .record import Records
from .work import AGAIN, State

ROOT = Path(__file__).parents[2]
OUTCOMES = {"passed": "right", "failed": "failed", "skipped": "not run"}


def run(part: Part, records: Records, state: State) -> int:
    """Run those that are not done yet; the exit code."""
    # this tool's own test would begin another day
    options = ["--ignore=tests/gpu/test_gpu_day.py", "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
    outcomes = Outcomes(part, records, state)
    pytest.main([str(ROOT / "tests" / "gpu"), *options], [outcomes])
    return AGAIN if outcomes.lost else 0


class Outcomes:
    """The plugin that does it."""

    def __init__(self, part: Part, records: Records, state: State):
        self.part, self.records, self.state = part, records, state
        self.lost = False

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid not in self.state.done]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.state.begin(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        told = ""
        if report.outcome != "passed":
            told = str(report.longrepr).strip().splitlines()[-1][:400]
            self.lost = "CUDA error" in str(report.longrepr)
        self.records.add(self.part.name, report.nodeid, OUTCOMES[report.outcome], told, seconds=report.duration)
        self.state.end(report.nodeid)

    def pytest_runtest_logfinish(self) -> None:
        if self.lost:  # every call would fail from here on
            self.state.begin("")
            pytest.exit("the GPU can be used in another process only", returncode=0)
