"""Counts of parameters and operations against torch's own counting."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from internevo.config.presets import PRESETS, model_preset
from internevo.model.attention import Documents
from internevo.model.flops import causal_pairs, forward_flops, parameters, training_flops
from internevo.model.transformer import Transformer, init_weights


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("tied", [False, True])
def test_parameter_count(preset: str, tied: bool) -> None:
    config = model_preset(preset, tied=tied)
    with torch.device("meta"):
        model = Transformer(config)
    assert parameters(config) == sum(p.numel() for p in model.parameters())


def test_released_sizes() -> None:
    """The sizes that the released models have."""
    assert parameters(model_preset("internlm2-1.8b")) == 1_889_110_016
    assert parameters(model_preset("internlm2-7b")) == 7_737_708_544
    assert parameters(model_preset("internlm2-20b")) == 19_861_149_696
    assert parameters(model_preset("llama3-8b")) == 8_030_261_248
    assert parameters(model_preset("qwen2.5-7b")) == 7_615_616_512


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 1}, {"tied": True}, {"qkv_bias": True}, {"layers": 3}])
@pytest.mark.parametrize("lengths", [[32], [7, 1, 16, 8]])
def test_flops_equal_the_counter(changes: dict, lengths: list[int]) -> None:
    """On the math kernel every product is a visible matrix product. It computes whole squares, so the pairs here
    are squares of the documents."""
    config = model_preset("tiny", **changes)
    model = Transformer(config)
    init_weights(model, 0)
    tokens = torch.randint(0, config.vocab, (1, 32))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    pairs = sum(n * n for n in lengths)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits = model(tokens, positions, Documents.of(lengths))
        assert counter.get_total_flops() == forward_flops(config, 32, pairs)
        logits.sum().backward()
    assert counter.get_total_flops() == training_flops(config, 32, pairs)


def test_causal_pairs() -> None:
    assert causal_pairs([1]) == 1
    assert causal_pairs([4, 2]) == (4 + 3 + 2 + 1) + (2 + 1)
