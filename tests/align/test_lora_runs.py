"""Runs that train adapters: what their checkpoints hold, resuming, and using them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from internevo.checkpoint.tensors import stored_tensors
from internevo.config.load import load_config
from internevo.files.errors import UserError
from internevo.hf.adapted_weights import AdaptedWeights
from internevo.train.build import make_engine
from internevo.train.engine import TorchEngine
from internevo.train.folder import RunFolder
from internevo.train.initial_weights import begin_from
from internevo.train.resume import find_standing, stand
from internevo.train.run import train
from internevo.train.stored_model import open_model
from tests.hf.models import TOKENS, our_logits, save_theirs
from tests.parallel.jobs import ALONE
from tests.train.runs import finish, last_state, start, steps, write_config

SHAPE = {
    "hidden": 64,
    "layers": 3,
    "vocab": 512,
    "attention": {"heads": 4, "kv_heads": 2},
    "feed_forward": {"width": 160},
    "rope": {"base": 5e5},
}


def adapting(folder: Path, base: Path, name: str = "run", shape: dict[str, Any] = SHAPE, **lora: Any) -> Path:
    """A config of two stages, the second with longer rows, whose adapters are trained on `base`."""
    folder.mkdir(exist_ok=True)
    train = {"seq_len": 64, "batch_tokens": 512, "micro_batch": 4, "precision": "fp32", "device": "cpu"}
    return write_config(
        folder,
        name=name,
        model=shape,
        train={**train, "init_from": str(base), "lora": {"rank": 4, "alpha": 16, **lora}},
        stages=[
            {"name": "short", "train": {"steps": 4}},
            {"name": "long", "train": {"steps": 3, "seq_len": 128, "micro_batch": 2}},
        ],
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(precision: str, tmp_path: Path) -> None:
    """Bit by bit, across stages too, from checkpoints that hold the adapter alone."""
    save_theirs("llama 3", tmp_path / "base")
    runs = []
    for name, stops in (("through", [7]), ("stopped", [2, 3, 5, 7])):
        for until in stops:
            config = load_config(
                adapting(tmp_path / "runs", tmp_path / "base", name), [f"train.precision={precision}"], check_data=False
            )
            train(config, ["test"], until=until)
        runs.append(tmp_path / "runs" / "runs" / name)
    assert steps(runs[0]) == steps(runs[1])
    losses = [line["loss"] for line in steps(runs[0])]
    assert losses[3] < losses[0]
    checkpoints = sorted((runs[0] / "checkpoints").glob("step-*"))
    names = stored_tensors(checkpoints[-1])
    assert len(names) == 3 * 7 * 2 * 4  # of two factors beside seven matrices a layer: weight, two moments, the count
    assert all("lora_" in name for name in names)
    size = sum(file.stat().st_size for file in checkpoints[-1].iterdir())
    base = sum(file.stat().st_size for file in (tmp_path / "base").iterdir())
    assert size < 1.2 * base  # of a tiny model the adapters are a third, times three with moments


def test_the_merged_model_is_the_adapted_one(tmp_path: Path) -> None:
    """What `open_model` gives computes what the frozen model with the adapter beside it does, and evaluates."""
    save_theirs("llama 3", tmp_path / "base")
    config = load_config(adapting(tmp_path / "runs", tmp_path / "base"), ["optimizer.lr=0.03"])
    train(config, ["test"])
    folder = RunFolder.of(config)
    merged = open_model(folder.path)
    assert merged.adapter is not None
    assert merged.family == "llama"
    engine = make_engine(config.stages[-1], ALONE)
    assert isinstance(engine, TorchEngine)
    at = find_standing(config, folder, ALONE)
    begin_from(engine, config.stages[-1], ALONE, at.base)
    base = our_logits(engine.runner.transformers[0], TOKENS)
    stand(engine, folder, at.progress.step, ALONE)
    adapted = our_logits(engine.runner.transformers[0], TOKENS)
    assert (adapted - base).abs().max() > 0.1
    torch.testing.assert_close(our_logits(merged.load(), TOKENS), adapted, atol=2e-5, rtol=0)
    torch.testing.assert_close(our_logits(open_model(tmp_path / "base").load(), TOKENS), base, atol=2e-5, rtol=0)
    assert "web: loss" in finish(start("eval", folder.path))


@pytest.mark.parametrize("family", ["internlm2", "qwen2"])
def test_reading_a_merged_weight_twice_gives_it_twice(family: str, tmp_path: Path) -> None:
    """Also where one stored tensor holds three weights, of which a reader keeps what it has unpacked."""
    model = save_theirs(family, tmp_path / "base")
    shape = SHAPE | {"rope": {"base": 1e6}} if family == "internlm2" else SHAPE | {"rope": {"base": 1e4}, "tied": True}
    shape["attention"] = {"heads": 4, "kv_heads": 2, "bias": family == "qwen2"}
    path = adapting(tmp_path / "runs", tmp_path / "base", shape=shape)
    train(load_config(path, ["optimizer.lr=0.03"]), ["test"], until=2)
    weights = open_model(tmp_path / "runs" / "runs" / "run").weights
    assert isinstance(weights, AdaptedWeights)
    assert model.config.num_hidden_layers == 3
    for name in weights.matrices:
        first, second = weights.read(name), weights.read(name)
        assert torch.equal(first, second)
        a, b = weights.factors(name)
        torch.testing.assert_close(first, weights.base.read(name) + 4 * b @ a)


def test_another_base_is_refused(tmp_path: Path) -> None:
    theirs = save_theirs("llama 3", tmp_path / "base")
    path = adapting(tmp_path / "runs", tmp_path / "base")
    run = tmp_path / "runs" / "runs" / "run"
    train(load_config(path), ["test"], until=2)
    assert last_state(run)["base"]["name"] == str(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "moved")
    with torch.no_grad():
        theirs.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    theirs.save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match=r"base holds other weights than .*base had"):
        train(load_config(path), ["test"], until=3)
    with pytest.raises(UserError, match=r"run holds an adapter alone, and the base .* other weights"):
        open_model(run)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UserError, match=r"run holds an adapter alone, and the base .*has no model"):
        open_model(run)
    for keys in (["train.lora.rank=8"], ["train.lora.alpha=1"], ["train.lora.targets=[wq]"], ["train.lora.rank=0"]):
        with pytest.raises(UserError, match=r"train.lora"):
            train(load_config(path, [f"train.init_from={tmp_path / 'moved'}", *keys]), ["test"], until=3)
    train(load_config(path, [f"train.init_from={tmp_path / 'moved'}"]), ["test"], until=3)
    assert [line["step"] for line in steps(run)] == [1, 2, 3]


def test_a_run_as_base_is_read_at_the_step_that_it_had(tmp_path: Path) -> None:
    """The base is a run that is trained further, and whose adapter is a base itself."""
    save_theirs("llama 3", tmp_path / "hf")
    first = adapting(tmp_path / "first", tmp_path / "hf")
    train(load_config(first, ["checkpoint.keep=0", "checkpoint.every=1"]), ["test"], until=2)
    base = tmp_path / "first" / "runs" / "run"
    second = adapting(tmp_path / "second", base, targets=["wq", "down"])
    run = tmp_path / "second" / "runs" / "run"
    train(load_config(second), ["test"], until=2)
    before = open_model(run).load().state_dict()
    train(load_config(first, ["checkpoint.keep=0", "checkpoint.every=1"]), ["test"], until=3)
    after = open_model(run).load().state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    train(load_config(second), ["test"], until=3)
    ours, merged = open_model(run).load().state_dict(), open_model(base, 2).load().state_dict()
    changed = {name for name, value in ours.items() if not torch.equal(value, merged[name])}
    assert {name.split(".")[-2] for name in changed} == {"wq", "down"}


@pytest.mark.slow
def test_from_layout_to_layout(tmp_path: Path) -> None:
    """Through the command: each rank reads its part of the base, and the adapter's checkpoint fits any layout."""
    save_theirs("llama 3", tmp_path / "base")
    path = adapting(tmp_path / "runs", tmp_path / "base", "alone")
    train(load_config(path), ["test"])
    path = adapting(tmp_path / "runs", tmp_path / "base", "moving")
    runs = tmp_path / "runs" / "runs"
    for until, layout in (
        (2, ["parallel.tensor=2"]),
        (3, ["parallel.pipeline.size=2"]),
        (5, ["parallel.zero.stage=3", "train.micro_batch=1"]),
    ):
        out = finish(start("launch", "--nproc", "2", path, "--until", str(until), *layout))
        assert "weights from" in out
        assert "Traceback" not in out, out
        assert [line["step"] for line in steps(runs / "moving")][-1] == until, out
    train(load_config(path), ["test"])
    one, other = steps(runs / "alone"), steps(runs / "moving")
    assert [line["digest"] for line in one] == [line["digest"] for line in other]
    assert [line["loss"] for line in other] == pytest.approx([line["loss"] for line in one], rel=1e-4)
    assert [line["grad_norm"] for line in other] == pytest.approx([line["grad_norm"] for line in one], rel=1e-3)
