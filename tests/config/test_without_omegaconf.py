"""Without omegaconf: stages are built from dataclasses, engines are imported, and only YAML cannot be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HIDE = "import sys; sys.modules['omegaconf'] = None\n"


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HIDE + code]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


def test_everything_else_is_there() -> None:
    names = [f"tests.gpu.{path.stem}" for path in sorted((ROOT / "tests" / "gpu").glob("test_*.py"))]
    names += ["internevo.cli.verbs", "internevo.quickstart.run", "tools.bench_gpu_case"]
    code = f"import importlib\nfor name in {names}: importlib.import_module(name)\n"
    code += "from internevo.config.presets import model_preset\n"
    code += "from internevo.config.schema import StageConfig\n"
    code += "print(StageConfig(model=model_preset('tiny')).model.layers)"
    done = python(code, ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_a_command_that_reads_yaml_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: run\nmodel: {preset: tiny}\n")
    for command in (["config", "run.yaml"], ["train", "run.yaml"], ["quickstart", "--out", "quickstart"]):
        done = python(f"sys.argv = {['internevo', *command]}\nimport internevo.cli as c; c.main()", tmp_path)
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert "read by omegaconf, which cannot be imported" in line
        assert "pip install omegaconf" in line
    assert [path.name for path in (tmp_path / "quickstart").iterdir()] == ["config.yaml"]
