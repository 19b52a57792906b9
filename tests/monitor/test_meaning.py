"""What a configuration comes to, against a built model and steps counted one by one."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from internevo.config.derive import rows_at, stage_steps
from internevo.config.load import load_config
from internevo.model.transformer import Transformer
from internevo.monitor.meaning import meaning

CONFIG = """
name: run
model: {preset: tiny, attention: {bias: true}}
train: {seq_len: 64, batch_tokens: 512}
data: {sources: [{path: tokens/web}]}
stages:
  - {name: base, train: {tokens: 9000, batch_ramp: [{until: 1000, batch_tokens: 128}]}}
  - {name: long, train: {steps: 7, seq_len: 128}}
"""


def numbers(line: str) -> list[int]:
    return [int(one.replace(",", "")) for one in re.findall(r"\d[\d,]*", line)]


def test_parameters_steps_and_tokens(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG)
    config = load_config(tmp_path / "run.yaml", check_data=False)
    model, base, long, every = meaning(config)
    with torch.device("meta"):
        built = Transformer(config.model)
    total, blocks, rest = numbers(model)
    assert total == sum(one.numel() for one in built.parameters()) == blocks + rest
    assert blocks == sum(one.numel() for one in built.blocks.parameters())
    counted = []
    for stage in config.stages:
        steps = stage_steps(stage.train)
        counted.append((steps, sum(rows_at(stage.train, step) for step in range(steps)) * stage.train.seq_len))
    assert numbers(base) == [counted[0][0], 128, 512, 2, 8, 64, counted[0][1]]
    assert numbers(long) == [7, 512, 4, 128, 3584]
    assert numbers(every) == [sum(one) for one in zip(*counted, strict=True)]
    assert base.startswith("stage base: 24 steps of 128 to 512 tokens (2 to 8 rows of 64): ")
