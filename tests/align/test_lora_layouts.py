"""Adapters train the same under every layout as on one rank. A row is a layout, as in tests/parallel/test_layouts.py.

The base is drawn from the seed here, the same under every layout; `tests/align/test_lora_runs.py` reads one.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from internevo.hf.export import export
from internevo.parallel.tensor import local
from internevo.parallel.world import World
from internevo.train.initial_weights import begin_from
from tests.hf.models import ModelWeights, our_model
from tests.parallel.jobs import (
    ALONE,
    Trained,
    engine_of,
    keep_gradients,
    next_batches,
    one_step,
    stage_of,
    strip,
    weights_of,
)

LORA = {"lora": {"rank": 4, "alpha": 64.0}}
STEPS = 6
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "dp2, zero 1": (2, {"zero": 1}),
    "dp2, zero 3, tied head, qkv bias, recompute": (
        2,
        {"zero": 3, "tied": True, "qkv_bias": True, "recompute": "full", "micro_batch": 2},
    ),
    "dp2, zero 1, state in host memory": (2, {"zero": 1, "offload": "cpu"}),
    "tp2, odd sizes": (2, {"tensor": 2, "width": 161, "vocab": 513}),
    "tp2, no sequence parallelism": (2, {"tensor": 2, "sequence": False}),
    "ring2": (2, {"context": 2, "ulysses": 1}),
    "ulysses2, zero 3": (2, {"context": 2, "ulysses": 2, "zero": 3}),
    "pp2, tied head": (2, {"pipeline": 2, "tied": True}),
    "pp2, zbv": (2, {"pipeline": 2, "schedule": "zbv"}),
    "pp2, interleaved": (2, {"pipeline": 2, "schedule": "interleaved"}),
    "dp2 x tp2, zero 3": (4, {"tensor": 2, "zero": 3}),
    "tp4, one kv head": (4, {"tensor": 4, "kv_heads": 1, "qk_norm": True, "qkv_bias": True}),
    "tp2 x pp2, zbv, tied head": (4, {"tensor": 2, "pipeline": 2, "schedule": "zbv", "tied": True}),
    "dp2 x pp2, zero 3": (4, {"pipeline": 2, "zero": 3}),
    "dp2 x tp4, zero 3, 2 kv heads": (8, {"tensor": 4, "kv_heads": 2, "zero": 3, "sequence": False}),
}
LIGHT = (
    "dp2, zero 3, tied head, qkv bias, recompute",
    "tp2, odd sizes",
    "ring2",
    "pp2, tied head",
    "pp2, zbv",
    "dp2 x tp2, zero 3",
)
ROWS = [pytest.param(name, marks=[pytest.mark.heavy] * (name not in LIGHT)) for name in LAYOUTS]
FROM_A_FOLDER = ("tp2, odd sizes", "pp2, zbv", "dp2 x tp2, zero 3")
SHAPE = ("kv_heads", "qk_norm", "width", "tied", "qkv_bias", "vocab")
"""The keys that make another model of it."""


def adapt(world: World, changes: dict[str, Any], store: Path) -> tuple[Trained, dict[str, Tensor]]:
    """Train some steps. The gradients of the first, where A has none since B is zero, and beside them of the third.

    With `base`, the frozen weights are those of this folder, and nothing else is in their place before.
    """
    stage = stage_of(changes)
    stage.train.init_from = changes.get("base")
    engine = engine_of(stage, world)
    if stage.train.init_from is not None:
        for parameter in engine.parameters.values():
            if not parameter.requires_grad:
                local(parameter.detach()).fill_(torch.nan)
        begin_from(engine, stage, world)
    result, third = Trained(weights=weights_of(engine)), Trained()
    keep_gradients(engine, result)
    for number, batch in enumerate(next_batches(store, engine, STEPS)):
        if number == 2:
            keep_gradients(engine, third)
        one_step(engine, batch, result)
    return (result, third.gradients) if world.main else (strip(result), {})


@cache
def one_rank(store: Path, precision: str, **shape: Any) -> tuple[Trained, dict[str, Tensor]]:
    torch.set_num_threads(1)
    return adapt(ALONE, {"micro_batch": 8, "precision": precision, **LORA, **shape}, store)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_layout_trains_the_same_adapters(name: str, precision: str, store: Path, ranks: Any) -> None:
    world, changes = LAYOUTS[name]
    alone, third = one_rank(store, precision, **{key: changes[key] for key in SHAPE if key in changes})
    results = ranks(world).run(adapt, {**LORA, "precision": precision, **changes}, store)
    got, got_third = results[0]
    for result, _ in results:
        assert result.digests == alone.digests
        assert result.losses == got.losses  # every rank says the same
    assert set(got.weights) == set(alone.weights) == set(got.gradients)
    assert all("lora_" in name for name in got.weights)
    for key, weight in alone.weights.items():
        assert torch.equal(got.weights[key], weight), key
    exact = precision == "fp32"
    assert alone.losses[-1] < alone.losses[0] - 0.01
    assert got.losses == pytest.approx(alone.losses, rel=1e-4 if exact else 5e-3)
    assert got.norms[:2] == pytest.approx(alone.norms[:2], rel=1e-4 if exact else 2e-2)
    for key, gradient in alone.gradients.items():
        assert (gradient.norm() > 0) == key.endswith("lora_b"), key
        assert (got.gradients[key] - gradient).norm() <= (1e-4 if exact else 4e-2) * gradient.norm(), key
    if exact:
        assert third.keys() == got_third.keys()
        for key, gradient in third.items():
            assert gradient.norm() > 0, key
            assert (got_third[key] - gradient).norm() <= 2e-3 * gradient.norm(), key


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.heavy] * (LAYOUTS[name][0] > 2)) for name in FROM_A_FOLDER]
)
def test_each_rank_reads_its_part_of_a_base(name: str, store: Path, ranks: Any, tmp_path: Path) -> None:
    world, changes = LAYOUTS[name]
    config = stage_of(changes).model
    shape = {"heads": config.attention.heads, "kv_heads": config.attention.kv_heads}
    model = our_model(
        layers=config.layers, vocab=config.vocab, attention=shape, feed_forward={"width": config.feed_forward.width}
    )
    export(ModelWeights(model), model.config, tmp_path / "base", "internlm2", seq_len=64, tokenizer=None)
    torch.set_num_threads(1)
    given = {**LORA, "base": str(tmp_path / "base")}
    alone, _ = adapt(
        ALONE, {"micro_batch": 8, **given, **{key: changes[key] for key in SHAPE if key in changes}}, store
    )
    got, _ = ranks(world).run(adapt, {**given, **changes}, store)[0]
    assert got.losses == pytest.approx(alone.losses, rel=1e-4)
    for key, gradient in alone.gradients.items():
        assert (got.gradients[key] - gradient).norm() <= 1e-4 * gradient.norm(), key
