"""Where metrics go: the run's JSON lines, the console and its log file, wandb, TensorBoard."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from internevo.config.schema import RunConfig
from internevo.files.errors import UserError
from internevo.monitor.console import ConsoleSink
from internevo.monitor.metrics import EVALS, METRICS, EvalMetrics, JsonLines, StepMetrics, shown
from internevo.monitor.terminal import warn


class Sink(Protocol):
    """Takes what a run reports."""

    name: str  # its name in messages

    def step(self, metrics: StepMetrics) -> None:
        """One step was done."""

    def evaluation(self, metrics: EvalMetrics) -> None:
        """A source was evaluated."""

    def close(self) -> None:
        """The run stops."""


class RecordError(UserError):
    """The record of a run could not be written, so that the run must not continue."""


class Sinks:
    """All sinks of a run as one. The record has every step; the others every `every`-th.

    An error of the record is a RecordError. Any other sink that fails is closed, and the others say so once.
    """

    def __init__(self, record: RecordSink | None, others: Iterable[Sink], every: int):
        self.record, self.others, self.every = record, list(others), every

    def step(self, metrics: StepMetrics) -> None:
        if self.record is not None:
            self.record.step(metrics)
        if metrics.step % self.every == 0 or metrics.step == 1 or metrics.skipped:
            self._show(lambda sink: sink.step(metrics))

    def evaluation(self, metrics: EvalMetrics) -> None:
        if self.record is not None:
            self.record.evaluation(metrics)
        self._show(lambda sink: sink.evaluation(metrics))

    def message(self, text: str) -> None:
        """Print something that a person should read."""

        def tell(sink: Sink) -> None:
            if isinstance(sink, ConsoleSink):
                sink.message(text)

        self._show(tell)

    def close(self) -> None:
        try:
            self._show(lambda sink: sink.close())
        finally:
            if self.record is not None:
                self.record.close()

    def add(self, name: str, make: Callable[[], Sink]) -> None:
        """Add the sink that `make` opens; when that fails, say that it is lost."""
        try:
            self.others.append(make())
        except Exception as error:  # no error of a sink stops training
            self.lost(name, error)

    def lost(self, name: str, error: Exception) -> None:
        """Say that the sink of this name shows nothing more."""
        why = (isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}"
        text = f"{name} is lost ({why}); training continues without it"
        if name == "the console":
            text += ", and the run's log has every line; Ctrl-C or SIGTERM stops it"
        self.message(text)
        if name == "the console" or not self.others:
            warn(text)

    def _show(self, act: Callable[[Sink], None]) -> None:
        for sink in list(self.others):
            try:
                act(sink)
            except Exception as error:  # as in `add`
                self.others.remove(sink)
                with suppress(Exception):
                    sink.close()
                self.lost(sink.name, error)


def check_sinks(config: RunConfig) -> None:
    """Raise UserError when `config.monitor` asks for a package that is not installed."""
    for name, wanted in (("wandb", config.monitor.wandb), ("tensorboard", config.monitor.tensorboard)):
        if wanted:
            try:
                import_module(name)
            except ImportError:
                remedy = f"pip install 'internevo[{name}]'"
                raise UserError(f"monitor.{name} is on, but {name} is missing: {remedy}") from None


def open_sinks(config: RunConfig, run: Path, step: int, rank: int = 0) -> Sinks:
    """The sinks that `config.monitor` asks for, for a run that resumes after `step`; past rank 0, a log alone."""
    log = run / "logs" / f"rank-{rank:04d}.log"
    sinks = Sinks(RecordSink(run), [], config.monitor.every) if rank == 0 else Sinks(None, [], every=1)
    if rank == 0:
        sinks.add("the console", lambda: ConsoleSink(config, None))
    sinks.add(str(log), lambda: ConsoleSink(config, log))
    if rank == 0 and config.monitor.wandb:
        sinks.add(WandbSink.name, lambda: WandbSink(config, run))
    if rank == 0 and config.monitor.tensorboard:
        sinks.add(TensorBoardSink.name, lambda: TensorBoardSink(run, step))
    for sink in sinks.others:
        if isinstance(sink, WandbSink):
            sinks.message(f"wandb: {sink.address}")
    return sinks


class RecordSink:
    """`metrics.jsonl` and `evals.jsonl`, the source of truth. Raises RecordError when one cannot be written."""

    def __init__(self, run: Path):
        self._run, self._failed = run, False
        self._files: dict[str, JsonLines] = {}
        for name in (METRICS, EVALS):
            with self._writing(name):
                self._files[name] = JsonLines(run / name)

    def step(self, metrics: StepMetrics) -> None:
        with self._writing(METRICS):
            self._files[METRICS].write(metrics)

    def evaluation(self, metrics: EvalMetrics) -> None:
        with self._writing(EVALS):
            self._files[EVALS].write(metrics)

    def close(self) -> None:
        for name, file in self._files.items():
            with self._writing(name):
                file.close()

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._failed:  # closing fails again, on the line that failed
                return
            self._failed = True
            raise RecordError(
                f"{self._run / name} cannot be written: {error.strerror}. It is the record of the run, which stops "
                "here. Free space or give access there; the same command then resumes from the newest checkpoint."
            ) from error


class WandbSink:
    """Weights & Biases. A resumed run stays under the same id; offline mode (WANDB_MODE=offline) works."""

    name = "wandb"

    def __init__(self, config: RunConfig, run: Path):
        import wandb

        asked = config.monitor.wandb_run
        id_file = run / "wandb-id"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4), encoding="utf-8")
        self._run = wandb.init(
            id=id_file.read_text(encoding="utf-8"),
            resume="allow",
            project=asked.project or os.environ.get("WANDB_PROJECT", "internevo"),
            entity=asked.entity,
            group=asked.group,
            tags=asked.tags or None,
            name=asked.name or config.name,
            dir=str(run),
            config=asdict(config),
            settings=wandb.Settings(silent=True),
        )
        self._run.define_metric("*", step_metric="step")

    @property
    def address(self) -> str:
        """Where the run can be seen; offline, how it gets there."""
        if self._run.offline:  # to ask for its url would print a warning
            return f"offline; `wandb sync {Path(self._run.dir).parent}` sends it"
        return self._run.url or "no address"

    def step(self, metrics: StepMetrics) -> None:
        values: dict[str, Any] = {f"train/{key}": value for key, value in _charted(metrics)}
        values |= {f"data/{source}": tokens for source, tokens in metrics.sources.items()}
        self._run.log({"step": metrics.step, "train/skipped": int(metrics.skipped), **values})

    def evaluation(self, metrics: EvalMetrics) -> None:
        self._run.log({"step": metrics.step, **_eval_values(metrics)})

    def close(self) -> None:
        self._run.finish()


class TensorBoardSink:
    """TensorBoard event files in `RUN/tensorboard`."""

    name = "TensorBoard"

    def __init__(self, run: Path, step: int):
        from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
        from torch.utils.tensorboard import SummaryWriter

        before = threading.excepthook

        def hook(found: threading.ExceptHookArgs) -> None:
            """Print no traceback of TensorBoard's thread: the next call here raises the same error."""
            if not isinstance(found.thread, _AsyncWriterThread):
                before(found)

        self._hook = before
        threading.excepthook = hook
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def step(self, metrics: StepMetrics) -> None:
        for key, value in _charted(metrics):
            self._writer.add_scalar(f"train/{key}", value, metrics.step)
        self._writer.flush()

    def evaluation(self, metrics: EvalMetrics) -> None:
        for key, value in _eval_values(metrics).items():
            self._writer.add_scalar(key, value, metrics.step)

    def close(self) -> None:
        try:
            self._writer.close()  # waits for the thread
        finally:
            threading.excepthook = self._hook


def _charted(metrics: StepMetrics) -> Iterator[tuple[str, float]]:
    """The numbers that become curves. A share of an unknown peak, or above 1, has none: a curve cannot explain it."""
    for key, how in shown(StepMetrics).items():
        value = getattr(metrics, key)
        if value is not None and not (how.share and value > 1):
            yield key, value
    yield from ((key, value) for key, value in (metrics.recorded or {}).items() if value is not None)


def _eval_values(metrics: EvalMetrics) -> dict[str, float]:
    # a later stage's first evaluation shares its step with the last one of the stage before
    place = "heldout at start" if metrics.when == "start" and metrics.step else "heldout"
    values = {f"{place}/{metrics.source}": metrics.loss}
    if metrics.frequencies is not None:
        values[f"frequencies/{metrics.source}"] = metrics.frequencies
    for name, value in (metrics.recorded or {}).items():
        if value is not None:
            values[f"{place}/{metrics.source}/{name}"] = value
    for first, last, loss, _ in metrics.by_position:
        values[f"{place}/{metrics.source}/positions {first}-{last}"] = loss
    return values
