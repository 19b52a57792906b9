"""Whatever became of a run's files, each verb that reads them works or says in a sentence what is wrong.

A finished run is copied, one of its files is damaged, and a verb is run on it. `DAMAGE_ROUNDS=2000` makes it a long
search; every round has a seed of its own, which a failure names.
"""

from __future__ import annotations

import os
import random
import shutil
import traceback
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml

from internevo.tokens.train_tokenizer import train_tokenizer
from tests.monitor.children import command, fill_disk, in_child
from tests.monitor.damage import damage, reseal, restore
from tests.train.runs import write_store

pytestmark = pytest.mark.slow
ROUNDS = int(os.environ.get("DAMAGE_ROUNDS", "24"))
FIRST = int(os.environ.get("DAMAGE_FIRST", "0"))
VOCAB = 300


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, a store, a sweep's file and the sweep's one run, finished and profiled."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("damaged")
    os.chdir(folder)
    train_tokenizer([f"number {n} of several words, {n * n} and {n % 7}" for n in range(500)], Path("t.model"), VOCAB)
    write_store(Path("tokens/web"), 60, 0, VOCAB)
    model = {
        "hidden": 32,
        "layers": 1,
        "vocab": VOCAB,
        "attention": {"heads": 2, "kv_heads": 1},
        "feed_forward": {"width": 48},
    }
    tree = {
        "name": "none",
        "model": model,
        "tokenizer": "t.model",
        "schedule": {"warmup": 1},
        "train": {"seq_len": 32, "batch_tokens": 64, "micro_batch": 2, "precision": "fp32", "device": "cpu"},
        "checkpoint": {"every": 2, "asynchronous": False},
        "monitor": {"profile": {"first": 1, "steps": 1}},
        "data": {"sources": [{"path": "tokens/web"}], "eval_tokens": 100, "eval_every": 2},
        "stages": [
            {"name": "base", "train": {"steps": 3}},
            {"name": "long", "train": {"steps": 2, "seq_len": 64, "micro_batch": 1}},
        ],
    }
    Path("config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    Path("sweep.yaml").write_text(
        "name: s\nconfig: config.yaml\nlist: [{name: run, optimizer.lr: 1e-3}]\n", encoding="utf-8"
    )
    assert command("sweep", "sweep.yaml", "--run", "0") == 0
    assert command("eval", "runs/s/run", "--watch", "--tokens", "64", "--device", "cpu") == 0
    shutil.copytree("runs", "whole")
    return folder


def verbs(chance: random.Random, work: Path) -> Sequence[str | Path]:
    run = "runs/s/run"
    return chance.choice(
        [
            ("report", run),
            ("report", run),
            ("verify", run),
            ("generate", run, "--tokens", "2"),
            ("eval", run, "--tokens", "64", "--device", "cpu", "--out", work / "eval"),
            ("eval", run, "--watch", "--tokens", "64", "--device", "cpu"),
            ("export", run, work / "export"),
            ("train", "config.yaml", "name=run", "runs=runs/s", "optimizer.lr=1e-3"),
            ("sweep", "sweep.yaml", "--show"),
        ]
    )


def victims(folder: Path) -> list[Path]:
    """What a verb reads back. The tensors' own files are many bytes of which one is like another."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".html", ".gz", ".log"))
    return [path for path in found if path.name != ".lock"]


@pytest.mark.parametrize("seed", range(FIRST, FIRST + ROUNDS))
def test_a_damaged_run(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    monkeypatch.chdir(whole)
    restore(whole / "whole", whole / "runs")
    chance = random.Random(seed)
    groups: dict[str, list[Path]] = {}
    for path in victims(whole / "runs"):
        groups.setdefault(path.name.partition("_")[0], []).append(path)  # each kind of file as often as another
    file = chance.choice(groups[chance.choice(sorted(groups))])
    done = damage(file, chance)
    if file.parent.name.startswith("step-") and file.name != "manifest.json" and chance.random() < 0.7:
        reseal(file.parent)
        done += ", with checksums that fit"
    verb = verbs(chance, tmp_path)
    told = f"seed {seed}: {file.relative_to(whole)}: {done}; then {' '.join(map(str, verb))}"
    try:
        code = command(*verb)
    except BaseException:  # of torch's own some are no Exception
        pytest.fail(f"{told}\n{traceback.format_exc()}", pytrace=False)
    printed = capsys.readouterr()
    assert code in (0, 1, 2), told
    assert (code == 2) == ("error:" in printed.err), f"{told}\n{printed.err}"
    assert "\x1b[31m" not in printed.out + printed.err, told


def test_a_disk_that_is_full_under_an_export(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole)
    restore(whole / "whole", whole / "runs")

    def export() -> int:
        fill_disk(10_000)
        return command("export", "runs/s/run", tmp_path / "out")

    code, printed = in_child(tmp_path / "log", export)
    assert code == 2, printed
    assert "error: File too large" in printed
    assert "Traceback" not in printed
    assert [path.name for path in tmp_path.iterdir()] == ["log"]  # a full disk does not stay full
