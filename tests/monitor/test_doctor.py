"""The table of what is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
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


def test_every_package_that_something_wants_is_listed() -> None:
    """All of the extras, the refinery's too; those of `dev` but what is another extra are for tests."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    by_name = {one.name: one for one in examine()}
    for extra, packages in project["optional-dependencies"].items():
        for package in packages if extra != "dev" else ():
            name = re.match(r"[\w-]+", package)[0]
            if "[" not in package:  # another extra, or transformers with one
                assert by_name[name].remedy == f"pip install 'internevo[{extra}]'", name
                assert by_name[name].purpose
    assert by_name["warcio"].good
    assert by_name["scikit-learn"].good


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
