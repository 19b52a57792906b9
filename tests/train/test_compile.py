"""torch.compile: the same numbers, and no compilation for every new set of document lengths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from internevo.config.presets import model_preset
from internevo.config.schema import StageConfig, TrainConfig
from internevo.model.transformer import Transformer, init_weights
from internevo.train.engine import LocalEngine
from internevo.train.step import train_step
from tests.train.test_step import CPU, pack


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_compiled_blocks(tmp_path, recompute: str) -> None:
    engines = {}
    for name, compiled in (("eager", False), ("compiled", True)):
        model = Transformer(model_preset("tiny"))
        init_weights(model, 0)
        train = TrainConfig(precision="fp32", compile=compiled, recompute=recompute, micro_batch=2)
        stage = StageConfig(model=model.config, train=train)
        engines[name] = LocalEngine(model, stage, CPU)
    rng = np.random.default_rng(0)
    for number in range(4):
        lengths = rng.integers(5, 60, 16)
        batch = pack([rng.integers(1, 512, n) for n in lengths], 64, tmp_path / str(number))
        # as in a run, whose batches all have the same number of rows
        batch = replace(batch, **{name: getattr(batch, name)[:4] for name in ("tokens", "labels", "positions")})
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            results = {name: train_step(one, one.stage_batch(batch), lr=1e-3) for name, one in engines.items()}
        assert results["compiled"].loss == pytest.approx(results["eager"].loss, rel=1e-5)
        assert results["compiled"].grad_norm == pytest.approx(results["eager"].grad_norm, rel=1e-4)
