"""Resuming is a function: called again and again in one process, each time it stands where the newest checkpoint is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from internevo.config.load import load_config
from internevo.files.errors import UserError
from internevo.train.build import make_engine
from internevo.train.folder import RunFolder
from internevo.train.resume import find_standing, stand
from internevo.train.run import train
from internevo.train.stored_model import open_model
from tests.parallel.jobs import ALONE
from tests.train.runs import write_config


def test_twice_in_one_process_with_another_checkpoint_between(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path), ["data.eval_tokens=0", "checkpoint.every=2"])
    folder = RunFolder.of(config)
    before = find_standing(config, folder, ALONE)
    assert (before.checkpoint, before.progress.step) == (None, 0)
    engine = make_engine(config.stages[0], ALONE)
    seen = {}
    for step in (2, 6):
        train(config, ["test"], until=step)
        at = find_standing(config, folder, ALONE)
        assert at.checkpoint == folder.checkpoints / f"step-{step:06d}"
        assert (at.progress.step, at.progress.stage, at.progress.stage_step) == (step, 0, step)
        assert at.progress.tokens > 0
        stand(engine, folder, step, ALONE)
        seen[step] = {name: value.clone() for name, value in engine.state().items()}
        for name, weight in open_model(folder.path).load().named_parameters():
            assert torch.equal(seen[step][f"model/{name}"], weight), name
    assert not torch.equal(seen[2]["model/head.weight"], seen[6]["model/head.weight"])
    stand(engine, folder, 2, ALONE)  # and back
    assert all(torch.equal(value, seen[2][name]) for name, value in engine.state().items())


def test_a_damaged_checkpoint_is_passed_over_and_told(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path), ["data.eval_tokens=0", "checkpoint.every=2"])
    folder = RunFolder.of(config)
    train(config, ["test"], until=4)
    damaged = next((folder.checkpoints / "step-000004").glob("*.distcp"))
    damaged.write_bytes(damaged.read_bytes()[:-8])
    at = find_standing(config, folder, ALONE)
    assert at.progress.step == 2
    assert "step-000004" in at.refused[0]
    other = load_config(write_config(tmp_path), ["data.eval_tokens=0", "stages.base.train.batch_tokens=1024"])
    with pytest.raises(UserError, match="To resume with another batch"):
        find_standing(other, folder, ALONE)
