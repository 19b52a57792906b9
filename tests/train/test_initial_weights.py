"""Runs that begin with the weights of another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from internevo.config.load import load_config
from internevo.config.schema import StageConfig
from internevo.data.batch import IGNORE
from internevo.data.loader import evaluation_batches
from internevo.files.errors import UserError
from internevo.hf.imports import import_model
from internevo.monitor.metrics import read_metrics
from internevo.tokens.store import TokenStore
from internevo.train.run import train
from internevo.train.stored_model import open_model
from tests.hf.models import save_theirs
from tests.train.runs import finish, start, write_config


def run_from(tmp_path: Path, source: Path, **changes: Any) -> tuple[Path, Path]:
    """A config of one short stage that begins from `source`, and the folder of its run."""
    train = {"seq_len": 64, "batch_tokens": 512, "micro_batch": 4, "precision": "fp32", "device": "cpu"}
    shape = {
        "hidden": 64,
        "layers": 3,
        "vocab": 512,
        "attention": {"heads": 4, "kv_heads": 2},
        "feed_forward": {"width": 160},
        "rope": {"base": 5e5},
    }
    path = write_config(
        tmp_path,
        model={**shape, **changes},
        train={**train, "init_from": str(source)},
        stages=[{"name": "only", "train": {"steps": 4}}],
    )
    return path, tmp_path / "runs" / "run"


def test_the_first_evaluation_is_that_of_transformers(tmp_path: Path) -> None:
    """The loss before the first step, from the folder, from an import of it, and as transformers computes it."""
    theirs = save_theirs("llama 3", tmp_path / "hf")
    import_model(tmp_path / "hf", tmp_path / "imported")
    losses = []
    for source in ("hf", "imported"):
        (tmp_path / f"from-{source}").mkdir()
        config, run = run_from(tmp_path / f"from-{source}", tmp_path / source)
        assert train(load_config(config), ["test"]) is None
        first = read_metrics(run / "evals.jsonl")[0]
        losses.append(first["loss"])
        log = (run / "logs" / "rank-0000.log").read_text()
        assert f"weights from {tmp_path / source}" in log
    assert losses[0] == losses[1]
    store = TokenStore.open_heldout(str(tmp_path / "from-hf" / "tokens" / "web"))
    total = count = 0.0
    with torch.no_grad():
        for batch in evaluation_batches("web", store, 64, 1, 500):
            row = torch.from_numpy(batch.tokens.astype("int64"))[0]
            labels = torch.from_numpy(batch.labels.astype("int64"))[0]
            at = 0
            for length in batch.lengths[0]:
                part = slice(at, at + length)
                at += length
                real = labels[part] != IGNORE
                logits = theirs(row[part][None]).logits[0][real]
                total += torch.nn.functional.cross_entropy(logits.double(), labels[part][real], reduction="sum").item()
                count += real.sum().item()
    assert losses[0] == pytest.approx(total / count, rel=1e-5)


def test_a_longer_context(tmp_path: Path) -> None:
    """The rotary base may differ; a person is told. A run resumed does not begin anew."""
    save_theirs("llama 3", tmp_path / "hf")
    config, run = run_from(tmp_path, tmp_path / "hf", rope={"base": 5e6})
    assert "rope.base is 5000000.0 here, 500000.0 there" in finish(start("train", config, "--until", "1"))
    after = open_model(run).load().state_dict()
    assert "weights from" not in finish(start("train", config, "--until", "1"))
    for name, weight in open_model(run).load().state_dict().items():
        assert torch.equal(after[name], weight), name
    assert open_model(run).config.rope.base == 5e6


def test_another_shape_is_refused(tmp_path: Path) -> None:
    save_theirs("llama 3", tmp_path / "hf")
    config, _ = run_from(tmp_path, tmp_path / "hf", norm_eps=1e-6, attention={"heads": 4, "kv_heads": 4})
    out = finish(start("train", config))
    assert "is of another shape" in out
    assert "model.attention.kv_heads: 4 here, 2 there" in out
    assert "model.norm_eps: 1e-06 here, 1e-05 there" in out
    assert "Traceback" not in out


def test_a_stage_cannot_begin_from_elsewhere(tmp_path: Path) -> None:
    path = write_config(tmp_path, stages=[{"name": "a", "train": {"steps": 1, "init_from": "x"}}])
    with pytest.raises(UserError, match=r"stages.a.train.init_from: a stage cannot change it"):
        load_config(path)
    with pytest.raises(UserError, match=r"train.init_from: nowhere does not exist"):
        load_config(write_config(tmp_path), ["train.init_from=nowhere"])


def test_an_import_is_a_base_for_configs(tmp_path: Path) -> None:
    save_theirs("qwen3", tmp_path / "hf")
    import_model(tmp_path / "hf", tmp_path / "imported")
    (tmp_path / "config.yaml").write_text(
        "_base_: imported/model.yaml\nname: more\ntrain: {steps: 1}\ndata: {sources: [{path: x}]}\n"
    )
    config = load_config(tmp_path / "config.yaml", check_data=False)
    assert config.model.attention.qk_norm
    assert config.train.init_from == str(tmp_path / "imported")
    assert json.loads((tmp_path / "imported" / "checkpoints" / "step-000000" / "state.json").read_text())["step"] == 0
    assert isinstance(config.stages[0], StageConfig)
