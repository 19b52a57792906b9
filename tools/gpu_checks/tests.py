"""tests/gpu by pytest, each test's outcome written down when it is known."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from .parts import Part
from .record import Records
from .work import AGAIN, State

ROOT = Path(__file__).parents[2]
OUTCOMES = {"passed": "right", "failed": "failed", "skipped": "not run"}


def run(part: Part, records: Records, state: State) -> int:
    """Run those that are not done yet; the exit code."""
    outcomes = Outcomes(part, records, state)
    quiet = ["-o", "addopts=-q -p no:logging --tb=line --no-summary --no-header", "-p", "no:cacheprovider"]
    # this tool's own test would begin another day
    chosen = [str(ROOT / "tests" / "gpu"), "--ignore", str(ROOT / "tests" / "gpu" / "test_gpu_day.py")]
    with redirect_stdout(sys.stderr):
        code = pytest.main([*chosen, "--continue-on-collection-errors", "--rootdir", str(ROOT), *quiet], [outcomes])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        records.add(part.name, "pytest", "failed", f"pytest ended with {pytest.ExitCode(code).name}")
    return AGAIN if outcomes.lost else 0


class Outcomes:
    """The plugin that does it."""

    def __init__(self, part: Part, records: Records, state: State):
        self.part, self.records, self.state = part, records, state
        self.lost = False
        """Whether every call of CUDA's fails from here on."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid not in self.state.done]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:  # of a file that cannot be imported, no test is known
            told = str(report.longrepr).strip().splitlines()[-1][:400]
            self.records.add(self.part.name, report.nodeid or "collection", "failed", told)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.state.begin(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        told = "" if report.outcome == "passed" else _why(report)
        self.lost = "CUDA error" in told
        self.records.add(self.part.name, report.nodeid, OUTCOMES[report.outcome], told, seconds=report.duration)
        self.state.end(report.nodeid)

    def pytest_runtest_logfinish(self) -> None:
        if self.lost:
            self.state.begin("")
            pytest.exit("the rest needs another process", returncode=0)


def _why(report: pytest.TestReport) -> str:
    """What went wrong and where, or why it was skipped."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:
        return str(report.longrepr).strip().splitlines()[-1][:400]
    return f"{crash.message.splitlines()[0][:300]} [{Path(crash.path).name}:{crash.lineno}]"
