"""Whole runs through the real command: three stages, and every way to stop and go on."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import internevo.train.run as run_module
from internevo import __version__
from internevo.checkpoint.commit import find_latest
from internevo.checkpoint.tensors import read_tensors
from internevo.config.load import load_config
from internevo.data.batch import IGNORE, Batch
from internevo.data.loader import evaluation_batches
from internevo.monitor.metrics import read_metrics
from internevo.tokens.store import TokenStore
from internevo.train.run import train
from internevo.train.stored_model import open_model
from tests.train.runs import evals, finish, last_state, start, steps, write_config


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    torch.set_num_threads(1)
    assert train(load_config(write_config(folder)), ["test"]) is None
    return folder / "runs" / "run"


def same_run(run: Path, unbroken: Path) -> None:
    """Bitwise the same losses, gradients, digests, evaluations and final weights."""
    assert steps(run) == steps(unbroken)
    assert evals(run) == evals(unbroken)
    ours, theirs = (open_model(path).load().state_dict() for path in (run, unbroken))
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight), name


def test_three_stages(unbroken: Path) -> None:
    lines = steps(unbroken)
    assert [line["step"] for line in lines] == list(range(1, 18))
    assert [line["stage"] for line in lines] == ["base"] * 8 + ["long"] * 5 + ["enhance"] * 4
    assert [line["seq_len"] for line in lines] == [64] * 8 + [256] * 5 + [64] * 4
    assert lines[-1]["tokens"] == sum(sum(line["sources"].values()) for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    assert len({line["digest"] for line in lines}) == 17
    seen = {(one["stage"], one["when"], one["source"]) for one in evals(unbroken)}
    wanted = {
        (stage, when, source)
        for stage in ("base", "long", "enhance")
        for when in ("start", "end")
        for source in ("web", "code")
    }
    assert seen == wanted
    assert len(evals(unbroken)) == len(wanted)
    assert (unbroken / "report.html").is_file()
    assert f"# internevo {__version__}" in (unbroken / "config.yaml").read_text()
    assert "held out" in (unbroken / "logs" / "rank-0000.log").read_text()


def test_the_baseline_knows_training_frequencies_only(unbroken: Path) -> None:
    """Counted here by hand: of the training documents, one added to each id, never of what is evaluated."""
    for source in ("web", "code"):
        folder = unbroken.parents[1] / "tokens" / source
        store = TokenStore(folder / "train")
        counts = Counter(token for number in range(len(store)) for token in store.read(number)[1:].tolist())
        total = sum(counts.values()) + 512
        one = next(one for one in evals(unbroken) if one["source"] == source and one["seq_len"] == 64)
        batches = evaluation_batches(source, TokenStore(folder / "heldout"), 64, 4, 500)
        labels = [label for batch in batches for label in batch.labels.flatten().tolist() if label != IGNORE]
        expected = sum(-math.log((counts[label] + 1) / total) for label in labels) / len(labels)
        assert one["frequencies"] == pytest.approx(expected, rel=1e-9)
        own = Counter(labels)
        assert expected > -sum(n / len(labels) * math.log(n / len(labels)) for n in own.values())


def test_the_baseline_knows_what_is_trained_on_only(tmp_path: Path) -> None:
    """Documents outside a source's lengths are no training documents, and a source without a weight has none."""
    sources = [
        {"path": str(tmp_path / "tokens" / "web"), "max_tokens": 60},
        {"path": str(tmp_path / "tokens" / "code"), "weight": 0},
    ]
    stages = [{"name": "only", "train": {"steps": 1}}]
    data = {"sources": sources, "eval_tokens": 500}
    config = write_config(tmp_path, data=data, stages=stages, schedule={"warmup": 0})
    assert train(load_config(config), ["test"]) is None
    found = {one["source"]: one["frequencies"] for one in evals(tmp_path / "runs" / "run")}
    store = TokenStore(tmp_path / "tokens" / "web" / "train")
    read = [tokens for number in range(len(store)) if len(tokens := store.read(number).tolist()) <= 60]
    assert 0 < len(read) < len(store)
    counts = Counter(token for tokens in read for token in tokens[1:])
    total = sum(counts.values()) + 512
    batches = evaluation_batches("web", TokenStore(tmp_path / "tokens" / "web" / "heldout"), 64, 4, 500)
    labels = [label for batch in batches for label in batch.labels.flatten().tolist() if label != IGNORE]
    expected = sum(-math.log((counts[label] + 1) / total) for label in labels) / len(labels)
    assert found == {"web": pytest.approx(expected, rel=1e-9), "code": None}
    assert "code, end of only, step 1<" in (tmp_path / "runs" / "run" / "report.html").read_text()


def test_a_cpu_has_no_utilisation(unbroken: Path) -> None:
    lines = read_metrics(unbroken / "metrics.jsonl")
    assert {(line["mfu"], line["mfu_full"]) for line in lines} == {(None, None)}
    assert "counted as full attention" not in (unbroken / "report.html").read_text()


def test_shares_are_exact_in_each_stage(unbroken: Path) -> None:
    drawn = {"web": 0, "code": 0}
    for line in steps(unbroken)[:8]:
        for source, tokens in line["sources"].items():
            drawn[source] += tokens
        total = sum(drawn.values())
        assert abs(drawn["web"] - 0.7 * total) <= 64


def test_stage_ends_are_kept(unbroken: Path) -> None:
    names = sorted(path.name for path in (unbroken / "checkpoints").iterdir())
    assert names == [f"step-{n:06d}" for n in (8, 9, 12, 13, 15, 17)]


@pytest.mark.parametrize("kill_after", [1, pytest.param(9, marks=pytest.mark.heavy), 14])
def test_killed_at_any_step_then_run_again(tmp_path: Path, unbroken: Path, kill_after: int) -> None:
    config = write_config(tmp_path)
    process = start("train", config)
    metrics = tmp_path / "runs" / "run" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < kill_after:
        time.sleep(0.005)
        assert process.poll() is None, finish(process)
    process.send_signal(signal.SIGKILL)
    finish(process)
    again = start("train", config)
    assert "step" in finish(again)
    assert again.returncode == 0
    same_run(tmp_path / "runs" / "run", unbroken)


def test_a_signal_during_an_evaluation(tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends after a batch, not after a source, and what was seen of the source by then does not count."""
    config, real, seen = load_config(write_config(tmp_path)), run_module.evaluation_batches, []

    def batches(*given: object) -> Iterator[Batch]:
        for batch in real(*given):  # type: ignore[arg-type]
            yield batch
            seen.append(batch)
            if len(seen) == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "evaluation_batches", batches)
        assert train(config, ["test"]) == signal.SIGTERM
    assert len(seen) == 1
    run = tmp_path / "runs" / "run"
    assert not (run / "evals.jsonl").exists() or not evals(run)
    assert not list((run / "checkpoints").iterdir())
    assert train(config, ["test"]) is None
    same_run(run, unbroken)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(tmp_path: Path, unbroken: Path, number: signal.Signals) -> None:
    config = write_config(tmp_path, checkpoint={"every": 0})
    process = start("train", config)
    metrics = tmp_path / "runs" / "run" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        time.sleep(0.005)
        assert process.poll() is None, finish(process)
    process.send_signal(number)
    out = finish(process)
    assert process.returncode == 128 + number
    assert f"{number.name}: finishing this step" in out
    assert "the same command resumes" in out
    assert "Traceback" not in out
    done = len(metrics.read_text().splitlines())
    assert last_state(tmp_path / "runs" / "run")["step"] == done
    again = start("train", config)
    assert f"resuming after step {done}" in finish(again)
    same_run(tmp_path / "runs" / "run", unbroken)


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path: Path, unbroken: Path, capsys) -> None:
    config = load_config(write_config(tmp_path))
    train(config, ["test"])
    run = tmp_path / "runs" / "run"
    os.truncate(run / "checkpoints" / "step-000017" / "__0_0.distcp", 1000)
    capsys.readouterr()
    assert train(config, ["test"]) is None
    out = capsys.readouterr().out
    assert "step-000017 is damaged" in out
    assert "resuming after step 15" in out
    same_run(run, unbroken)
    replaced = (run / "metrics.replaced.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in replaced] == [16, 17]


def test_a_complete_run_is_left_alone(tmp_path: Path, capsys) -> None:
    config = load_config(write_config(tmp_path))
    train(config, ["test"])
    before = steps(tmp_path / "runs" / "run")
    capsys.readouterr()
    assert train(config, ["test"]) is None
    assert "complete" in capsys.readouterr().out
    assert steps(tmp_path / "runs" / "run") == before


@pytest.mark.parametrize(
    "recompute", ["recompute=full", "recompute=selective", "recompute=budget train.activation_gib=0.001"]
)
def test_recompute_and_synchronous_saves_change_nothing(tmp_path: Path, unbroken: Path, recompute: str) -> None:
    path = write_config(tmp_path, checkpoint={"every": 3, "asynchronous": False})
    train(load_config(path, f"train.{recompute}".split()), ["test"])
    same_run(tmp_path / "runs" / "run", unbroken)


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.name=muon"],
        ["optimizer.state=bf16", "train.precision=bf16"],
        pytest.param(["train.fp8=rowwise", "train.precision=bf16"], marks=pytest.mark.heavy),
    ],
)
def test_left_and_gone_on_with(tmp_path: Path, overrides: list[str]) -> None:
    """Other optimizers and numbers go on bitwise too, also across a stage's end."""
    path = write_config(tmp_path)
    train(load_config(path, ["name=whole", *overrides]), ["test"])
    for until in (4, 10, 99):
        train(load_config(path, overrides), ["test"], until=until)
    same_run(tmp_path / "runs" / "run", tmp_path / "runs" / "whole")


def test_micro_batch_does_not_change_the_numbers(tmp_path: Path, unbroken: Path) -> None:
    train(load_config(write_config(tmp_path), ["train.micro_batch=8"]), ["test"])
    for ours, theirs in zip(steps(tmp_path / "runs" / "run")[:8], steps(unbroken), strict=False):
        assert ours["digest"] == theirs["digest"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.feed_forward.width=192", "model.feed_forward.width: 160 -> 192"),
        ("train.seed=5", "train.seed: 1234 -> 5"),
        ("data.block=64", "data.block: 4096 -> 64"),
        ("train.device=cuda", "sees no GPU"),
        ("stages.base.train.steps=3", "Stages that a run has been through"),
    ],
)
def test_what_a_begun_run_cannot_change(tmp_path: Path, unbroken: Path, override: str, message: str) -> None:
    if "cuda" in override and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = unbroken.parent.parent / "config.yaml"
    process = start("train", config, override)
    out = finish(process)
    assert process.returncode == 2, out
    assert message in out
    assert "Traceback" not in out


def test_a_learning_rate_can_change_on_resume_and_is_said(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    train(load_config(path), ["test"])
    process = start("train", path, "stages.enhance.train.steps=6", "stages.enhance.optimizer.lr=2e-3")
    out = finish(process)
    assert process.returncode == 0, out
    assert "configuration changed: stages.enhance.optimizer.lr: 0.001 -> 0.002" in out
    assert steps(tmp_path / "runs" / "run")[-1]["step"] == 19
    assert (tmp_path / "runs" / "run" / "config-001.yaml").is_file()


def test_two_processes_cannot_train_one_run(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    first = start("train", path, "stages.base.train.steps=500")
    while not (tmp_path / "runs" / "run" / "metrics.jsonl").exists():
        time.sleep(0.02)
        assert first.poll() is None, finish(first)
    second = start("train", path)
    out = finish(second)
    first.kill()
    finish(first)
    assert second.returncode == 2
    assert f"is in use by process {first.pid}" in out


def test_divergence_stops_the_run_with_its_reason(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    overrides = [
        "optimizer.lr=1000",
        "optimizer.clip=0",
        "optimizer.weight_decay=1",  # weights times -999 at each step: infinite soon, however a CPU rounds
        "stages.enhance.optimizer.lr=1000",
        "train.max_skipped=2",
    ]
    process = start("train", path, *overrides)
    out = finish(process)
    assert process.returncode == 2
    assert "has not been finite for 2 steps in a row" in out
    assert any(line["skipped"] for line in steps(tmp_path / "runs" / "run"))


@pytest.mark.parametrize("eval_tokens", [0, 500])
def test_ids_past_the_vocabulary_are_named(tmp_path: Path, eval_tokens: int) -> None:
    path = write_config(tmp_path)
    process = start("train", path, "model.vocab=16", f"data.eval_tokens={eval_tokens}")
    out = finish(process)
    assert process.returncode == 2
    assert "but model.vocab is 16" in out


def test_state_holds_a_short_cursor(unbroken: Path) -> None:
    """The cursor is a few integers a source, no history."""
    cursor = last_state(unbroken)["progress"]["cursor"]
    assert set(cursor["sources"]) == {"web", "code"}
    assert len(json.dumps(cursor)) < 500


def test_optimizer_state_flows_between_stages(unbroken: Path) -> None:
    path = find_latest(unbroken / "checkpoints").path
    assert path is not None
    step = torch.zeros(())
    read_tensors(path, {"optimizer/norm.weight/step": step})
    assert step.item() == 17
