"""torch.compile: the same numbers, one graph a block, and nothing compiled anew for other documents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from internevo.config.presets import model_preset
from internevo.config.schema import StageConfig, TrainConfig
from internevo.data.batch import Batch
from internevo.model.documents import Documents
from internevo.model.initial import init_weights, initial_model
from internevo.model.transformer import Transformer
from internevo.parallel.world import World
from internevo.train.build import make_engine
from internevo.train.step import train_step
from tests.train.test_step import CPU, pack


def batches(folder, count: int) -> list[Batch]:
    """Batches of four rows of 64, with other documents in each: from one a row to one a token."""
    rng, found = np.random.default_rng(0), []
    for number in range(count):
        longest = [2, 5, 60, 500][number % 4]
        lengths = rng.integers(longest // 2 + 1, longest + 1, 600 // longest + 4)
        batch = pack([rng.integers(1, 512, n) for n in lengths], 64, folder / str(number))
        rows = {name: getattr(batch, name)[:4] for name in ("tokens", "labels", "positions")}
        found.append(replace(batch, **rows))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "selective", pytest.param("full", marks=pytest.mark.heavy)])
def test_compiled_blocks(tmp_path, recompute: str) -> None:
    """Fifty steps of different documents: zero graph breaks, one graph for all blocks, zero recompilations."""
    torch._dynamo.reset()
    counters.clear()
    engines = {}
    for name, compiled in (("eager", False), ("compiled", True)):
        train = TrainConfig(precision="fp32", compile=compiled, recompute=recompute, micro_batch=2)
        stage = StageConfig(model=model_preset("tiny"), train=train)
        engines[name] = make_engine(stage, World.alone(CPU), initial_model(stage.model, CPU, 0))
    for number, batch in enumerate(batches(tmp_path, 50)):
        with torch._dynamo.config.patch(error_on_recompile=True):
            results = {name: train_step(one, one.stage_batch(batch), lr=1e-3) for name, one in engines.items()}
        if number < 10:
            assert results["compiled"].loss == pytest.approx(results["eager"].loss, rel=1e-5)
            assert results["compiled"].grad_norm == pytest.approx(results["eager"].grad_norm, rel=1e-4)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2  # a block, and the passes over the logits


def test_no_graph_break_in_a_block() -> None:
    """As torch explains it: one graph, no break."""
    model = Transformer(model_preset("tiny"))
    init_weights(model, 0)
    rotary = torch.randn(1, 16, 1, 8), torch.randn(1, 16, 1, 8)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model.blocks[0])(torch.randn(1, 16, 64), rotary, Documents.of([3, 13]))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
