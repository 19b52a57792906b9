"""Whole runs over several processes through the real command: resume, signals and mistakes, under any layout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from internevo.config.load import load_config
from internevo.train.run import train
from tests.train.runs import evals, finish, start, steps, write_config

CHECKPOINTS = {"every": 3, "keep": 0}


def launch(config: Path, processes: int, *overrides: str) -> subprocess.Popen[str]:
    return start("launch", config, "--nproc", str(processes), *overrides)


def close_to(lines: list[dict[str, Any]], reference: list[dict[str, Any]]) -> None:
    """The same data, and the same numbers to rounding."""
    assert [line["digest"] for line in lines] == [line["digest"] for line in reference]
    assert [line["sources"] for line in lines] == [line["sources"] for line in reference]
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in reference], rel=1e-3)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    train(load_config(write_config(folder, checkpoint=CHECKPOINTS)), ["test"])
    return folder / "runs" / "run"


def config_of(folder: Path) -> Path:
    # 8 rows in the base stage, 2 in the long one: two data ranks can share them
    return write_config(folder, checkpoint=CHECKPOINTS)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["parallel.zero.stage=3", "train.recompute=selective"])
def test_a_run_whose_first_engine_has_something_to_say(tmp_path: Path, setting: str) -> None:
    """It is said when the run begins: its sinks are not open yet when the engine is made."""
    model = {"preset": "tiny", "layers": 4}
    stages = [{"name": "only", "train": {"steps": 3}}]
    config = write_config(tmp_path, model=model, stages=stages)
    assert train(load_config(config, ["name=one"]), ["test"]) is None
    pipeline = "parallel.pipeline.size=2", "parallel.pipeline.schedule=zbv"
    process = launch(config, 2, *pipeline, setting, "train.micro_batch=1")
    out = finish(process)
    assert process.returncode == 0, out
    run = tmp_path / "runs" / "run"
    assert "zbv" in (run / "logs" / "rank-0000.log").read_text().split("1/3")[0]
    close_to(steps(run), steps(tmp_path / "runs" / "one"))


@pytest.mark.slow
def test_a_run_on_two_processes(tmp_path: Path, one_rank: Path) -> None:
    process = launch(config_of(tmp_path), 2, "parallel.zero.stage=3")
    out = finish(process)
    assert process.returncode == 0, out
    assert "stage base: data 2" in out
    run = tmp_path / "runs" / "run"
    close_to(steps(run), steps(one_rank))
    ours, theirs = evals(run), evals(one_rank)
    assert [(one["stage"], one["when"], one["source"]) for one in ours] == [
        (one["stage"], one["when"], one["source"]) for one in theirs
    ]
    for got, expected in zip(ours, theirs, strict=True):
        assert got["tokens"] == expected["tokens"]
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-3)
        assert got["frequencies"] == pytest.approx(expected["frequencies"], rel=1e-9)
    for rank in range(2):
        assert "step" in (run / "logs" / f"rank-{rank:04d}.log").read_text()
    assert (run / "report.html").is_file()


@pytest.mark.slow
def test_torchrun_is_the_same(tmp_path: Path, one_rank: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "internevo"]
    process = subprocess.Popen(
        [*command, "train", str(config_of(tmp_path)), "parallel.tensor=2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    out = finish(process)
    assert process.returncode == 0, out
    close_to(steps(tmp_path / "runs" / "run"), steps(one_rank))


@pytest.mark.slow
def test_stopped_under_one_layout_and_gone_on_with_under_others(tmp_path: Path, one_rank: Path) -> None:
    """Ctrl-C on two data ranks, then SIGKILL under tensor parallelism, then one process to the end."""
    config, run = config_of(tmp_path), tmp_path / "runs" / "run"
    metrics = run / "metrics.jsonl"

    def until(count: int, process: subprocess.Popen[str]) -> None:
        while not metrics.exists() or len(metrics.read_text().splitlines()) < count:
            time.sleep(0.01)
            assert process.poll() is None, finish(process)

    first = launch(config, 2, "parallel.zero.stage=2")
    until(2, first)
    first.send_signal(signal.SIGTERM)
    out = finish(first)
    assert first.returncode == 128 + signal.SIGTERM, out
    assert "the same command resumes" in out
    assert "Traceback" not in out
    done = len(steps(run))
    second = launch(config, 2, "parallel.tensor=2")
    until(10, second)
    subprocess.run(["pkill", "-KILL", "-P", str(second.pid)], check=False)
    second.kill()
    finish(second)
    third = start("train", config)
    out = finish(third)
    assert third.returncode == 0, out
    assert done < len(steps(run)) == 17
    close_to(steps(run), steps(one_rank))


@pytest.mark.slow
def test_a_stage_may_have_a_layout_of_its_own(tmp_path: Path, one_rank: Path) -> None:
    layouts = [
        "stages.base.parallel.zero.stage=3",
        "stages.long.parallel.tensor=2",
        "stages.enhance.parallel.zero.stage=0",
    ]
    process = launch(config_of(tmp_path), 2, *layouts)
    out = finish(process)
    assert process.returncode == 0, out
    close_to(steps(tmp_path / "runs" / "run"), steps(one_rank))


@pytest.mark.heavy
@pytest.mark.parametrize(
    "layout",
    [
        "parallel.pipeline.size=2",
        "parallel.pipeline={size: 2, schedule: interleaved}",
        "parallel.pipeline={size: 2, schedule: zbv}",
        "parallel.zero.stage=2",
    ],
)
def test_batches_grow_under_any_layout(tmp_path: Path, layout: str) -> None:
    """The number of micro-batches of a pipeline changes with the batch."""
    changes: dict[str, Any] = {
        "model": {"preset": "tiny", "layers": 4},
        "stages": [{"name": "base", "train": {"steps": 6}}],
        "checkpoint": CHECKPOINTS,
    }
    ramp = ["train.batch_ramp=[{until: 512, batch_tokens: 256}, {until: 1536, batch_tokens: 512}]"]
    ramp += ["train.batch_tokens=1024", "train.micro_batch=1"]
    one, two = (write_config(tmp_path / name, **changes) for name in ("one", "two"))
    train(load_config(one, ramp), ["test"])
    process = launch(two, 2, *ramp, layout)
    out = finish(process)
    assert process.returncode == 0, out
    lines, reference = (steps(tmp_path / name / "runs" / "run") for name in ("two", "one"))
    assert [line["padding"] + sum(line["sources"].values()) for line in lines] == [256, 256, 512, 512, 1024, 1024]
    close_to(lines, reference)
    norms = [line["grad_norm"] for line in lines]
    assert norms == pytest.approx([line["grad_norm"] for line in reference], rel=1e-3)


@pytest.mark.parametrize(
    ("processes", "override", "message"),
    [
        (3, "parallel.tensor=2", "= 2, so its layout needs 2 processes or a multiple; there are 3. Start 2, 4"),
        (3, "train.micro_batch=1", "rows, which 3 data ranks with micro-batches of 1 cannot share"),
        (2, "parallel.zero.shard=3", "parallel.zero.shard 3 does not divide the 2 ranks with the same weights"),
    ],
)
def test_a_wrong_number_of_processes_says_what_is_needed(
    tmp_path: Path, processes: int, override: str, message: str
) -> None:
    process = launch(config_of(tmp_path), processes, override)
    out = finish(process)
    assert process.returncode == 2
    assert message in out
    assert "Traceback" not in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_mistake_that_shows_on_the_way_is_told_once(tmp_path: Path) -> None:
    process = launch(config_of(tmp_path), 2, "model.vocab=16", "data.eval_tokens=0")
    out = finish(process)
    assert process.returncode == 2, out
    assert "but model.vocab is 16" in out


@pytest.mark.slow
def test_verify_trains_recorded_steps_again_under_another_layout(one_rank: Path, tmp_path: Path) -> None:
    """Of a run that was stopped in the middle: same tokens, same losses; and a record that is wrong is found."""
    run = tmp_path / "run"
    shutil.copytree(one_rank, run)
    for path in (run / "checkpoints").iterdir():
        if int(path.name[-6:]) > 9:
            shutil.rmtree(path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    good = start("verify", run, "--replay", "3", "--nproc", "2", "parallel.tensor=2")
    out = finish(good)
    assert good.returncode == 0, out
    assert "3 steps trained again: all had the same data, and losses within 0.001" in out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    lines = (run / "metrics.jsonl").read_text().splitlines()
    record = json.loads(lines[10])
    lines[10] = json.dumps({**record, "loss": record["loss"] * 1.01})
    lines[11] = json.dumps({**json.loads(lines[11]), "digest": "0" * 24})
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    os.truncate(run / "checkpoints" / "step-000003" / "__0_0.distcp", 100)
    bad = start("verify", run, "--replay", "3")
    out = finish(bad)
    assert bad.returncode == 1
    assert "step-000003 is damaged" in out
    assert "step 11: loss" in out
    assert "step 12: other data" in out

    lines[11] = json.dumps({**json.loads(lines[11]), "digest": "0" * 16})
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    old = start("verify", run, "--replay", "3")
    out = finish(old)
    assert old.returncode == 2, out
    assert "whose digests cover token ids alone" in " ".join(out.split())


@pytest.mark.heavy
def test_three_stages_of_very_different_layouts(tmp_path: Path, one_rank: Path) -> None:
    """Four data ranks, then two data ranks with Ulysses, then two tensor ranks in a pipeline of two."""
    config = write_config(tmp_path, checkpoint=CHECKPOINTS)
    layouts = (
        "stages.base.train.micro_batch=2",
        "stages.long.parallel.context.size=2",
        "stages.enhance.parallel.tensor=2",
        "stages.enhance.parallel.pipeline={size: 2, schedule: 1f1b}",
        "stages.enhance.train.micro_batch=2",
    )
    process = launch(config, 4, *layouts)
    out = finish(process)
    assert process.returncode == 0, out
    for line in ("stage base: data 4", "stage long: data 2 x ulysses 2", "stage enhance: pipeline 2 x tensor 2"):
        assert line in out
    close_to(steps(tmp_path / "runs" / "run"), steps(one_rank))
    for got, expected in zip(evals(tmp_path / "runs" / "run"), evals(one_rank), strict=True):
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-3)
