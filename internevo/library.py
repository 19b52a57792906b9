"""The package as a library: what `import internevo` gives. `docs/library.md` shows each of them at work.

These are the functions and classes of the command line, or shorter forms of them, for one process.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from internevo.config.derive import stage_steps
from internevo.config.load import load_config
from internevo.config.presets import model_preset
from internevo.config.schema import ModelConfig, RunConfig, StageConfig
from internevo.data.loader import Loader
from internevo.data.mixing import Plan
from internevo.files.errors import UserError
from internevo.model.generate import generate
from internevo.model.initial import initial_model
from internevo.model.transformer import Transformer
from internevo.optim.schedule import learning_rate
from internevo.parallel.world import World
from internevo.tokens.prepare import prepare
from internevo.tokens.tokenizer import Tokenizer, load_tokenizer
from internevo.tokens.train_tokenizer import train_tokenizer
from internevo.train.build import check_engine, choose_device, make_engine
from internevo.train.initial_weights import shape_differences
from internevo.train.objective import make_objective
from internevo.train.run import train as train_run
from internevo.train.step import StepResult, train_step
from internevo.train.stored_model import StoredModel, open_model

__all__ = [
    "ModelConfig",
    "RunConfig",
    "StageConfig",
    "StepResult",
    "StoredModel",
    "Tokenizer",
    "Trainer",
    "Transformer",
    "UserError",
    "build_model",
    "generate",
    "load_config",
    "load_tokenizer",
    "model_preset",
    "open_loader",
    "open_model",
    "prepare",
    "train_run",
    "train_tokenizer",
]


def build_model(config: ModelConfig | str, seed: int = 1234, device: torch.device | str = "cpu") -> Transformer:
    """A model in fp32 with the first weights that `seed` gives. `config` is the name of a preset, or a whole shape, as
    `model_preset` and `load_config` make it.

    `model(ids)` gives logits `[batch, seq, vocab]` of token ids `[batch, seq]`, each row one document. Raises KeyError
    for an unknown preset.
    """
    return initial_model(model_preset(config) if isinstance(config, str) else config, device, seed)


def open_loader(config: RunConfig, stage: str | None = None) -> Loader:
    """The batches of a stage, the first if none is named, from its beginning; all rows of every step.

    Iterate it, in a `with` block: a thread makes the next batch meanwhile. Raises StoreError, a UserError, for a token
    store that cannot be used.
    """
    chosen = _stage(config, stage)
    return Loader(Plan.of(chosen), seed=chosen.train.seed)


class Trainer:
    """Trains one stage of a configuration on this process, a step at a time, and writes nothing to disk.

    `internevo.train_run(config)` trains a whole run with its folder, checkpoints and records.
    """

    def __init__(self, config: RunConfig, stage: str | None = None, model: Transformer | None = None):
        """The first stage if none is named; with the weights of `model`, which is moved to the stage's device and
        trained in place, or those of the stage's seed.

        Raises UserError for settings that one process cannot have, for a model of another shape, and as `open_loader`
        does.
        """
        self.stages, self.stage = config.stages, _stage(config, stage)
        if self.stage.optimizer.state != "fp32" or self.stage.parallel.zero.engine != "fsdp":
            raise UserError("a Trainer has optimizer.state fp32 and the engine fsdp; use `train_run` for others")
        if self.stage.train.lora.rank:
            raise UserError("a Trainer trains whole models; use `train_run` with train.lora")
        if self.stage.train.init_from is not None and model is None:
            raise UserError("a Trainer reads no train.init_from: give it `open_model(PATH).load()` as its model")
        device = choose_device(self.stage.train.device)
        check_engine(self.stage, 1, device)
        if model is not None and (different := shape_differences(self.stage.model, model.config)):
            raise UserError("the model is of another shape than the stage's:\n  " + "\n  ".join(different))
        self.model = (model or build_model(self.stage.model, self.stage.train.seed)).to(device)
        self.engine = make_engine(self.stage, World.alone(device), self.model)
        self.steps = 0  # that have been done
        self._loader = Loader(
            Plan.of(self.stage),
            seed=self.stage.train.seed,
            part=self.engine.part,
            prepare=self.engine.stage_batch,
            extras=make_objective(self.stage).extras(World.alone(device)),
        )

    def step(self) -> StepResult:
        """Train on the next batch. Raises UserError after the stage's last step."""
        if self.steps >= stage_steps(self.stage.train):
            raise UserError(f"stage {self.stage.name} has ended after {self.steps:,} steps")
        rate = learning_rate(self.stages, self.stages.index(self.stage), self.steps)
        result = train_step(self.engine, self._loader.next(), rate)
        self.steps += 1
        return result

    def __iter__(self) -> Iterator[StepResult]:
        """Step after step, to the stage's end."""
        while self.steps < stage_steps(self.stage.train):
            yield self.step()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._loader.__exit__(*exception)


def _stage(config: RunConfig, name: str | None) -> StageConfig:
    for stage in config.stages:
        if name in (None, stage.name):
            return stage
    raise UserError(f"there is no stage {name!r}; the run has {', '.join(stage.name for stage in config.stages)}")
