"""A whole run: make or find its folder, go through the stages in order, leave it so that it can go on."""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np

from internevo.checkpoint.commit import find_latest, read_state, step_name
from internevo.checkpoint.tensors import read_tensors
from internevo.checkpoint.writer import CheckpointWriter
from internevo.config.derive import places_before, stage_steps
from internevo.config.errors import UserError
from internevo.config.schema import RunConfig, StageConfig
from internevo.data.fingerprint import Facts, check_same, data_facts
from internevo.data.loader import Cursor, evaluation_batches
from internevo.data.plan import source_name
from internevo.data.statistics import label_counts
from internevo.data.store import TokenStore
from internevo.model.attention import describe_kernel
from internevo.model.flops import parameters
from internevo.monitor.environment import capture, write_environment
from internevo.monitor.metrics import EvalMetrics, peak_flops, read_metrics, rewind
from internevo.monitor.profile import StepProfiler
from internevo.monitor.report import write_report
from internevo.monitor.sinks import Sinks, check_sinks, open_sinks
from internevo.parallel.prepare import compute_dtype, stage_kernel
from internevo.parallel.world import World, join_world
from internevo.train.begin import begin_from
from internevo.train.device import choose_device
from internevo.train.evaluate import held_out_loss
from internevo.train.folder import RunFolder
from internevo.train.interrupt import Interrupt
from internevo.train.make_engine import check_engine, make_engine
from internevo.train.preflight import preflight
from internevo.train.progress import Progress
from internevo.train.trainer import Peak, StageTrainer


def train(config: RunConfig, command: Sequence[str], until: float = math.inf) -> signal.Signals | None:
    """Begin the run that `config` describes, or go on with it; under torchrun, as one rank of it.

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
        run = Run(config, folder, world, command)
        try:
            if seen is not None:
                run.sinks.message(seen)
            run.go(interrupt, until)
        finally:
            run.close()
        world.on_main(lambda: write_report(folder.path))
        return interrupt.signal


class Run:
    """A run in progress, from its newest whole checkpoint on."""

    def __init__(self, config: RunConfig, folder: RunFolder, world: World, command: Sequence[str]):
        self.config, self.folder, self.world = config, folder, world
        found = world.on_main(lambda: find_latest(folder.checkpoints))
        self.progress = Progress(Cursor())
        self.counted: dict[str, np.ndarray] = {}
        data_changes: list[str] = []
        if found.path is not None:
            state = read_state(found.path)
            self.progress = Progress.from_json(state["progress"])
            self._check_stage(state["stage"], state["places"])
            data_changes = self._check_data(state["data"])
        changes = world.on_main(lambda: folder.adopt(config))
        dtypes = {stage.train.precision: compute_dtype(stage) for stage in config.stages}
        self.peaks = {precision: Peak(*(peak_flops(world.device, dtype) or ())) for precision, dtype in dtypes.items()}
        stage = config.stages[self.progress.stage]
        self.kernel = describe_kernel(stage_kernel(stage, world.device), world.device)
        world.on_main(lambda: self._record(command))
        self.sinks: Sinks = open_sinks(config, folder.path, self.progress.step, world.rank)
        told = (f"configuration changed: {change}" for change in changes)
        for line in (*found.refused, *told, *(f"data changed: {change}" for change in data_changes)):
            self.sinks.message(line)
        if found.path is not None:
            done = self.progress.step == sum(stage_steps(stage.train) for stage in config.stages)
            goes = "the run is complete" if done else "resuming"
            self.sinks.message(f"{goes} after step {self.progress.step:,} ({found.path.name})")
        self.sinks.message(f"attention: {self.kernel}")
        self.profiler = StepProfiler(config.monitor.profile, folder.path, world.rank, world.device)
        saving = config.checkpoint
        self.writer = CheckpointWriter(folder.checkpoints, saving.keep, saving.asynchronous, world.saving)

    def go(self, interrupt: Interrupt, until: float) -> None:
        """Train what is left of the run, to step `until`, or until a signal asks to stop."""
        progress, stages = self.progress, self.config.stages
        while True:
            trainer = self._trainer(stages[progress.stage])
            if progress.stage_step == 0:
                self._evaluate(trainer, "start", interrupt)
            trainer.run(
                interrupt,
                until,
                self.writer,
                self.sinks.step,
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

    def close(self) -> None:
        """Finish the checkpoint being written and close the sinks."""
        try:
            self.writer.close()
        finally:
            self.profiler.close()
            self.sinks.close()

    def _trainer(self, stage: StageConfig) -> StageTrainer:
        """The stage's model and optimizer under its own layout, as the newest checkpoint has them."""
        world, step = self.world, self.progress.step
        engine = make_engine(stage, world)
        if step > 0:
            newest = self.folder.checkpoints / step_name(step)
            engine.load(lambda tensors: read_tensors(newest, tensors, world.control))
        elif stage.train.init_from is not None:
            for line in begin_from(engine, stage, world):
                self.sinks.message(line)
        peak = self.peaks[stage.train.precision]
        return StageTrainer(self.config.stages, self.progress, engine, world, peak, self.profiler)

    def _check_stage(self, name: str, places: int) -> None:
        stages, progress = self.config.stages, self.progress
        before = sum(stage_steps(stage.train) for stage in stages[: progress.stage])
        same = progress.stage < len(stages) and stages[progress.stage].name == name
        if not same or before != progress.step - progress.stage_step:
            raise UserError(
                f"{self.folder.path} has done {progress.step:,} steps and stands in stage {progress.stage + 1}, "
                f"{name!r}, step {progress.stage_step:,}; in this configuration the {progress.stage} stages before "
                f"have {before:,} steps. Stages that a run has been through must stay as they were; new ones can be "
                "added at the end."
            )
        if progress.stage_step > stage_steps(stages[progress.stage].train):
            raise UserError(
                f"{self.folder.path} has done {progress.stage_step:,} steps of stage {name!r}, more than this "
                "configuration gives it."
            )
        current = stages[progress.stage].train
        if places_before(current, progress.stage_step) != places:
            raise UserError(
                f"{self.folder.path} had places for {places:,} tokens in {progress.stage_step:,} steps of {name!r}; "
                "by this train.seq_len, batch_tokens and batch_ramp there would have been "
                f"{places_before(current, progress.stage_step):,}. To go on with another batch, keep the old one for "
                f"what is over: train.batch_ramp=[{{until: {places}, batch_tokens: THE OLD ONE}}] beside the new "
                "train.batch_tokens."
            )

    def _check_data(self, saved: Facts) -> list[str]:
        """What changed of the data, all of it accepted. The mixture of a stage that is over does not matter."""
        stages = self.config.stages[: self.progress.stage + 1]
        going_on = self.progress.stage_step < stage_steps(stages[-1].train)
        return check_same(saved, data_facts(stages), mixture=going_on, accept=stages[-1].data.accept)

    def _evaluate(self, trainer: StageTrainer, when: str, interrupt: Interrupt) -> None:
        """Held-out loss of every source of the run, as the current stage sees it; each only once."""
        stage = trainer.stage
        records = self.world.on_main(lambda: read_metrics(self.folder.evals))
        done = {(one["stage"], one["when"], one["source"], one["step"]) for one in records}
        sources = {source_name(one): one.path for each in self.config.stages for one in each.data.sources}
        for name, path in sources.items():
            store = TokenStore.open_heldout(path, stage.data.cache)
            if not stage.data.eval_tokens or store is None or (stage.name, when, name, self.progress.step) in done:
                continue
            part, train = trainer.engine.part, stage.train
            rows = train.micro_batch * part.parts
            padded = self.world.size > 1  # ranks take the same number of equally large steps
            batches = evaluation_batches(name, store, train.seq_len, rows, stage.data.eval_tokens, part, padded)
            result = held_out_loss(trainer.engine, batches, self._label_counts(path, stage))
            self.sinks.evaluation(
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
                )
            )
            if interrupt.agreed(self.world):
                return

    def _label_counts(self, path: str, stage: StageConfig) -> np.ndarray:
        """Of the training documents of a source, counted once."""
        if path not in self.counted:
            store, vocab = partial(TokenStore.open_source, path, stage.data.cache), stage.model.vocab
            self.counted[path] = self.world.on_main(lambda: label_counts(store(), vocab))
        return self.counted[path]

    def _record(self, command: Sequence[str]) -> None:
        """Put the records of the run where it goes on, and write down what it runs on."""
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
