"""A rank of a machine with several GPUs uses its own alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu.numbers import NOOP


def test_a_rank_makes_no_context_on_another_gpu(tmp_path: Path) -> None:
    """With the loader's and the checkpoint's thread: each process's context on GPU 0 would take some 500 MB there."""
    if not NOOP and torch.cuda.device_count() == 1:
        pytest.skip("needs two GPUs")
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.on_last_gpu", str(tmp_path)],
        env=os.environ | {"NOGPU_DEVICES": "8"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
