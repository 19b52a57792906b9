"""A record is written when something is done: a complete run, and a start that is refused, leave every file alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from internevo.config.load import load_config
from internevo.files.errors import UserError
from internevo.monitor.report import write_report
from internevo.train.run import train
from internevo.train.stored_model import open_model
from tests.train.runs import evals, finish, start, steps, write_config


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file and folder: its bytes and when they last changed."""
    everything = [folder, *sorted(path for path in folder.rglob("*") if path.name != ".lock")]  # it names who has it
    return {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in everything
    }


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a complete run."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("complete")
    assert train(load_config(write_config(folder)), ["test"]) is None
    return folder


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], ["complete after step 17"]),
        (["data.sources=[{path: TOKENS/web}]"], ["complete after step 17", "without effect: data.sources"]),
        (["monitor.tensorboard=true"], ["without effect: monitor.tensorboard: False -> True"]),
        (["--until", "9"], ["complete after step 17"]),
    ],
)
def test_a_complete_run_is_not_touched(complete: Path, overrides: list[str], told: list[str]) -> None:
    run = complete / "runs" / "run"
    before = files(run)
    given = [one.replace("TOKENS", str(complete / "tokens")) for one in overrides]
    process = start("train", complete / "config.yaml", *given)
    out = finish(process)
    assert process.returncode == 0, out
    for text in told:
        assert text in out
    assert "configuration changed" not in out
    assert files(run) == before


@pytest.mark.slow
def test_nor_by_several_processes(complete: Path) -> None:
    before = files(complete / "runs" / "run")
    process = start("launch", complete / "config.yaml", "--nproc", "2", "optimizer.lr=1e-5")
    out = finish(process)
    assert process.returncode == 0, out
    assert out.count("without effect: optimizer.lr: 0.003 -> 1e-05") == 1
    assert files(complete / "runs" / "run") == before


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.feed_forward.width=192", "stages.enhance.train.steps=9"], "cannot change on resume"),
        (["train.device=cuda", "stages.enhance.train.steps=9"], "sees no GPU"),
        (["stages.base.train.steps=3"], "must stay as they were"),
        (["parallel.tensor=2", "stages.enhance.train.steps=9"], "its layout needs 2 processes"),
    ],
)
def test_nor_by_a_start_that_is_refused(complete: Path, overrides: list[str], told: str) -> None:
    if "cuda" in overrides[0] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    before = files(complete / "runs" / "run")
    with pytest.raises(UserError, match=told):
        train(load_config(complete / "config.yaml", overrides), ["test"])
    assert files(complete / "runs" / "run") == before


def test_a_start_refused_for_its_first_weights_leaves_no_record(complete: Path, tmp_path: Path) -> None:
    """The run can then be begun with another model under the same name."""
    torch.set_num_threads(1)
    path, first = write_config(tmp_path), complete / "runs" / "run"
    with pytest.raises(UserError, match="is of another shape"):
        train(load_config(path, [f"train.init_from={first}", "model.feed_forward.width=192"]), ["test"])
    run = tmp_path / "runs" / "run"
    assert {one.name for one in run.iterdir()} <= {"logs", ".lock"}
    train(load_config(path, [f"train.init_from={first}"]), ["test"], until=1)
    assert len(steps(run)) == 1


def test_names_that_a_run_began_with_are_not_judged_again(complete: Path, tmp_path: Path) -> None:
    """A run of an earlier version may have a source whose name is refused today. It can be read as before."""
    folder = tmp_path / "run"
    shutil.copytree(complete / "runs" / "run", folder)
    file = folder / "config.yaml"
    text = file.read_text(encoding="utf-8")
    named = text.replace("weight: 0.7\n      name: null", "weight: 0.7\n      name: heldout/[red]")
    assert named != text
    file.write_text(named, encoding="utf-8")
    assert write_report(folder).is_file()
    assert open_model(folder).step > 0


def test_nothing_asked_for_is_nothing_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    path, run = write_config(tmp_path), tmp_path / "runs" / "run"
    train(load_config(path), ["test"], until=2)
    before = files(run)
    capsys.readouterr()
    train(load_config(path, ["optimizer.lr=1e-4"]), ["test"], until=2)
    assert "has done 2 steps, and no more were asked for" in capsys.readouterr().out
    assert files(run) == before
    train(load_config(path), ["test"], until=3)
    assert files(run) != before


def test_an_evaluation_that_is_missing_is_still_done(complete: Path, tmp_path: Path) -> None:
    """A run that was killed in its last evaluation is not complete yet."""
    torch.set_num_threads(1)
    folder = tmp_path / "copy"
    shutil.copytree(complete, folder)
    path = write_config(folder)
    path.write_text(path.read_text().replace(str(folder / "tokens"), str(complete / "tokens")))
    run = folder / "runs" / "run"
    kept = (run / "config.yaml").read_text().replace(str(complete / "runs"), str(folder / "runs"))
    (run / "config.yaml").write_text(kept)
    expected = evals(run)
    lines = (run / "evals.jsonl").read_bytes().splitlines(keepends=True)
    os.truncate(run / "evals.jsonl", sum(map(len, lines[:-1])))
    train(load_config(path), ["test"])
    assert evals(run) == expected
