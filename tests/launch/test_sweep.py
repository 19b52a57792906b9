"""Sweeps: which runs they have, running them, going on after an interruption, failures, ranking; also under Slurm."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from internevo.config.load import load_config
from internevo.files.errors import UserError
from internevo.launch.run_sweep import Status, held, state
from internevo.launch.sweep import read_sweep
from internevo.monitor.metrics import METRICS, JsonLines, read_metrics
from internevo.monitor.sweep_page import ranked_rows, results
from tests.launch.cluster import Slurm
from tests.launch.test_slurm import wait_for
from tests.monitor.test_records import step
from tests.monitor.test_sinks import wandb_log
from tests.train.runs import finish, start, steps, write_config


def write_sweep(folder: Path, **changes: Any) -> Path:
    """A sweep over the learning rate of a run of one short stage."""
    write_config(folder, schedule={}, stages=[{"name": "only", "train": {"steps": 6}}])
    tree = {
        "name": "rates",
        "config": "config.yaml",
        "runs": str(folder / "runs"),
        "grid": {"optimizer.lr": [1e-3, 1e-2]},
        **changes,
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in tree.items() if value is not None}))
    return path


def names(path: Path) -> list[str]:
    return [run.name for run in read_sweep(path).runs]


def test_sources_are_varied_by_their_names(tmp_path: Path) -> None:
    sweep = read_sweep(
        write_sweep(
            tmp_path,
            grid={"data.sources.web.weight": [0.25, 0.75]},
            derive={"data.sources.code.weight": "1 - data.sources.web.weight"},
            set={"data.sources": "[{path: tokens/web}, {name: code, path: tokens/code}]"},
        ),
        check_data=False,
    )
    found = [
        [one.weight for one in load_config(sweep.config, run.overrides, check_data=False).data.sources]
        for run in sweep.runs
    ]
    assert found == [[0.25, 0.75], [0.75, 0.25]]


def test_a_grid(tmp_path: Path) -> None:
    sweep = read_sweep(
        write_sweep(
            tmp_path,
            grid={"model.hidden": [32, 64, 128], "optimizer.lr": [1e-3, 1e-2]},
            where=["optimizer.lr * model.hidden < 1"],
            derive={"model.feed_forward.width": "2.5 * model.hidden", "model.attention.heads": "model.hidden // 16"},
            set={"train.seed": 7},
        )
    )
    assert [run.name for run in sweep.runs] == [
        "hidden-32_lr-0.001",
        "hidden-32_lr-0.01",
        "hidden-64_lr-0.001",
        "hidden-64_lr-0.01",
        "hidden-128_lr-0.001",
    ]
    assert sweep.left_out == 1
    config = sweep.load(sweep.runs[4])
    assert (
        config.model.hidden,
        config.model.feed_forward.width,
        config.model.attention.heads,
        config.model.attention.head_dim,
    ) == (128, 320, 8, 16)
    assert (config.optimizer.lr, config.train.seed, config.name) == (1e-3, 7, "hidden-128_lr-0.001")
    assert config.stages[0].optimizer.lr == 1e-3


def test_a_list(tmp_path: Path) -> None:
    runs = [{"name": "plain"}, {"name": "warm", "schedule.warmup": 3}, {"optimizer.lr": 0.1}]
    assert names(write_sweep(tmp_path, grid=None, list=runs)) == ["plain", "warm", "lr-0.1"]


def test_random_draws(tmp_path: Path) -> None:
    keys = {
        "optimizer.lr": {"log_uniform": ["1e-4", 1e-1]},
        "optimizer.weight_decay": {"uniform": [0, 0.2]},
        "schedule.warmup": {"integer": [0, 3]},
        "data.packing": ["concat", "best_fit"],
    }
    path = write_sweep(tmp_path, grid=None, random={"count": 16, "seed": 1, "keys": keys})
    runs = read_sweep(path).runs
    assert [run.varied for run in runs] == [run.varied for run in read_sweep(path).runs]  # the same again
    rates = sorted(run.varied["optimizer.lr"] for run in runs)
    assert 1e-4 <= rates[0] < rates[7] < rates[-1] <= 1e-1
    assert rates[7] < 2e-2  # as many in each decade, not nearly all in the last
    assert {run.varied["schedule.warmup"] for run in runs} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": None}, "give one of grid, list and random; found none"),
        ({"list": [{}]}, "found grid and list"),
        ({"grid": {"optimizer.lr": 3}}, "grid.optimizer.lr: expected a list of values, found 3"),
        ({"grid": {"optimizer.lrr": [1]}}, "the run lrr-1: .*optimizer.lrr: unknown key; did you mean lr"),
        ({"grid": {"train.micro_batch": [3]}}, "the run micro_batch-3: .*which micro-batches of 3 cannot divide"),
        ({"where": ["optimizer.lrr < 1"]}, "there is no key optimizer.lrr; did you mean lr"),
        ({"where": ["optimizer.lr > 1"]}, "has no runs"),
        ({"gird": {}}, "gird: unknown key; did you mean grid"),
        ({"config": None}, "config: missing"),
        ({"grid": None, "list": [{"name": "a"}, {"name": "a"}]}, "two runs are called a"),
        ({"at_once": 0}, "at_once: must be at least 1, found 0"),
        (
            {"grid": None, "random": {"keys": {"optimizer.lr": {"log_uniform": [0, 1]}}}},
            "random.keys.optimizer.lr: expected a list of values, or one of uniform",
        ),
    ],
)
def test_mistakes(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_sweep(tmp_path, **changes)
    with pytest.raises(UserError, match=re.compile(message, re.DOTALL)):
        read_sweep(path)


@pytest.mark.slow
def test_runs_are_trained_and_ranked(tmp_path: Path) -> None:
    # a decay of 1000 times 1 multiplies weights by -999 at each step: infinite within six, however a CPU rounds
    keys = {"train.max_skipped": 1, "optimizer.weight_decay": 1}
    path = write_sweep(tmp_path, grid={"optimizer.lr": [1e-4, 1e-2, 1000]}, at_once=2, set=keys)
    out = finish(start("sweep", path))
    sweep = read_sweep(path)
    assert [state(sweep, run).status for run in sweep.runs] == [Status.complete, Status.complete, Status.failed]
    assert out.index("lr-0.0001: began") < out.index("lr-0.01: began") < out.index("lr-1000: began")
    assert "has not been finite" in out
    ranked = results(sweep)
    assert [one.state.run.name for one in ranked] == ["lr-0.01", "lr-0.0001", "lr-1000"]
    ends = [one["loss"] for one in read_metrics(sweep.folder / "lr-0.01" / "evals.jsonl") if one["when"] == "end"]
    assert ranked[0].score == pytest.approx(sum(ends) / len(ends))
    page = (sweep.folder / "sweep.html").read_text()
    for text in ("2 of 3 complete, 1 failed", "lr-0.01", "has not been finite"):
        assert text in page
    charts = json.loads(page.split('id="data">')[1].split("</script>")[0])["charts"]
    assert set(charts) == {"loss", "optimizer.lr"}
    assert charts["optimizer.lr"]["x"] == [1e-4, 1e-2]
    again = finish(start("sweep", path))
    assert "0 to do" in again
    retried = finish(start("sweep", path, "--retry"))
    assert "1 to do" in retried
    assert "lr-1000: failed (exit code 2)" in retried


def test_what_parts_of_the_model_recorded_has_a_column(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path))
    for number, run in enumerate(sweep.runs):
        (sweep.folder / run.name).mkdir(parents=True)
        records = JsonLines(sweep.folder / run.name / METRICS)
        records.write(step(1))
        records.write(step(2, recorded={"router/load": math.nan} if number else {"router/load": 0.25, "worst": 3}))
        records.close()
    head, rows = ranked_rows(results(sweep))
    assert head[-4:] == ["router/load", "worst", "tokens/s", "status"]
    assert [row[-4:-2] for row in rows] == [["0.25", "3"], ["–", "–"]]


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, set={"stages.only.train.steps": 60}, at_once=1)
    process = start("sweep", path)
    sweep = read_sweep(path)
    deadline = time.monotonic() + 60
    while not any(line["step"] > 5 for line in read_metrics(sweep.folder / "lr-0.001" / "metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out = finish(process)
    assert process.returncode == 130, out
    now = state(sweep, sweep.runs[0])
    assert now.status is Status.started
    assert 5 < now.steps < 60
    assert state(sweep, sweep.runs[1]).status is Status.waiting
    assert "2 to do" in finish(start("sweep", path))
    for run in sweep.runs:
        assert [line["step"] for line in steps(sweep.folder / run.name)] == list(range(1, 61))


def test_a_sweep_is_run_by_one_process(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    sweep = read_sweep(path)
    with held(sweep):
        process = start("sweep", path)
        out = finish(process)
    assert process.returncode == 2, out
    assert f"rates is in use by process {os.getpid()}. `--show` compares what is there" in out
    assert {state(sweep, run).status for run in sweep.runs} == {Status.waiting}


@pytest.mark.slow
def test_a_slurm_array(slurm: Slurm, tmp_path: Path) -> None:
    keys = {"train.max_skipped": 1, "optimizer.weight_decay": 1}
    path = write_sweep(tmp_path, grid={"optimizer.lr": [1e-3, 1e-2, 1000]}, set=keys, at_once=2)
    command = [sys.executable, "-m", "internevo", "sweep", str(path), "--slurm", "--no-gpus"]
    done = subprocess.run(command, capture_output=True, text=True, env=slurm.environment, timeout=60)
    found = re.search(r"submitted job (\d+), an array of 3, 2 at a time", done.stdout)
    assert found, done.stdout + done.stderr
    for number in range(3):
        wait_for(slurm, f"{found[1]}_{number}", "COMPLETED", "FAILED")
    out = finish(start("sweep", path, "--show"))
    sweep = read_sweep(path)
    assert [state(sweep, run).status for run in sweep.runs] == [Status.complete, Status.complete, Status.failed]
    assert re.search(r"lr-1000 failed: step \d: the loss or the gradient has not been finite", out)
    assert (sweep.folder / "slurm" / f"{found[1]}_0.log").exists()


@pytest.mark.slow
def test_wandb_runs_of_a_sweep_are_a_group(tmp_path: Path) -> None:
    """Offline, for real: the group is in what wandb wrote."""
    path = write_sweep(tmp_path, set={"monitor.wandb": True})
    others = {key: value for key, value in os.environ.items() if key != "WANDB_RUN_GROUP"}  # a sweep sets its own
    process = subprocess.run(
        [sys.executable, "-m", "internevo", "sweep", str(path), "--run", "0"],
        env={**others, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    from wandb.proto import wandb_internal_pb2

    (file,) = (tmp_path / "runs" / "rates" / "lr-0.001").glob("wandb/offline-run-*/*.wandb")
    groups = set()
    for entry in wandb_log(file):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(entry)
        if record.HasField("run"):
            groups.add(record.run.run_group)
    assert groups == {"rates"}
