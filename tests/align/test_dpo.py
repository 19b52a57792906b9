"""Direct preference optimisation against its formula, computed in float64 a side at a time, without any packing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from internevo.align.dpo import DPO
from internevo.config.presets import model_preset
from internevo.config.schema import DataConfig, ObjectiveConfig, OptimizerConfig, SourceConfig, StageConfig, TrainConfig
from internevo.data.batch import Batch, digest
from internevo.data.loader import Loader
from internevo.data.mixing import Plan
from internevo.files.errors import UserError
from internevo.parallel.world import World
from internevo.train.build import make_engine
from internevo.train.engine import TorchEngine
from internevo.train.objective import make_objective
from internevo.train.step import train_step
from tests.align.pair_stores import REFERENCE, Side, random_pairs, write_pairs
from tests.parallel import reference

VOCAB, SEQ = 64, 96
CPU = torch.device("cpu")
BETA = 0.7


def stage_of(store: Path, rows: int = 4, **train: Any) -> StageConfig:
    """A stage of a tiny model on a store of pairs."""
    options = {"beta": BETA, "reference": REFERENCE}
    settings: dict[str, Any] = {
        "seq_len": SEQ,
        "batch_tokens": SEQ * rows,
        "precision": "fp32",
        "steps": 20,
        "objective": ObjectiveConfig("internevo.align.dpo:DPO", options),
        **train,
    }
    model = model_preset("tiny", layers=2, hidden=32, vocab=VOCAB, attention={"heads": 4, "kv_heads": 2})
    model.feed_forward.width = 48
    return StageConfig(
        model=model,
        train=TrainConfig(**settings),
        data=DataConfig([SourceConfig(str(store), name="pairs")]),
        optimizer=OptimizerConfig(lr=1e-3),
    )


def batches(stage: StageConfig, count: int) -> list[Batch]:
    extras = make_objective(stage).extras(World.alone(CPU))
    with Loader(Plan.of(stage), seed=1, extras=extras) as loader:
        return [loader.next() for _ in range(count)]


def log_prob(model: dict[str, Any], weights: dict[str, Tensor], side: Side) -> Tensor:
    """Of the trained tokens of a side by itself, float64; the forward pass is that of `reference`."""
    ids = torch.from_numpy(side.ids)[None]
    labels = torch.full_like(ids, -1)
    labels[0, side.first - 1 : -1] = ids[0, side.first :]
    trained = len(side.ids) - side.first
    return -reference.mean_loss(model, weights, reference.Rows(ids, labels, [[len(side.ids)]])) * trained


def expected(
    stage: StageConfig, weights: dict[str, Tensor], pairs: Sequence[tuple[Side, Side]], given: np.ndarray
) -> tuple[float, dict[str, Tensor]]:
    """The mean loss of pairs and its gradient: equation 7 of arXiv 2305.18290, by autograd."""
    leaves = {name: value.double().requires_grad_() for name, value in weights.items()}
    model, losses = asdict(stage.model), []
    for (chosen, rejected), (of_chosen, of_rejected) in zip(pairs, given.astype(np.float64), strict=True):
        ratio = log_prob(model, leaves, chosen) - of_chosen - (log_prob(model, leaves, rejected) - of_rejected)
        losses.append(-torch.log(torch.sigmoid(BETA * ratio)))
    loss = torch.stack(losses).mean()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return loss.item(), dict(zip(leaves, gradients, strict=True))


def rows_of(pairs: Sequence[tuple[Side, Side]], batch: Batch) -> list[int]:
    """Which pairs are in a batch, found by their tokens."""
    known = {tuple(np.concatenate([one.ids for one in pair]).tolist()): n for n, pair in enumerate(pairs)}
    found = []
    for tokens, lengths, real in zip(batch.tokens, batch.lengths, batch.real_tokens, strict=True):
        ends = np.cumsum([0, *(lengths if sum(lengths) == real else lengths[:-1])])
        found += [known[tuple(tokens[begin:end].tolist())] for begin, end in zip(ends[:-2:2], ends[2::2], strict=True)]
    return found


@pytest.mark.parametrize("changes", [{}, {"micro_batch": 2, "loss": "plain"}, {"micro_batch": 4, "recompute": "full"}])
def test_loss_and_gradients_are_those_of_the_formula(changes: dict[str, Any], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    pairs = random_pairs(40, VOCAB, 40)
    draw = np.random.default_rng(2)
    given = np.array([[-len(side.ids) * 4.0 for side in pair] for pair in pairs]) + draw.normal(0, 9, (40, 2))
    stage = stage_of(write_pairs(tmp_path / "pairs", pairs, given), **changes)
    engine = make_engine(stage, World.alone(CPU))
    assert isinstance(engine, TorchEngine)
    weights = {name: p.detach().clone() for name, p in engine.parameters.items()}
    (batch,) = batches(stage, 1)
    here = rows_of(pairs, batch)
    assert len(here) == batch.documents > 5
    assert max(map(len, batch.lengths)) > 4  # several pairs in a row
    loss, gradients = expected(stage, weights, [pairs[n] for n in here], given.astype(np.float32)[here])
    got = engine.forward_backward(engine.stage_batch(batch))
    assert float(got) == pytest.approx(loss, rel=1e-5)
    for name, parameter in engine.parameters.items():
        assert parameter.grad is not None
        error = (parameter.grad.double() - gradients[name]).norm() / gradients[name].norm()
        assert error < 2e-5, (name, float(error))


def test_no_side_sees_another(tmp_path: Path) -> None:
    """Other tokens in a rejected side change its own log-probability and nothing of the chosen one."""
    torch.set_num_threads(1)
    pairs = random_pairs(12, VOCAB, 40)
    others = [(one, replace(other, ids=(other.ids + 7) % VOCAB)) for one, other in pairs]
    seen = []
    for name, one in (("a", pairs), ("b", others)):
        stage = stage_of(write_pairs(tmp_path / name, one, np.zeros((12, 2))))
        engine = make_engine(stage, World.alone(CPU))
        (batch,) = batches(stage, 1)
        ((losses, _), *_) = engine.losses(batch)
        side = torch.from_numpy(batch.extras["side"][:1])
        seen.append((losses * (side % 2 == 1), losses * (side > 0) * (side % 2 == 0)))
    assert torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[0][1], seen[1][1])
    assert seen[0][0].abs().sum() > 0


def test_a_digest_covers_sides_and_references(tmp_path: Path) -> None:
    pairs = random_pairs(8, VOCAB, 40)
    found = []
    for name, values in (("a", np.zeros((8, 2))), ("b", np.ones((8, 2)))):
        (batch,) = batches(stage_of(write_pairs(tmp_path / name, pairs, values)), 1)
        found += [digest(batch), digest(replace(batch, extras={**batch.extras, "side": batch.extras["side"] + 1}))]
    assert len(set(found)) == 4


def test_a_step_without_any_pair_of_a_row_is_finite(tmp_path: Path) -> None:
    """Rows of padding alone hold no pair, and do not count."""
    pairs = random_pairs(3, VOCAB, 40)
    stage = stage_of(write_pairs(tmp_path / "pairs", pairs, np.zeros((3, 2))), rows=8, steps=1)
    stage.data.sources[0].max_epochs = 1
    (batch,) = batches(stage, 1)
    assert 0 in batch.real_tokens
    engine = make_engine(stage, World.alone(CPU))
    weights = {name: p.detach().clone() for name, p in engine.parameters.items()}  # type: ignore[attr-defined]
    loss, _ = expected(stage, weights, [pairs[n] for n in rows_of(pairs, batch)], np.zeros((3, 2)))
    assert train_step(engine, engine.stage_batch(batch), 1e-3).loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"average": "message"}, "train.average: message has no meaning for pairs"),
        ({"loss": "liger"}, "train.loss: liger gives all tokens the same weight"),
        ({"beta": 0}, "options.beta: must be a number above 0, found 0"),
        ({"beta": "much"}, "options.beta: must be a number above 0, found 'much'"),
        ({"gamma": 1}, r"train.objective.options.gamma: internevo.align.dpo:DPO has no such option; known are beta"),
        ({"reference": None}, "train.init_from: DPO begins with a model"),
        ({"kind": "internevo.align.dpo:LEAST"}, "neither a class nor a function"),
        ({"kind": "internevo.align.dpo:Tensor"}, "is no internevo.train.objective.Objective"),
        ({"kind": "next_token"}, "next_token has no such option; known are none"),
    ],
)
def test_settings_that_it_cannot_have(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    stage = stage_of(tmp_path)
    objective = stage.train.objective
    for key, value in changes.items():
        if key == "kind":
            objective.kind = value
        elif key in ("average", "loss"):
            setattr(stage.train, key, value)
        else:
            objective.options[key] = value
    with pytest.raises(UserError, match=message):
        make_objective(stage)


def test_equal_log_probabilities_cost_the_logarithm_of_two(tmp_path: Path) -> None:
    """At the reference itself no pair is preferred; the rest of the run begins there."""
    pairs = random_pairs(6, VOCAB, 40)
    stage = stage_of(tmp_path / "pairs")
    engine = make_engine(stage, World.alone(CPU))
    assert isinstance(engine, TorchEngine)
    weights = {name: p.detach().double() for name, p in engine.parameters.items()}
    own = np.array([[float(log_prob(asdict(stage.model), weights, side)) for side in pair] for pair in pairs])
    write_pairs(tmp_path / "pairs", pairs, own)
    (batch,) = batches(stage, 1)
    assert float(engine.forward_backward(engine.stage_batch(batch))) == pytest.approx(math.log(2), rel=1e-5)
    assert DPO(stage).divisor(batch) == batch.documents
