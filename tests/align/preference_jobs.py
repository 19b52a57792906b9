"""What ranks do in tests of preferences: `tests.parallel.jobs` on pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from internevo.config.schema import DataConfig, ObjectiveConfig, SourceConfig, StageConfig
from internevo.data.loader import Loader, evaluation_batches
from internevo.data.mixing import Plan
from internevo.parallel.world import World
from internevo.tokens.store import TokenStore
from internevo.train.evaluate import held_out_loss
from internevo.train.objective import make_objective
from internevo.train.step import train_step
from tests.align.pair_stores import REFERENCE
from tests.parallel.jobs import LR, SEQ_LEN, Trained, engine_of, keep_gradients, stage_of, strip, weights_of


@dataclass
class Learned(Trained):
    """What a few steps on pairs did."""

    recorded: list[dict[str, float]] = field(default_factory=list)
    held_out: dict[str, float] = field(default_factory=dict)
    """What the objective says of the pairs of the first store, before the first step."""


def pair_stage(changes: dict[str, Any], stores: list[Path], beta: float = 0.7) -> StageConfig:
    """The stage of a layout on stores of pairs, the first of which gives twice as much as each other."""
    stage = stage_of(changes)
    stage.train.objective = ObjectiveConfig("internevo.align.dpo:DPO", {"beta": beta, "reference": REFERENCE})
    stage.data = DataConfig([SourceConfig(str(one), 1.0 + (number == 0)) for number, one in enumerate(stores)])
    return stage


def learn(world: World, changes: dict[str, Any], stores: list[Path], steps: int) -> Learned:
    """Train some steps on pairs."""
    stage = pair_stage(changes, stores)
    engine = engine_of(stage, world)
    result = Learned(weights=weights_of(engine))
    keep_gradients(engine, result)
    extras = make_objective(stage).extras(world)
    store, rows = TokenStore.open_source(stores[0]), stage.train.micro_batch * engine.part.parts
    batches = evaluation_batches("held out", store, SEQ_LEN, rows, 10**6, engine.part, world.size > 1, extras)
    found = held_out_loss(engine, batches, None)
    assert found is not None
    result.held_out = {**found.measured, "loss": found.loss}
    with Loader(Plan.of(stage), seed=1, part=engine.part, extras=extras) as loader:
        for _ in range(steps):
            batch = loader.next()
            done = train_step(engine, engine.stage_batch(batch), LR)
            result.losses.append(done.loss)
            result.norms.append(done.grad_norm)
            result.digests.append(engine.digest(batch))
            result.recorded.append(done.recorded)
    if not world.main:
        short = strip(result)
        return Learned(short.losses, short.norms, short.digests, recorded=result.recorded, held_out=result.held_out)
    return result
