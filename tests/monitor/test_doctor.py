"""The table of what is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from internevo.monitor.doctor import broken_imports, examine


def test_it_knows_what_is_there_and_what_is_not() -> None:
    by_name = {one.name: one for one in examine()}
    assert by_name["torch"].good
    assert by_name["torch"].found.startswith(torch.__version__.split("+")[0])
    assert by_name["GPUs"].good == torch.cuda.is_available()
    assert not by_name["vllm"].good
    assert by_name["vllm"].remedy == "pip install vllm"
    assert all(one.remedy for one in by_name.values() if not one.good)
    assert broken_imports() == []


def test_a_missing_command_is_told(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "internevo", "doctor"],
        env={**os.environ, "PATH": str(tmp_path), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(" sbatch")]
    assert "missing" in line
    assert "load Slurm's module" in line
