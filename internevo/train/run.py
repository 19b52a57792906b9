"""A whole run: make or find its folder, go through the stages in order, leave it so that it can resume."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import takewhile
from typing import TypeVar

import numpy as np

from internevo.checkpoint.writer import CheckpointWriter
from internevo.config.derive import stage_steps
from internevo.config.schema import RunConfig, StageConfig
from internevo.data.loader import Extras, evaluation_batches
from internevo.data.mixing import Plan, source_name
from internevo.model.attention import describe_kernel
from internevo.model.flops import parameters
from internevo.monitor.console import ConsoleSink
from internevo.monitor.environment import capture, write_environment
from internevo.monitor.metrics import EvalMetrics, peak_flops, read_metrics, rewind
from internevo.monitor.profile import StepProfiler
from internevo.monitor.report import write_report
from internevo.monitor.sinks import RecordError, Sinks, check_sinks, open_sinks
from internevo.parallel.block_settings import compute_dtype, stage_kernel
from internevo.parallel.world import World, join_world
from internevo.tokens.statistics import label_counts
from internevo.tokens.store import TokenStore
from internevo.train.build import check_engine, choose_device, make_engine
from internevo.train.evaluate import held_out_loss
from internevo.train.folder import RunFolder
from internevo.train.initial_weights import begin_from
from internevo.train.interrupt import Interrupt
from internevo.train.objective import make_objective
from internevo.train.own_files import write_own_files
from internevo.train.preflight import preflight
from internevo.train.resume import find_standing, stand
from internevo.train.trainer import Peak, StageTrainer

T = TypeVar("T")


def train(
    config: RunConfig, command: Sequence[str] = ("internevo.train_run",), until: float = math.inf
) -> signal.Signals | None:
    """Begin the run that `config` describes, or resume it; under torchrun, as one rank of it.

    `command` is the command line, kept for the record. With `until`, the run is saved and left after that step.
    Returns the signal that stopped the run early, or None. Raises UserError for what a person can put right.
    """
    with ExitStack() as stack:
        world = stack.enter_context(join_world(choose_device(config.train.device)))
        for stage in config.stages:
            check_engine(stage, world.size, world.device)  # every stage can be trained, or nothing is begun
        world.on_main(lambda: check_sinks(config))  # before there is a folder of a run that cannot begin
        seen = preflight(world, config)
        folder = RunFolder.of(config)
        world.on_main(lambda: stack.enter_context(folder).path)
        interrupt = stack.enter_context(Interrupt())
        run = Run(config, folder, world)
        if (why := run.nothing_to_do(until)) is not None:
            if world.main:
                Sinks(None, [ConsoleSink(config, None)], every=1).message(why)
            return None
        run.told[:0] = [seen] if seen is not None else []
        try:
            run.go(command, interrupt, until)
            run.finish()
        finally:
            run.close()
        return interrupt.signal


class Run:
    """A run, from its newest whole checkpoint on. Its folder is only read until it begins."""

    sinks: Sinks
    writer: CheckpointWriter
    extras: dict[str, Extras | None]
    """What the objectives of the stages that are left have to know of each place, by stage."""

    def __init__(self, config: RunConfig, folder: RunFolder, world: World):
        self.config, self.folder, self.world = config, folder, world
        at = find_standing(config, folder, world)
        self.progress = at.progress
        self.base = at.base
        """What the frozen model of the run's adapters is, where it has one."""
        self.sources = {source_name(one): one.path for each in config.stages for one in each.data.sources}
        self.counted: dict[str, np.ndarray] = {}
        self.changes = world.on_main(lambda: folder.changes(config))
        dtypes = {stage.train.precision: compute_dtype(stage) for stage in config.stages}
        self.peaks = {precision: Peak(*(peak_flops(world.device, dtype) or ())) for precision, dtype in dtypes.items()}
        stage = config.stages[self.progress.stage]
        self.kernel = describe_kernel(stage_kernel(stage, world.device), world.device)
        self.refused = at.refused
        told = (f"configuration changed: {change}" for change in self.changes)
        self.told = [*self.refused, *told, *(f"data changed: {change}" for change in at.data_changes)]
        """What a person should read when the run begins."""
        if at.checkpoint is not None:
            self.told.append(f"resuming after step {self.progress.step:,} ({at.checkpoint.name})")
        self.told.append(f"attention: {self.kernel}")
        self.profiler = StepProfiler(config.monitor.profile, folder.path, world.rank, world.device)
        self._opened = ExitStack()
        self._tell: Callable[[str], None] = self.told.append

    def nothing_to_do(self, until: float) -> str | None:
        """Why nothing is left to train or evaluate, in which case nothing is to be written; None when there is.

        A run that is complete stays what it is, whatever changed in the configuration or the data since.
        """
        progress, stage = self.progress, self.config.stages[self.progress.stage]
        complete = progress.step == sum(stage_steps(stage.train) for stage in self.config.stages)
        if progress.step == 0 or not (complete or progress.step >= until):
            return None
        ended = progress.stage_step == stage_steps(stage.train)
        if ended and not self.changes and self._to_evaluate(stage, "end"):
            return None
        if complete:
            why = f"the run is complete after step {progress.step:,}, and nothing was written"
        else:
            why = f"the run has done {progress.step:,} steps, and no more were asked for; nothing was written"
        return "\n".join([*self.refused, why, *(f"without effect: {change}" for change in self.changes)])

    def go(self, command: Sequence[str], interrupt: Interrupt, until: float) -> None:
        """Train what is left of the run, to step `until`, or until a signal asks to stop."""
        progress, stages = self.progress, self.config.stages
        # both may be refused: nothing has been written
        left = stages[progress.stage :]
        self.extras = {stage.name: make_objective(stage).extras(self.world) for stage in left}
        trainer = self._trainer(stages[progress.stage])
        self._begin(command, interrupt)
        while True:
            if progress.stage_step == 0:
                self._evaluate(trainer, "start", interrupt)
            trainer.run(
                interrupt,
                until,
                self.writer,
                recorded(self.sinks.step, interrupt),
                self.sinks.message,
                partial(self._evaluate, trainer, "middle", interrupt),
            )
            if progress.stage_step < trainer.steps:
                return
            if not interrupt.agreed(self.world):
                self._evaluate(trainer, "end", interrupt)
            if interrupt.agreed(self.world) or progress.stage + 1 == len(stages):
                return
            progress.stage, progress.stage_step = progress.stage + 1, 0
            progress.cursor = progress.cursor.next_stage()
            self.writer.release()  # the next stage reads what this one has saved, and its state may be of other sizes
            trainer.engine.close()  # two stages' weights and optimizer states must not be in memory together
            trainer = self._trainer(stages[progress.stage])

    def finish(self) -> None:
        """Wait for the checkpoint being written, and write the run's page."""
        self.writer.wait()
        self.world.on_main(self._report)

    def close(self) -> None:
        """Finish the checkpoint being written and close the sinks."""
        self._opened.close()

    def _begin(self, command: Sequence[str], interrupt: Interrupt) -> None:
        """Make the folder that of this configuration, and open what is written on the way."""
        world, saving = self.world, self.config.checkpoint
        world.on_main(lambda: self.folder.adopt(self.config))
        world.on_main(lambda: self._record(command))
        world.on_main(lambda: write_own_files(self.folder, self.config.stages))
        try:
            self.sinks = open_sinks(self.config, self.folder.path, self.progress.step, world.rank)
        except RecordError as error:
            interrupt.fail(error)
        interrupt.agreed(world)
        self._opened.callback(self.sinks.close)
        self._opened.callback(self.profiler.close)
        for line in self.told:
            self.sinks.message(line)
        self._tell = self.sinks.message
        self.writer = CheckpointWriter(self.folder.checkpoints, saving.keep, saving.asynchronous, world.saving)
        self._opened.callback(self.writer.close)

    def _report(self) -> None:
        try:
            write_report(self.folder.path)
        except Exception as error:  # a page only shows: the run is done and saved without it
            self.sinks.message(
                f"report.html was not written ({type(error).__name__}: {error}); `internevo report {self.folder.path}` "
                "writes it"
            )

    def _trainer(self, stage: StageConfig) -> StageTrainer:
        """The stage's model and optimizer under its own layout, as the newest checkpoint has them."""
        world = self.world
        engine = make_engine(stage, world)
        for line in engine.notes:
            self._tell(line)
        if stage.train.lora.rank or (stage.train.init_from is not None and self.progress.step == 0):
            begun = begin_from(engine, stage, world, self.base)
            self.base = begun.base
            for line in begun.told:
                self._tell(line)
        if self.progress.step > 0:
            stand(engine, self.folder, self.progress.step, world)
        peak = self.peaks[stage.train.precision]
        extras = self.extras[stage.name]
        return StageTrainer(
            self.config.stages, self.progress, engine, world, peak, self.profiler, base=self.base, extras=extras
        )

    def _evaluate(self, trainer: StageTrainer, when: str, interrupt: Interrupt) -> None:
        """Held-out loss of every source of the run, as the current stage sees it; each only once.

        A signal ends it after a batch. What was seen of a source by then does not count: it is evaluated when resumed.
        """
        stage = trainer.stage
        for name, store in self._to_evaluate(stage, when).items():
            part, train = trainer.engine.part, stage.train
            rows = train.micro_batch * part.parts
            padded = self.world.size > 1  # ranks take the same number of equally large steps
            extras = trainer.extras if store.paired and Plan.of(stage).band(name) is not None else None
            batches = evaluation_batches(name, store, train.seq_len, rows, stage.data.eval_tokens, part, padded, extras)
            batches = takewhile(lambda batch: not interrupt.agreed(self.world), batches)
            result = held_out_loss(trainer.engine, batches, self._label_counts(name, stage))
            if interrupt.agreed(self.world):
                return
            if result is None:
                self.sinks.message(f"nothing can be predicted in the held-out documents of {name}: each is one token")
                continue
            recorded(self.sinks.evaluation, interrupt)(
                EvalMetrics(
                    step=self.progress.step,
                    stage=stage.name,
                    when=when,
                    source=name,
                    seq_len=stage.train.seq_len,
                    tokens=result.labels,
                    loss=result.loss,
                    frequencies=result.frequencies,
                    by_position=result.by_position,
                    recorded={**result.measured} or None,
                )
            )
            if interrupt.agreed(self.world):
                return

    def _to_evaluate(self, stage: StageConfig, when: str) -> dict[str, TokenStore]:
        """What is held out of the run's sources, by name, and has not been evaluated at this point."""
        if not stage.data.eval_tokens:
            return {}
        records = self.world.on_main(lambda: read_metrics(self.folder.evals))
        done = {(one["stage"], one["when"], one["source"], one["step"]) for one in records}
        stores = {
            name: TokenStore.open_heldout(path, stage.data.cache)
            for name, path in self.sources.items()
            if (stage.name, when, name, self.progress.step) not in done
        }
        return {name: store for name, store in stores.items() if store is not None}

    def _label_counts(self, source: str, stage: StageConfig) -> np.ndarray | None:
        """Of the documents of a source that any stage trains on, counted once; None where none does."""
        bands = [Plan.of(one).band(source) for one in self.config.stages]
        trained = [band for band in bands if band is not None]
        if not trained:
            return None
        if source not in self.counted:
            path, cache, vocab = self.sources[source], stage.data.cache, stage.model.vocab

            def holds(lengths: np.ndarray) -> np.ndarray:
                return np.any([band.holds(lengths) for band in trained], axis=0)

            count = partial(label_counts, vocab=vocab, holds=holds)
            self.counted[source] = self.world.on_main(lambda: count(TokenStore.open_source(path, cache)))
        return self.counted[source]

    def _record(self, command: Sequence[str]) -> None:
        """Put the records of the run where it resumes, and write down what it runs on."""
        rewind(self.folder.path, self.progress.step)
        model = self.config.model
        total = parameters(model)
        embeddings = model.vocab * model.hidden * (1 if model.tied else 2)
        facts = capture(self.world.device, command, self.world.size)
        peak = self.peaks[self.config.stages[self.progress.stage].train.precision]
        facts |= {"peak_flops": peak.flops, "peak_source": peak.source}
        facts |= {"attention_kernel": self.kernel}
        facts |= {"parameters": total, "non_embedding_parameters": total - embeddings}
        write_environment(self.folder.environment, facts)


def recorded(report: Callable[[T], None], interrupt: Interrupt) -> Callable[[T], None]:
    """`report`, by which all processes stop together when one cannot write what it records."""

    def call(what: T) -> None:
        try:
            report(what)
        except RecordError as error:
            interrupt.fail(error)

    return call
