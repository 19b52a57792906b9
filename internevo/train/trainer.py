"""One stage: the loop over its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.profiler import record_function

from internevo.checkpoint.writer import CheckpointWriter
from internevo.config.derive import places_before, stage_steps
from internevo.config.schema import StageConfig
from internevo.data.batch import Batch
from internevo.data.fingerprint import data_facts
from internevo.data.loader import Extras, Loader
from internevo.data.mixing import Plan
from internevo.model.flops import causal_pairs, training_flops
from internevo.model.lora import adapter_parameters
from internevo.monitor.metrics import StepMetrics, memory_gib
from internevo.monitor.profile import DATA, StepProfiler
from internevo.optim.schedule import learning_rate
from internevo.parallel.world import World
from internevo.train.engine import Engine
from internevo.train.guard import check_ids, check_skipped
from internevo.train.interrupt import Interrupt
from internevo.train.micro_batch import Staged
from internevo.train.progress import Progress
from internevo.train.step import StepResult, train_step


@dataclass(frozen=True)
class Peak:
    """The device's arithmetic ceiling, which MFU is a share of."""

    flops: float | None = None
    """FLOP/s; None where no ceiling is known."""
    source: str | None = None

    def share(self, flops: float, device_seconds: float) -> float | None:
        """What part of the ceiling so many operations were; None where it is not known."""
        return None if self.flops is None else flops / (self.flops * device_seconds)


class StageTrainer:
    """Trains one stage of a run from wherever `progress` stands in it."""

    def __init__(
        self,
        stages: list[StageConfig],
        progress: Progress,
        engine: Engine,
        world: World,
        peak: Peak,
        profiler: StepProfiler,
        base: Mapping[str, Any] | None = None,
        extras: Extras | None = None,
    ):
        """`base` is what checkpoints are to say of the model that adapters are trained on."""
        self.stages, self.progress = stages, progress
        self.stage = stages[progress.stage]
        self.steps = stage_steps(self.stage.train)
        self.engine, self.world, self.peak, self.profiler = engine, world, peak, profiler
        self.extras = extras
        self._data = data_facts(stages[: progress.stage + 1])
        self._base = base
        self._adapters = adapter_parameters(self.stage.model, self.stage.train.lora)
        self._saved = progress.step

    def run(
        self,
        interrupt: Interrupt,
        until: float,
        writer: CheckpointWriter,
        report: Callable[[StepMetrics], None],
        tell: Callable[[str], None],
        evaluate: Callable[[], None],
    ) -> None:
        """Train to the stage's end, to step `until` of the run, or until a signal asks to stop.

        Saves and evaluates on the way, and saves at the end.
        """
        progress, every = self.progress, self.stage.checkpoint.every
        if progress.stage_step == self.steps:
            return
        with self._loader() as loader:
            while progress.stage_step < self.steps and progress.step < until and not interrupt.agreed(self.world):
                shares = progress.cursor.shares
                with self.profiler.step(progress.step + 1):
                    metrics = self._step(loader)
                if progress.cursor.shares != shares:
                    tell(self._mixture())
                report(metrics)
                self._check_skipped(writer)
                done = progress.stage_step == self.steps
                if done or (every and progress.step % every == 0 and self._moved):
                    interrupt.agreed(self.world)  # a step that could not be recorded is not saved
                    self.save(writer, permanent=done)
                if (often := self.stage.data.eval_every) and progress.step % often == 0 and not done:
                    evaluate()
            if progress.stage_step < self.steps:
                self.save(writer, permanent=False)

    def save(self, writer: CheckpointWriter, permanent: bool) -> None:
        """Save the run as it stands, if it has done steps since it was saved.

        Steps that were all skipped push no older checkpoint out: the new one has the weights of the newest.
        """
        if self._saved == self.progress.step:
            return
        moved, self._saved = self._moved, self.progress.step
        state = {"step": self.progress.step, "stage": self.stage.name, "progress": self.progress.to_json()}
        state["places"] = places_before(self.stage.train, self.progress.stage_step)
        state["data"] = self._data
        if self._base is not None:
            state["base"] = self._base
        writer.wait()  # its copy must not be in memory together with what an engine gathers
        writer.save(self.progress.step, self.engine.state(), state, permanent, rotate=moved)

    @property
    def _moved(self) -> bool:
        """Whether a step since the last save has changed the weights."""
        return self.progress.step - self._saved > self.progress.skipped_in_a_row

    def _check_skipped(self, writer: CheckpointWriter) -> None:
        progress, limit = self.progress, self.stage.train.max_skipped
        if progress.skipped_in_a_row >= limit:
            writer.check_finite(progress.step, self.engine.state())  # says more, where the weights are the cause
        check_skipped(progress.skipped_in_a_row, limit, progress.step)

    def _loader(self) -> Loader:
        return Loader(
            Plan.of(self.stage),
            seed=self.stage.train.seed,
            cursor=self.progress.cursor,
            step=self.progress.stage_step,
            part=self.engine.part,
            prepare=self._stage_batch,
            extras=self.extras,
        )

    def _stage_batch(self, batch: Batch) -> Staged:
        """What the loader's thread makes of a batch, while the step before it runs."""
        _ = batch.row_digests  # hashing takes tens of milliseconds; the digest is made of these later
        return self.engine.stage_batch(batch)

    def _step(self, loader: Loader) -> StepMetrics:
        start = time.perf_counter()
        with record_function(DATA):
            staged: Staged = loader.next()
        waited = time.perf_counter() - start
        batch = staged.batch
        check_ids(batch, self.stage.model.vocab)
        lr = learning_rate(self.stages, self.progress.stage, self.progress.stage_step)
        result = train_step(self.engine, staged, lr)
        self._advance(loader, batch, result)
        return self._metrics(batch, result, lr, time.perf_counter() - start, waited)

    def _advance(self, loader: Loader, batch: Batch, result: StepResult) -> None:
        progress = self.progress
        progress.cursor = loader.cursor
        progress.step += 1
        progress.stage_step += 1
        progress.tokens += sum(batch.real_tokens)
        progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if result.skipped else 0

    def _mixture(self) -> str:
        """What the mixture is from this step on."""
        cursor = self.progress.cursor
        total = sum(weight or 0.0 for weight, *_ in cursor.asked.values())
        told = []
        for name, share in cursor.shares.items():
            weight, epochs, _ = cursor.asked[name]
            wanted = (weight or 0.0) / total
            capped = epochs is not None and share < wanted * (1 - 1e-9)  # not by rounding
            told.append(f"{name} {share:.2%}" + (f" (max_epochs {epochs} allows no {wanted:.2%})" if capped else ""))
        return f"mixture from step {self.progress.step:,} on: {', '.join(told)}"

    def _metrics(self, batch: Batch, result: StepResult, lr: float, seconds: float, waited: float) -> StepMetrics:
        model, seq_len = self.stage.model, self.stage.train.seq_len
        tokens = sum(batch.real_tokens)
        sources: dict[str, int] = {}
        for source, real in zip(batch.sources, batch.real_tokens, strict=True):
            sources[source] = sources.get(source, 0) + real
        mfu, mfu_full = (
            self.peak.share(training_flops(model, tokens, pairs, self._adapters), seconds * self.world.size)
            for pairs in (real_pairs(batch), tokens * seq_len)
        )
        if mfu is not None and mfu > 1:  # what was measured is no ceiling: a share of it would mislead
            mfu = mfu_full = None
        return StepMetrics(
            step=self.progress.step,
            stage=self.stage.name,
            tokens=self.progress.tokens,
            loss=result.loss,
            grad_norm=result.grad_norm,
            lr=lr,
            seq_len=seq_len,
            step_s=seconds,
            data_s=waited,
            tokens_per_s=tokens / seconds,
            tokens_per_s_per_gpu=tokens / seconds / self.world.size,
            mfu=mfu,
            mfu_full=mfu_full,
            memory_gib=memory_gib(self.world.device),
            skipped=result.skipped,
            digest=self.engine.digest(batch),
            sources=sources,
            padding=len(batch.real_tokens) * seq_len - tokens,
            documents=batch.documents,
            cut_documents=batch.cut_documents,
            recorded=dict(result.recorded) or None,
        )


def real_pairs(batch: Batch) -> int:
    """Query-key pairs of the batch's real documents; padding is not work that counts."""
    pairs = 0
    for lengths, real in zip(batch.lengths, batch.real_tokens, strict=True):
        pairs += causal_pairs(lengths if sum(lengths) == real else lengths[:-1])
    return pairs
