"""What parts of a model record on one process: the loss that is trained on, names that are refused, passes that do not
count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from internevo.config.load import load_config
from internevo.data.batch import Batch
from internevo.files.errors import UserError
from internevo.model import transformer
from internevo.model.metrics import Combine, record, take
from internevo.model.recompute import Policy
from internevo.monitor.metrics import METRICS, read_metrics
from internevo.train.engine import TorchEngine
from internevo.train.loss_model import LossModel
from internevo.train.run import train
from internevo.train.step import train_step
from tests.parallel.jobs import ALONE, engine_of, next_batches, stage_of
from tests.parallel.recording import Measured, MeasuredBlock
from tests.train.runs import write_config


class Plain(transformer.FeedForward):
    """Records what a test says."""

    calls: list[tuple[Any, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        for arguments in self.calls:
            record(self, *arguments)
        return super().forward(x)


def build(monkeypatch: pytest.MonkeyPatch, store: Path, **changes: Any) -> tuple[TorchEngine, list[Batch]]:
    engine = engine_of(stage_of({"micro_batch": 4, **changes}), ALONE)
    assert isinstance(engine, TorchEngine)
    return engine, list(next_batches(store, engine, 2))


def test_the_gradient_is_that_of_the_sum_over_the_labels_and_the_loss_is_reported_alone(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(transformer.FEED_FORWARDS, "dense", Measured)
    monkeypatch.setattr(transformer, "Block", MeasuredBlock)
    monkeypatch.setattr(Measured, "share", 0.5)
    engine, (batch, _) = build(monkeypatch, store, micro_batch=8)
    staged = engine.stage_batch(batch)
    (micro,) = staged
    model: LossModel = engine.runner.model
    loss = model(micro) / batch.label_count
    losses = [one.value for one in take(model.modules()) if one.is_loss]
    assert len(losses) == 3 * 4  # three in each layer
    (loss + sum(losses) / batch.label_count).backward()  # type: ignore[operator]
    expected = {name: p.grad for name, p in engine.parameters.items()}
    for parameter in engine.parameters.values():
        parameter.grad = None
    assert engine.forward_backward(staged) == pytest.approx(float(loss.detach()), rel=1e-6)
    for name, parameter in engine.parameters.items():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-7)


def test_a_run_reports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(transformer.FEED_FORWARDS, "dense", Measured)
    config = write_config(tmp_path, stages=[{"name": "only", "train": {"steps": 3}}])
    train(load_config(config), ["test"])
    folder = tmp_path / "runs" / "run"
    lines = read_metrics(folder / METRICS)
    assert [line["recorded"]["router z"] > 0 for line in lines] == [True] * 3
    assert 'data-chart="recorded/router z"' in (folder / "report.html").read_text()
    assert f"router z {lines[-1]['recorded']['router z']:.4g}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("calls", "told"),
    [
        ([("loss", 1.0)], "records 'loss', which every step reports anyway"),
        ([("", 1.0)], "records ''.*a name has 1 to 64 letters"),
        ([("a<b", 1.0)], "records 'a<b'.*a name has 1 to 64 letters"),
        ([("a", 1.0, "median")], "'a' to be combined by 'median': use mean, sum, max, min or a function"),
        ([("a", torch.ones(3))], r"'a' with the shape \(3,\): record one number"),
        ([("a", 1.0), ("a", 1.0, Combine.max)], "'a' to be combined by max and by mean: use two names"),
    ],
)
def test_a_name_that_cannot_be_reported(
    calls: list[tuple[Any, ...]], told: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(transformer.FEED_FORWARDS, "dense", Plain)
    monkeypatch.setattr(Plain, "calls", calls)
    engine, (batch, _) = build(monkeypatch, store)
    with pytest.raises(UserError, match=told):
        train_step(engine, engine.stage_batch(batch), 1e-3)


def test_a_name_that_comes_after_the_first_step(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, batches = build(monkeypatch, store)
    assert train_step(engine, engine.stage_batch(batches[0]), 1e-3).recorded == {}
    record(engine, "late", 1.0)
    with pytest.raises(UserError, match="'late' for the first time after the first step: record it in every step"):
        train_step(engine, engine.stage_batch(batches[1]), 1e-3)


def test_a_value_that_is_not_recorded_in_a_step_is_not_reported(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, batches = build(monkeypatch, store)
    record(engine, "waited", 3.0, Combine.sum)
    record(engine, "waited", float("nan"), Combine.sum)
    (value,) = train_step(engine, engine.stage_batch(batches[0]), 1e-3).recorded.values()
    assert value != value
    assert train_step(engine, engine.stage_batch(batches[1]), 1e-3).recorded == {}


def test_an_auxiliary_loss_that_is_not_finite_moves_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(transformer.FEED_FORWARDS, "dense", Measured)
    monkeypatch.setattr(Measured, "share", float("inf"))
    engine, (batch, _) = build(monkeypatch, store)
    before = {name: p.detach().clone() for name, p in engine.parameters.items()}
    assert train_step(engine, engine.stage_batch(batch), 1e-3).skipped
    for name, parameter in engine.parameters.items():
        assert torch.equal(parameter, before[name])


def test_passes_without_a_gradient_and_recomputed_ones_leave_nothing(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(transformer.FEED_FORWARDS, "dense", Measured)
    engine, (batch, _) = build(monkeypatch, store, recompute="full")
    engine.forward_backward(engine.stage_batch(batch))
    engine.losses(batch)
    assert not take(engine.runner.model.modules())


@pytest.mark.parametrize("policy", list(Policy))
def test_a_compiled_block_records_in_one_graph(policy: Policy, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(transformer.FEED_FORWARDS, "dense", Measured)
    monkeypatch.setattr(transformer, "Block", MeasuredBlock)
    usual, batches = build(monkeypatch, store)
    engine, _ = build(monkeypatch, store, recompute=policy.value, compile=True)
    torch._dynamo.reset()
    for block in engine.runner.model.transformer.blocks:
        block.compile(backend="aot_eager", fullgraph=True)  # in place of the slower one
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in batches:
            expected = train_step(usual, usual.stage_batch(batch), 1e-3)
            got = train_step(engine, engine.stage_batch(batch), 1e-3)
            assert got.recorded == pytest.approx(expected.recorded, rel=1e-3)
            assert got.grad_norm == pytest.approx(expected.grad_norm, rel=1e-3)
