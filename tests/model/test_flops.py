"""Counts of parameters and operations against torch's own counting."""

from __future__ import annotations

import pytest
import torch

from internevo.config.presets import PRESETS, model_preset
from internevo.config.schema import LoraConfig
from internevo.model.documents import Documents
from internevo.model.flops import causal_pairs, forward_flops, parameters, training_flops
from internevo.model.initial import init_weights
from internevo.model.lora import adapter_parameters, add_adapters
from internevo.model.transformer import Transformer
from tests.model.counting import count_flops


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


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention": {"kv_heads": 1}},
        {"tied": True},
        {"attention": {"bias": True}},
        {"attention": {"qk_norm": True}},
        {"layers": 3},
    ],
)
@pytest.mark.parametrize("lengths", [[32], [7, 1, 16, 8]])
def test_flops_equal_the_counter(changes: dict, lengths: list[int]) -> None:
    """The counter takes attention for whole squares of the documents, so that is what the pairs are here."""
    config = model_preset("tiny", **changes)
    model = Transformer(config)
    init_weights(model, 0)
    tokens = torch.randint(0, config.vocab, (1, 32))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    pairs = sum(n * n for n in lengths)
    with count_flops() as counter:
        logits = model(tokens, positions, Documents.of(lengths))
        assert counter.get_total_flops() == forward_flops(config, 32, pairs)
        logits.sum().backward()
    assert counter.get_total_flops() == training_flops(config, 32, pairs)


def test_flops_of_adapters_equal_the_counter() -> None:
    """Frozen matrices need one product less. The first block's need not even the gradient of their inputs, which the
    formula counts."""
    config, lora = model_preset("tiny"), LoraConfig(rank=4)
    model = Transformer(config)
    add_adapters(model, lora)
    init_weights(model, 0)
    tokens, adapters = torch.randint(0, config.vocab, (1, 32)), adapter_parameters(config, lora)
    assert adapters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    with count_flops() as counter:
        model(tokens, torch.arange(32)[None], Documents.of([32])).sum().backward()
    first = model.blocks[0].attention
    unneeded = sum(one.weight.numel() + one.lora_a.numel() for one in (first.wq, first.wk, first.wv))
    assert counter.get_total_flops() == training_flops(config, 32, 32 * 32, adapters) - 2 * 32 * unneeded


def test_causal_pairs() -> None:
    assert causal_pairs([1]) == 1
    assert causal_pairs([4, 2]) == (4 + 3 + 2 + 1) + (2 + 1)


def test_short_documents_cost_the_same_in_long_rows() -> None:
    """A token of a training step costs within a tenth the same in 32k rows as in 4k rows of the same documents."""
    config = model_preset("tiny", vocab=64)
    model = Transformer(config)
    init_weights(model, 0)

    def flops_per_token(tokens: int) -> float:
        lengths = [90, 900, 34] * (tokens // 1024)
        positions = torch.cat([torch.arange(n) for n in lengths])[None]
        with count_flops() as counter:
            model.features(torch.zeros_like(positions), positions, Documents.of(lengths)).sum().backward()
        return counter.get_total_flops() / tokens

    assert flops_per_token(32768) == pytest.approx(flops_per_token(4096), rel=0.1)
