"""Under a locale without most characters: names of files are UTF-8, and no console ends a run."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from internevo.tokens.train_tokenizer import train_tokenizer
from tests.train.runs import write_config, write_store

NO_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ASCII_CONSOLE = {"PYTHONIOENCODING": "ascii"}


def internevo(environment: dict[str, str], *arguments: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "internevo", *arguments]
    return subprocess.run(
        command, capture_output=True, cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, timeout=300
    )


def good(environment: dict[str, str], *arguments: str, cwd: Path) -> str:
    """What it prints, which must be ASCII."""
    done = internevo(environment, *arguments, cwd=cwd)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout.decode("ascii")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and a run whose names are Chinese, and a tokenizer of Chinese text."""
    folder = tmp_path_factory.mktemp("here")
    draw = random.Random(0)
    words = ["数据", "Käse", *("".join(draw.choices("abcdefghij", k=5)) for _ in range(500))]
    train_tokenizer([" ".join(draw.choices(words, k=5000)), "数据"], folder / "分词.model", 512)
    write_store(folder / "数据", 50, 0)
    path = write_config(folder, stages=[])
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    tree |= {"name": "语言", "tokenizer": "分词.model", "runs": "runs"}
    tree["data"] |= {"sources": [{"path": "数据"}]}
    tree["train"] |= {"steps": 4}
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_a_run_begins_resumes_and_is_used_without_a_locale(here: Path) -> None:
    said = good(NO_LOCALE, "train", "config.yaml", "train.steps=8", "--until", "4", cwd=here)
    assert "held out" in said
    assert r"\u6570\u636e" in said  # the source's name
    assert (here / "runs" / "语言" / "checkpoints").is_dir()
    said = good(NO_LOCALE, "train", "config.yaml", "train.steps=8", cwd=here)
    assert "resuming after step 4" in said
    good(NO_LOCALE, "report", "runs/语言", cwd=here)
    assert "数据" in (here / "runs" / "语言" / "report.html").read_text(encoding="utf-8")
    good(NO_LOCALE, "data", "inspect", "数据", "--tokenizer", "分词.model", "--page", "页.html", cwd=here)
    good(NO_LOCALE, "export", "runs/语言", "出口", "--format", "llama", cwd=here)
    assert r"\u6570" in good(NO_LOCALE, "generate", "出口", "--prompt", "数据", "--tokens", "2", cwd=here)


@pytest.mark.slow
def test_a_console_without_a_character_ends_no_run(here: Path) -> None:
    said = good(ASCII_CONSOLE, "train", "config.yaml", "name=ascii", cwd=here)
    assert "next: internevo report runs/ascii - internevo generate" in said.replace("\n", " ")


def test_progress_and_tables_are_shown_in_ascii(here: Path) -> None:
    said = good(ASCII_CONSOLE, "data", "inspect", "数据", cwd=here)
    assert "####" in said
    assert "--prompt" in good(ASCII_CONSOLE, "generate", "--help", cwd=here)


def test_a_mistake_is_told_without_a_locale(here: Path) -> None:
    done = internevo(NO_LOCALE, "config", "没有.yaml", cwd=here)
    assert done.returncode == 2
    assert done.stderr.decode("ascii").strip() == r"error: \u6ca1\u6709.yaml does not exist"
