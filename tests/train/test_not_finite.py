"""A weight that becomes NaN: no such state is kept as a checkpoint, and the run resumes from the last good one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import internevo.train.run as run_module
from internevo.checkpoint.commit import PARTIAL, STATE, checkpoints, commit, problems, write_json
from internevo.checkpoint.errors import CheckpointError
from internevo.checkpoint.tensors import LazyTensors, StoredTensors, stored_tensors, write_tensors
from internevo.checkpoint.writer import CheckpointWriter
from internevo.config.load import load_config
from internevo.config.schema import RunConfig, StageConfig
from internevo.files.errors import UserError
from internevo.parallel.world import World
from internevo.train.build import make_engine
from internevo.train.engine import Engine
from internevo.train.run import train
from internevo.train.stored_model import choose_checkpoint
from internevo.train.verify import check_checkpoints
from tests.parallel.jobs import engine_of, stage_of
from tests.train.runs import steps, write_config


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def config_of(folder: Path, *overrides: str) -> RunConfig:
    """Fourteen steps; a checkpoint every two, of which two are kept."""
    stages = [{"name": "only", "train": {"steps": 14}}]
    path = write_config(folder, stages=stages, checkpoint={"every": 2, "keep": 2})
    return load_config(path, ["data.eval_tokens=0", "train.max_skipped=20", *overrides])


def names(run: Path) -> list[str]:
    return [path.name for path in checkpoints(run / "checkpoints")]


def damage_at(monkeypatch: pytest.MonkeyPatch, step: int, when: str, kind: str = "model") -> None:
    """From now on, a number of the state is NaN after the update of this step, or before it."""

    def build(stage: StageConfig, world: World) -> Engine:
        engine = make_engine(stage, world)
        update, count = engine.update, 0

        def counted(loss: Tensor, lr: float) -> tuple[Tensor, Tensor]:
            nonlocal count
            count += 1
            state = engine.state()
            name = next(name for name in state if name.startswith(kind) and "norm" in name and state[name].ndim)
            if count == step and when == "before":
                state[name].view(-1)[0] = torch.nan
                loss = loss * torch.nan
            result = update(loss, lr)
            if count == step and when == "after":
                state[name].view(-1)[0] = torch.nan
            return result

        engine.update = counted  # type: ignore[method-assign]
        return engine

    monkeypatch.setattr(run_module, "make_engine", build)


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("kind", ["model", "optimizer"])
def test_a_weight_becomes_nan_and_the_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, asynchronous: bool
) -> None:
    config, run = config_of(tmp_path, f"checkpoint.asynchronous={asynchronous}".lower()), tmp_path / "runs" / "run"
    with monkeypatch.context() as hurt:
        damage_at(hurt, 6, "after", kind)
        with pytest.raises(UserError, match=rf"step 6 is not saved: NaN or infinity in {kind}/") as stopped:
            train(config, ["test"])
    assert f"last good checkpoint is {run / 'checkpoints' / 'step-000004'}" in str(stopped.value)
    assert names(run) == ["step-000002", "step-000004"]
    assert not list((run / "checkpoints").glob(f"*{PARTIAL}"))
    capsys.readouterr()
    assert train(config, ["test"]) is None
    assert "resuming after step 4 (step-000004)" in capsys.readouterr().out
    whole = config_of(tmp_path, "name=whole")
    assert train(whole, ["test"]) is None
    assert steps(run) == steps(tmp_path / "runs" / "whole")


def test_ten_skipped_steps_push_nothing_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight becomes NaN between two saves of the same weights: nothing is saved until the stage's end."""
    config, run = config_of(tmp_path), tmp_path / "runs" / "run"
    damage_at(monkeypatch, 5, "before")
    with pytest.raises(UserError, match=r"step 14 is not saved"):
        train(config, ["test"])
    assert [line["skipped"] for line in steps(run)] == [False] * 4 + [True] * 10
    assert names(run) == ["step-000002", "step-000004"]


def test_the_limit_of_skipped_steps_names_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage_at(monkeypatch, 5, "before")
    with pytest.raises(UserError, match=r"step 7 is not saved: NaN or infinity in model/.* last good .*step-000004"):
        train(config_of(tmp_path, "train.max_skipped=3"), ["test"])


def test_skipped_steps_alone_rotate_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are skipped and the weights are finite: a run that is stopped keeps its place, and both older ones."""

    def build(stage: StageConfig, world: World) -> Engine:
        engine = make_engine(stage, world)
        update, count = engine.update, 0

        def counted(loss: Tensor, lr: float) -> tuple[Tensor, Tensor]:
            nonlocal count
            count += 1
            return update(loss * torch.nan if 4 < count < 10 else loss, lr)

        engine.update = counted  # type: ignore[method-assign]
        return engine

    config, run = config_of(tmp_path), tmp_path / "runs" / "run"
    with monkeypatch.context() as hurt:
        hurt.setattr(run_module, "make_engine", build)
        train(config, ["test"], until=9)
    assert names(run) == ["step-000002", "step-000004", "step-000009"]
    train(config, ["test"], until=10)
    assert names(run) == ["step-000009", "step-000010"]


def spoil(path: Path) -> None:
    """Make a checkpoint one that an older version wrote of a state with NaN."""
    stored, state = StoredTensors(path), json.loads((path / STATE).read_text())
    kept = {name: stored.read(name) for name in stored_tensors(path)}
    next(iter(kept.values())).view(-1)[0] = torch.nan
    aside = path.with_name(path.name + PARTIAL)
    path.rename(path.with_name("old"))
    aside.mkdir()
    write_tensors(kept, aside)
    write_json(aside / STATE, state)
    commit(aside, path, permanent=False)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.pop("finite", None)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_bad_checkpoints_of_an_older_version_are_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = config_of(tmp_path, "checkpoint.keep=0"), tmp_path / "runs" / "run"
    train(config, ["test"], until=8)
    for step in (6, 8):
        spoil(run / "checkpoints" / f"step-{step:06d}")
        (run / "checkpoints" / "old").rename(tmp_path / str(step))
    assert check_checkpoints(run).whole == ("step-000002", "step-000004")
    assert all("NaN or infinity in model/" in line for line in check_checkpoints(run).damaged)
    assert choose_checkpoint(run / "checkpoints", None).name == "step-000004"
    with pytest.raises(UserError, match="NaN or infinity in model/"):
        choose_checkpoint(run / "checkpoints", 8)
    capsys.readouterr()
    assert train(config, ["test"]) is None
    out = capsys.readouterr().out
    assert "resuming after step 4 (step-000004)" in out
    assert re.findall(r"(step-\d+) is damaged and was set aside as (\S+): NaN or infinity in model/", out) == [
        ("step-000008", "step-000008.corrupt"),
        ("step-000006", "step-000006.corrupt"),
    ]


def test_a_run_without_a_good_checkpoint_does_not_begin_again_by_itself(tmp_path: Path) -> None:
    """What was trained would be lost without a word, in a queue that starts runs again by itself."""
    config, run = config_of(tmp_path), tmp_path / "runs" / "run"
    assert train(config, ["test"]) is None
    before = steps(run)
    for path in checkpoints(run / "checkpoints"):
        (path / "manifest.json").write_text("[]")
    for _ in range(2):
        with pytest.raises(UserError, match=r"no whole checkpoint left, and step-000014\.corrupt\. Bring a good one"):
            train(config, ["test"])
        assert steps(run) == before
    for path in (run / "checkpoints").glob("*.corrupt"):
        shutil.rmtree(path)
    assert train(config, ["test"]) is None
    assert steps(run) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_every_number_is_looked_at(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    tensors = {"good": torch.ones(3), "none": torch.ones(0), "ids": torch.ones(3, dtype=torch.int64)}
    tensors["bad"] = torch.ones(3, 1000, dtype=dtype).T
    writer = CheckpointWriter(tmp_path, keep=0, asynchronous=True)
    writer.save(1, tensors, {}, permanent=False)
    tensors["bad"][999, 2] = value
    lazy = LazyTensors(dict(tensors, bad=torch.empty_like(tensors["bad"], device="meta")), tensors.__getitem__)
    for state in (tensors, lazy):
        with pytest.raises(CheckpointError, match="step 2 is not saved: NaN or infinity in bad,"):
            writer.save(2, state, {}, permanent=False)
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert not problems(tmp_path / "step-000001")


def save_with_nan_on_the_last_rank(world: World, changes: dict[str, Any], folder: Path, asynchronous: bool) -> str:
    """How this rank learns that the state is not saved."""
    state = engine_of(stage_of(changes), world).state()
    writer = CheckpointWriter(folder, keep=0, asynchronous=asynchronous, group=world.saving)
    writer.save(1, state, {}, permanent=False)
    writer.wait()
    if world.rank == world.size - 1:
        for tensor in state.values():
            if tensor.ndim > 1:
                local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
                local.view(-1)[-1] = torch.nan
    try:
        writer.save(2, state, {}, permanent=False)
    except (CheckpointError, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        writer.close()
    return "saved"


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("changes", [{"zero": 3}, {"tensor": 2}])
def test_all_ranks_agree(tmp_path: Path, ranks: Any, changes: dict[str, Any], asynchronous: bool) -> None:
    first, second = ranks(2).run(save_with_nan_on_the_last_rank, changes, tmp_path, asynchronous)
    assert first.startswith("NotFiniteError: step 2 is not saved: ")
    assert second == "SystemExit: 2"
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
