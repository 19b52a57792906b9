"""A terminal that is closed: the run saves and leaves, or, under nohup, goes on."""

from __future__ import annotations

import os
import pty
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.train.runs import last_state, steps, write_config

PATIENCE_S = 240


class InTerminal:
    """A command whose terminal is ours, as a window's is the window's."""

    def __init__(self, command: Sequence[str], folder: Path):
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may themselves run under nohup
            os.execvpe(command[0], list(command), {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PACKAGE})
        os.set_blocking(self.terminal, False)

    def wait_for(self, done: Path, count: int) -> None:
        """Wait until the file has so many lines; meanwhile read what is printed, as a window does."""
        deadline = time.monotonic() + PATIENCE_S
        said = b""
        while not done.exists() or len(done.read_bytes().splitlines()) < count:
            with suppress(BlockingIOError, OSError):
                said += os.read(self.terminal, 65536)
            assert time.monotonic() < deadline, said.decode(errors="replace")
            assert os.waitpid(self.process, os.WNOHANG) == (0, 0), said.decode(errors="replace")
            time.sleep(0.02)

    def close(self) -> None:
        """Close the window: whoever is in the terminal is sent SIGHUP, and what it prints is refused."""
        os.close(self.terminal)

    def ended(self) -> int:
        """The exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := os.waitpid(self.process, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < deadline, "the command hangs"
            time.sleep(0.05)
        return os.waitstatus_to_exitcode(found[1])


PACKAGE = os.environ.get("PYTHONPATH", str(Path(__file__).parents[2]))


@contextmanager
def in_terminal(command: Sequence[str], folder: Path) -> Iterator[InTerminal]:
    window = InTerminal(command, folder)
    try:
        yield window
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(window.process, signal.SIGKILL)
            os.waitpid(window.process, 0)


def command_of(verb: str, config: Path) -> list[str]:
    several = ["--nproc", "2"] if verb == "launch" else []
    return [sys.executable, "-m", "internevo", verb, str(config), *several]


VERBS = ["train", pytest.param("launch", marks=pytest.mark.slow)]


@pytest.mark.parametrize("verb", VERBS)
def test_a_closed_terminal_saves_and_leaves(tmp_path: Path, verb: str) -> None:
    config = write_config(tmp_path, stages=[{"name": "only", "train": {"steps": 3000}}], checkpoint={"every": 0})
    run = tmp_path / "runs" / "run"
    with in_terminal(command_of(verb, config), tmp_path) as window:
        window.wait_for(run / "metrics.jsonl", 3)
        window.close()
        assert window.ended() == 128 + signal.SIGHUP
    done = len(steps(run))
    assert 3 <= done < 3000
    assert last_state(run)["step"] == done


@pytest.mark.parametrize("verb", VERBS)
def test_nohup_outlives_its_terminal(tmp_path: Path, verb: str) -> None:
    config = write_config(tmp_path, stages=[{"name": "only", "train": {"steps": 12}}])
    run = tmp_path / "runs" / "run"
    with in_terminal(["nohup", *command_of(verb, config)], tmp_path) as window:
        window.wait_for(run / "metrics.jsonl", 2)
        window.close()
        assert window.ended() == 0
    assert [line["step"] for line in steps(run)] == list(range(1, 13))
    assert "next: internevo report" in (tmp_path / "nohup.out").read_text()
