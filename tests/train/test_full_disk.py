"""A checkpoint that the disk has no room for: one sentence, nothing half written, and the same command resumes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.runs import finish, start, write_config

ROOM = 300_000
"""Bytes that a file may have: more than any record of the run, and less than its weights."""


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("processes", [1, 2])
def test_it_is_told_and_nothing_is_left(tmp_path: Path, processes: int, asynchronous: bool) -> None:
    # the kernel refuses bytes past the limit as it refuses those of a full disk, and any user can set it
    config = write_config(tmp_path, checkpoint={"every": 3, "asynchronous": asynchronous})
    verb = ["train", str(config)] if processes == 1 else ["launch", str(config), "--nproc", str(processes)]
    full = subprocess.run(
        [sys.executable, "-m", "internevo", *verb, "data.eval_tokens=0"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, resource.RLIM_INFINITY)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = full.stdout + full.stderr
    assert full.returncode == 2, said
    assert "Traceback" not in said
    assert said.count("error: step 3 is not saved: ") == 1, said
    assert "step-000003.partial" in said
    assert "There is no checkpoint yet; the same command begins again." in said
    assert not list((tmp_path / "runs" / "run" / "checkpoints").iterdir())
    again = start(*verb, "data.eval_tokens=0")
    assert "step" in finish(again)
    assert again.returncode == 0
