"""Memory on the GPU: bounds that the settings promise."""

from __future__ import annotations

import pytest
import torch

from internevo.config.presets import model_preset
from internevo.config.schema import OptimizerConfig, StageConfig, TrainConfig
from internevo.model.budget import activation_bytes
from internevo.model.documents import Documents
from internevo.model.recompute import Policy
from internevo.model.rope import rotary_tables
from internevo.model.transformer import Block
from internevo.parallel.world import World
from internevo.train.build import make_engine
from internevo.train.loss import summed_cross_entropy
from internevo.train.step import train_step
from tests.train.test_step import random_batch


def peak_of(work) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_the_loss_takes_a_quarter_of_the_plain_one(gpu: torch.device) -> None:
    """InternLM2's vocabulary and 32k tokens."""
    peaks = {}
    for kind in ("plain", "chunked"):
        features = torch.randn(1, 32768, 256, device=gpu, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(92_544, 256, device=gpu, dtype=torch.bfloat16, requires_grad=True)
        labels = torch.randint(0, 92_544, (1, 32768), device=gpu)
        peaks[kind] = peak_of(lambda: summed_cross_entropy(features, weight, labels, kind=kind).backward())  # noqa: B023
    assert peaks["chunked"] <= peaks["plain"] / 4, peaks


@pytest.mark.parametrize("policy", list(Policy))
def test_activations_are_as_the_formula_says(policy: Policy, gpu: torch.device) -> None:
    config = model_preset("internlm2-1.8b")
    tokens = 4096
    block = Block(config).to(gpu, torch.bfloat16)
    block.policy = policy
    block.attention.kernel = "varlen"
    x = torch.randn(1, tokens, config.hidden, device=gpu, dtype=torch.bfloat16, requires_grad=True)
    rotary = rotary_tables(torch.arange(tokens, device=gpu)[None], config)
    documents = Documents.of([1000, 3096], gpu)
    block(x, rotary, documents).sum().backward()
    before = torch.cuda.memory_allocated()
    out = block(x, rotary, documents)
    kept = torch.cuda.memory_allocated() - before - out.nbytes + x.nbytes
    expected = tokens * activation_bytes(config, policy, 2)
    assert kept == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("state", "bytes_each"), [("fp32", 18), ("split", 14), ("bf16", 10)])
def test_bytes_a_parameter(state: str, bytes_each: int, gpu: torch.device) -> None:
    """After a step of one micro-batch: weights and state, and what the gradients took at the peak."""
    sizes = {
        "hidden": 1024,
        "layers": 8,
        "vocab": 512,
        "attention": {"heads": 8, "kv_heads": 4},
        "feed_forward": {"width": 4096},
    }
    train = TrainConfig(precision="bf16", seq_len=32, batch_tokens=128, micro_batch=4, steps=100, compile=True)
    stage = StageConfig(model=model_preset("tiny", **sizes), train=train, optimizer=OptimizerConfig(state=state))
    before = torch.cuda.memory_allocated()
    engine = make_engine(stage, World.alone(gpu))
    parameters = sum(p.numel() for p in engine.parameters.values())
    train_step(engine, engine.stage_batch(random_batch(0)), 1e-3)
    torch.cuda.reset_peak_memory_stats()
    train_step(engine, engine.stage_batch(random_batch(1)), 1e-3)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= 1.15 * bytes_each * parameters
