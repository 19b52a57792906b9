"""Where metrics go: the run's JSON lines, the console and its log file, wandb, TensorBoard."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from internevo.config.errors import UserError
from internevo.config.schema import RunConfig
from internevo.monitor.console import ConsoleSink
from internevo.monitor.metrics import EVALS, METRICS, EvalMetrics, JsonLines, StepMetrics

_CHARTED = [
    "loss",
    "grad_norm",
    "lr",
    "tokens",
    "seq_len",
    "step_s",
    "data_s",
    "tokens_per_s",
    "tokens_per_s_per_gpu",
    "mfu",
    "mfu_full",
    "memory_gib",
]
"""What charts show of a step."""


class Sink(Protocol):
    """Takes what a run reports."""

    def step(self, metrics: StepMetrics) -> None:
        """One step was done."""

    def evaluation(self, metrics: EvalMetrics) -> None:
        """A source was evaluated."""

    def message(self, text: str) -> None:
        """Something a person should read."""

    def close(self) -> None:
        """The run stops."""


class Sinks:
    """All sinks of a run as one. `every` thins the steps that reach all but the first."""

    def __init__(self, record: Sink, others: Sequence[Sink], every: int):
        self.record, self.others, self.every = record, others, every

    def step(self, metrics: StepMetrics) -> None:
        """Pass a step on."""
        self.record.step(metrics)
        if metrics.step % self.every == 0 or metrics.step == 1 or metrics.skipped:
            for sink in self.others:
                sink.step(metrics)

    def evaluation(self, metrics: EvalMetrics) -> None:
        """Pass an evaluation on."""
        for sink in (self.record, *self.others):
            sink.evaluation(metrics)

    def message(self, text: str) -> None:
        """Pass a message on."""
        for sink in (self.record, *self.others):
            sink.message(text)

    def close(self) -> None:
        """Close all."""
        for sink in (self.record, *self.others):
            sink.close()


def open_sinks(config: RunConfig, run: Path, step: int, rank: int = 0) -> Sinks:
    """The sinks that `config.monitor` asks for, for a run that goes on after `step`; a log alone past rank 0.

    Raises UserError when one needs a package that is not installed.
    """
    if rank > 0:
        return Sinks(ConsoleSink(config, run / "logs" / f"rank-{rank:04d}.log"), [], config.monitor.every)
    others: list[Sink] = [ConsoleSink(config, None), ConsoleSink(config, run / "logs" / "rank-0000.log")]
    if config.monitor.wandb:
        others.append(WandbSink(config, run))
    if config.monitor.tensorboard:
        others.append(TensorBoardSink(run, step))
    return Sinks(RecordSink(run), others, config.monitor.every)


class RecordSink:
    """`metrics.jsonl` and `evals.jsonl`, the source of truth."""

    def __init__(self, run: Path):
        self._steps, self._evals = JsonLines(run / METRICS), JsonLines(run / EVALS)

    def step(self, metrics: StepMetrics) -> None:
        self._steps.write(metrics)

    def evaluation(self, metrics: EvalMetrics) -> None:
        self._evals.write(metrics)

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        self._steps.close()
        self._evals.close()


class WandbSink:
    """Weights & Biases. A resumed run goes on under the same id; offline mode (WANDB_MODE=offline) works."""

    def __init__(self, config: RunConfig, run: Path):
        try:
            import wandb
        except ImportError:
            raise UserError("monitor.wandb is on, but wandb is missing: pip install 'internevo[wandb]'") from None
        id_file = run / "wandb-id"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4), encoding="utf-8")
        self._run = wandb.init(
            id=id_file.read_text(encoding="utf-8"),
            resume="allow",
            name=config.name,
            dir=str(run),
            config=asdict(config),
            settings=wandb.Settings(silent=True),
        )
        self._run.define_metric("*", step_metric="step")

    def step(self, metrics: StepMetrics) -> None:
        values: dict[str, Any] = {f"train/{key}": getattr(metrics, key) for key in _CHARTED}
        values |= {f"data/{source}": tokens for source, tokens in metrics.sources.items()}
        self._run.log({"step": metrics.step, "train/skipped": int(metrics.skipped), **values})

    def evaluation(self, metrics: EvalMetrics) -> None:
        self._run.log({"step": metrics.step, **_eval_values(metrics)})

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        self._run.finish()


class TensorBoardSink:
    """TensorBoard event files in `RUN/tensorboard`."""

    def __init__(self, run: Path, step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "monitor.tensorboard is on, but tensorboard is missing: pip install 'internevo[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def step(self, metrics: StepMetrics) -> None:
        for key in _CHARTED:
            self._writer.add_scalar(f"train/{key}", getattr(metrics, key), metrics.step)
        self._writer.flush()

    def evaluation(self, metrics: EvalMetrics) -> None:
        for key, value in _eval_values(metrics).items():
            self._writer.add_scalar(key, value, metrics.step)

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        self._writer.close()


def _eval_values(metrics: EvalMetrics) -> dict[str, float]:
    values = {f"heldout/{metrics.source}": metrics.loss, f"unigram/{metrics.source}": metrics.unigram}
    for first, last, loss, _ in metrics.by_position:
        values[f"heldout/{metrics.source}/positions {first}-{last}"] = loss
    return values
