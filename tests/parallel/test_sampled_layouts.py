"""Models, layouts and settings that the matrix of `test_layouts.py` does not have, compared with float64 training.

Compared are losses, gradient norms, the first gradients, and after three steps all weights and all moments. A seeded
handful is drawn at random; `tools/sample_layouts.py` draws hundreds.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from internevo.config.read import merge
from internevo.config.schema import StageConfig
from internevo.parallel.world import World
from internevo.train.build import make_engine
from tests.parallel.jobs import ALONE
from tests.parallel.sampling import (
    ALLOWED,
    Combination,
    combination,
    errors_of,
    expectation,
    go,
    load,
    try_combination,
    write_config,
    write_stores,
)

installed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install '.[deepspeed]'"
)
PLAIN = {
    "model": {
        "hidden": 32,
        "layers": 2,
        "vocab": 256,
        "init_std": 0.1,
        "attention": {"heads": 4, "kv_heads": 2},
        "feed_forward": {"width": 64},
    },
    "optimizer": {"lr": 5e-3, "weight_decay": 1.0},
    "train": {"seq_len": 32, "batch_tokens": 256, "micro_batch": 2, "precision": "fp32", "steps": 8, "device": "cpu"},
    "data": {"sources": [{"path": "web"}, {"path": "masked"}]},
}
RAMP = [{"until": 1, "batch_tokens": 128}, {"until": 129, "batch_tokens": 192}]
INTERLEAVED = {"pipeline": {"size": 2, "schedule": "interleaved"}}
ODD = {"vocab": 257, "feed_forward": {"width": 33}}
MUP = {"width_base": 8}
YARN = {"rope": {"scaling": {"kind": "yarn", "factor": 4.0, "original_seq_len": 16}}}
LLAMA3 = {"rope": {"scaling": {"kind": "llama3", "factor": 4.0, "original_seq_len": 16}}}

# ranks, and what is changed in PLAIN
KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "one kv head, ulysses2": (
        2,
        {"model": {"attention": {"kv_heads": 1}}, "parallel": {"context": {"size": 2, "ulysses": 2}}},
    ),
    "one kv head, zero 3": (2, {"model": {"attention": {"kv_heads": 1}}, "parallel": {"zero": {"stage": 3}}}),
    "one kv head, ring2 x ulysses2": (
        4,
        {"model": {"attention": {"kv_heads": 1}}, "parallel": {"context": {"size": 4, "ulysses": 2}}},
    ),
    "one kv head, tp2": (2, {"model": {"attention": {"kv_heads": 1}}, "parallel": {"tensor": 2}}),
    "two kv heads, biases, norms of heads, tp4, no sequence parallelism": (
        4,
        {
            "model": {"attention": {"kv_heads": 2, "bias": True, "qk_norm": True}},
            "parallel": {"tensor": 4, "sequence": False},
        },
    ),
    "one kv head, Muon, dp2 x tp2, zero 3": (
        4,
        {
            "model": {"attention": {"kv_heads": 1, "bias": True}},
            "optimizer": {"name": "muon"},
            "parallel": {"tensor": 2, "zero": {"stage": 3}},
        },
    ),
    "width scaling, Muon, dp2 x tp2": (
        4,
        {"model": MUP, "optimizer": {"name": "muon"}, "parallel": {"tensor": 2}},
    ),
    "head_dim of its own, tp2": (2, {"model": {"attention": {"head_dim": 12}}, "parallel": {"tensor": 2}}),
    "head_dim of its own, ring2, yarn": (
        2,
        {"model": {**YARN, "attention": {"head_dim": 12}}, "parallel": {"context": {"size": 2, "ulysses": 1}}},
    ),
    "odd vocabulary and ffn, zero 3": (2, {"model": ODD, "parallel": {"zero": {"stage": 3}}}),
    "odd vocabulary and ffn, pp2, 1f1b": (2, {"model": ODD, "parallel": {"pipeline": {"size": 2}}}),
    "odd vocabulary and ffn, hybrid zero 2": (4, {"model": ODD, "parallel": {"zero": {"stage": 2, "shard": 2}}}),
    "width scaling, zero 2": (2, {"model": MUP, "parallel": {"zero": {"stage": 2}}}),
    "width scaling, tp2": (2, {"model": MUP, "parallel": {"tensor": 2}}),
    "width scaling, dp2 x pp2, zero 3": (
        4,
        {"model": MUP, "parallel": {"pipeline": {"size": 2}, "zero": {"stage": 3}}, "train": {"micro_batch": 1}},
    ),
    "interleaved, zero 3": (2, {"model": {"layers": 5}, "parallel": {**INTERLEAVED, "zero": {"stage": 3}}}),
    "interleaved, dp2, zero 3, full recomputation": (
        4,
        {
            "model": {"layers": 4, **LLAMA3},
            "parallel": {**INTERLEAVED, "zero": {"stage": 3}},
            "train": {"micro_batch": 1, "recompute": "full"},
        },
    ),
    "batch ramp, zero 1": (2, {"train": {"batch_ramp": RAMP, "micro_batch": 1}, "parallel": {"zero": {"stage": 1}}}),
    "batch ramp, pp2, zbv": (
        2,
        {
            "model": {"layers": 4},
            "train": {"batch_ramp": RAMP, "micro_batch": 1},
            "parallel": {"pipeline": {"size": 2, "schedule": "zbv"}},
        },
    ),
    "tied head, qkv bias, norms of heads, tp2": (
        2,
        {
            "model": {"tied": True, "attention": {"bias": True, "qk_norm": True}},
            "parallel": {"tensor": 2, "sequence": False},
        },
    ),
    "Muon, qkv bias, tp2": (
        2,
        {"model": {"attention": {"bias": True}}, "optimizer": {"name": "muon"}, "parallel": {"tensor": 2}},
    ),
    "Muon, odd ffn, hybrid zero 3": (
        4,
        {
            "model": {"feed_forward": {"width": 33}},
            "optimizer": {"name": "muon"},
            "parallel": {"zero": {"stage": 3, "shard": 2}},
        },
    ),
}
LIGHT = (
    "one kv head, ulysses2",
    "head_dim of its own, tp2",
    "odd vocabulary and ffn, zero 3",
    "width scaling, tp2",
    "interleaved, zero 3",
    "batch ramp, zero 1",
    "tied head, qkv bias, norms of heads, tp2",
)
"""Kinds that every test run trains; the others are heavy."""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "heads": (
        {"model": {"attention": {"heads": 3, "kv_heads": 1}, "hidden": 24}},
        "parallel.tensor: 2 ranks cannot share model.attention.heads 3 evenly",
    ),
    "feed-forward": (
        {"model": {"feed_forward": {"width": 1}}},
        "parallel.tensor: 2 ranks cannot share model.feed_forward.width 1: the last has none",
    ),
}
"""What two tensor ranks cannot share, and the words."""


def drawn(ranks: int, many: int) -> list[int]:
    """The first numbers whose combination is for so many ranks, and for torch's own sharding."""
    chosen = (combination(n) for n in count())
    fits = (n for n, one in enumerate(chosen) if one.world == ranks and "engine" not in one.tree["parallel"]["zero"])
    return list(islice(fits, many))


SAMPLE = [*drawn(2, 4), *(pytest.param(number, marks=pytest.mark.heavy) for number in drawn(4, 10))]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stores(tmp_path_factory.mktemp("stores"))


@pytest.mark.parametrize("number", SAMPLE)
def test_a_random_combination(number: int, stores: Path, tmp_path: Path, ranks: Any) -> None:
    outcome = try_combination(combination(number), stores, tmp_path / "run", ranks)
    assert outcome.kind in ("exact", "refused"), outcome


@pytest.mark.parametrize("name", [pytest.param(one, marks=[pytest.mark.heavy] * (one not in LIGHT)) for one in KINDS])
def test_a_kind_of_model(name: str, stores: Path, tmp_path: Path, ranks: Any) -> None:
    """From a checkpoint whose norms, biases and moments are away from their initial values."""
    world, changes = KINDS[name]
    one = Combination(world, merge(PLAIN, changes), continued=True)
    outcome = try_combination(one, stores, tmp_path / "run", ranks)
    assert outcome.kind == "exact", outcome
    assert {"gradients", "weights", "exp_avg", "exp_avg_sq"} <= set(outcome.errors)


@pytest.mark.parametrize("name", REFUSED)
def test_what_tensor_ranks_cannot_share_is_refused(name: str, stores: Path, tmp_path: Path, ranks: Any) -> None:
    changes, words = REFUSED[name]
    tree = merge(merge(PLAIN, changes), {"parallel": {"tensor": 2}})
    outcome = try_combination(Combination(2, tree, continued=False), stores, tmp_path / "run", ranks)
    assert (outcome.kind, words in outcome.why) == ("refused", True), outcome


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model": {"rope": {"base": 9_000.0}}}, "gradients"),
        ({"model": {"norm_eps": 1e-3}}, "gradients"),
        ({"model": YARN}, "gradients"),
        ({"optimizer": {"weight_decay": 0.9}}, "weights"),
        ({"optimizer": {"decay_embeddings": False}}, "weights"),
        ({"optimizer": {"clip": 0.9}}, "exp_avg"),
        ({"optimizer": {"betas": [0.9, 0.96]}}, "exp_avg_sq"),
        ({"schedule": {"name": "linear"}}, "weights"),
        ({"model": MUP}, "weights"),
    ],
    ids=str,
)
def test_another_setting_is_told_apart(changes: dict[str, Any], what: str, stores: Path, tmp_path: Path) -> None:
    """Training with one setting, and the reference with another that is close by."""
    one = Combination(1, PLAIN, continued=True)
    stage = load(write_config(one, stores, tmp_path / "run"), 1)
    other = load(write_config(replace(one, tree=merge(PLAIN, changes)), stores, tmp_path / "other"), 1)
    # both from the same checkpoint, also where the setting decides initial values
    expected, _, start = expectation(other, one, tmp_path / "other")
    errors = errors_of(go(ALONE, stage, tmp_path / "other" / "start"), expected, start)
    assert errors[what][1] > ALLOWED["fp32"][what], errors


@installed
@pytest.mark.heavy
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("continued", [True, False])
def test_biases_under_deepspeed(stage: int, continued: bool, stores: Path, tmp_path: Path, ranks: Any) -> None:
    """With selective recomputation; its stage 3 has a linear layer of its own, which adds biases in place.

    One that is not continued tells its state before the first update, when DeepSpeed has made no moments yet.
    """
    changes = {
        "model": {"attention": {"bias": True}},
        "train": {"recompute": "selective"},
        "parallel": {"zero": {"stage": stage, "engine": "deepspeed"}},
    }
    one = Combination(2, merge(PLAIN, changes), continued)
    outcome = try_combination(one, stores, tmp_path / "run", ranks)
    assert outcome.kind == "exact", outcome


def close_and_look(world: World, stage: StageConfig) -> tuple[bool, bool]:
    """Whether torch's linear layer is in its place, beside an engine and after its end."""
    before, engine = nn.functional.linear, make_engine(stage, world)
    beside = nn.functional.linear is before
    engine.close()
    return beside, nn.functional.linear is before


@installed
@pytest.mark.heavy
def test_a_closed_engine_gives_torchs_linear_layer_back(stores: Path, tmp_path: Path, ranks: Any) -> None:
    tree = merge(PLAIN, {"parallel": {"zero": {"stage": 3, "engine": "deepspeed"}}})
    stage = load(write_config(Combination(2, tree, continued=False), stores, tmp_path / "run"), 2)
    assert ranks(2).run(close_and_look, stage) == [(False, True)] * 2
