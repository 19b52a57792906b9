"""Split weights and small moments: what is lost, which is nothing or little, and what is saved."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internevo.config.presets import model_preset
from internevo.config.schema import OptimizerConfig, StageConfig, TrainConfig
from internevo.model.initial import init_weights, initial_model
from internevo.model.transformer import Transformer
from internevo.optim.split_adamw import adamw_piece
from internevo.optim.split_fp32 import join, noise_like, round_by_chance, split
from internevo.parallel.world import World
from internevo.train.build import make_engine
from internevo.train.engine import Engine
from internevo.train.step import train_step
from tests.train.test_step import CPU, random_batch


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=50))
def test_split_and_join_lose_nothing(bits: list[int]) -> None:
    x = torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)
    x = x[x.isfinite() & (x.abs() < 3e38)]
    high, rest = split(x)
    assert torch.equal(join(high, rest).view(torch.int32), x.view(torch.int32))
    nearest = (x - x.bfloat16().float()).abs()
    assert torch.equal((x - high.float()).abs(), nearest)


def test_rounding_by_chance_keeps_the_mean() -> None:
    x = torch.full((200_000,), 1 + 0.3 * 2**-7)
    rounded = round_by_chance(x, noise_like(x, torch.tensor(3.0), 5)).float()
    assert set(rounded.tolist()) == {1.0, 1 + 2**-7}
    assert rounded.mean().item() == pytest.approx(x[0].item(), abs=0.02 * 2**-7)


def test_noise_is_even_and_differs_by_step_and_stream() -> None:
    x = torch.empty(2**16)
    drawn = [noise_like(x, torch.tensor(float(step)), stream) for step, stream in ((1, 0), (2, 0), (1, 1))]
    for one in drawn:
        assert one.min() >= 0
        assert one.max() < 2**16
        counts = np.bincount(one.numpy() >> 12, minlength=16)
        assert abs(counts - 4096).max() < 5 * 4096**0.5
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.corrcoef(drawn[a], drawn[b])[0, 1]) < 0.02
    assert torch.equal(drawn[0], noise_like(x, torch.tensor(1.0), 0))


def build(state: str, compiled: bool = False, **changes) -> Engine:
    config = model_preset("tiny", **changes)
    train = TrainConfig(precision="bf16", seq_len=32, batch_tokens=128, compile=compiled, steps=100)
    stage = StageConfig(model=config, train=train, optimizer=OptimizerConfig(state=state, clip=0.5))
    return make_engine(stage, World.alone(CPU), initial_model(config, CPU, 0))


def steps(engine: Engine, count: int, micro_batch: int = 1, first: int = 0) -> list[tuple[float, float]]:
    engine.stage.train.micro_batch = micro_batch
    done = [train_step(engine, engine.stage_batch(random_batch(first + n)), 3e-3) for n in range(count)]
    return [(one.loss, one.grad_norm) for one in done]


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_split_weights_train_as_fp32_ones(micro_batch: int) -> None:
    """Not bitwise: bf16 weights differ where an fp32 one lies exactly between two of them."""
    ours, usual = build("split"), build("fp32")
    got, expected = steps(ours, 10, micro_batch), steps(usual, 10, micro_batch)
    assert got[0] == pytest.approx(expected[0], rel=1e-4)
    got_losses, got_norms = zip(*got, strict=True)
    losses, norms = zip(*expected, strict=True)
    assert got_losses == pytest.approx(losses, rel=1e-3)
    assert got_norms == pytest.approx(norms, rel=1e-2)


def test_the_update_is_torchs() -> None:
    """Twenty steps on the same gradients as torch's AdamW, some of them left out."""
    torch.manual_seed(0)
    start = torch.randn(3000)
    theirs = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    high, rest = split(start)
    first, second, count = torch.zeros(3000), torch.zeros(3000), torch.zeros(())
    rates = torch.tensor([1e-2, 0.1, 0.9, 0.95, 1e-8], dtype=torch.float64)
    for number in range(20):
        gradient, finite = torch.randn(3000), number % 7 != 3
        count += finite
        numbers = torch.tensor([2.0, finite, 1 - 0.9 ** float(count), 1 - 0.95 ** float(count)], dtype=torch.float64)
        adamw_piece(
            weight=high,
            rest=rest,
            gradient=gradient,
            first=first,
            second=second,
            numbers=numbers,
            rates=rates,
            step=count,
            stream=0,
        )
        if finite:
            theirs.grad = gradient / 2
            optimizer.step()
    torch.testing.assert_close(join(high, rest), theirs.detach(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(second, optimizer.state[theirs]["exp_avg_sq"], atol=1e-7, rtol=1e-6)


def test_small_moments_follow_large_ones() -> None:
    got, expected = steps(build("bf16"), 20), steps(build("fp32"), 20)
    assert np.array(got)[:, 0] == pytest.approx(np.array(expected)[:, 0], rel=2e-3)


@pytest.mark.parametrize("state", ["split", "bf16"])
def test_goes_on_bitwise_from_what_was_saved(state: str) -> None:
    whole, first, second = build(state), build(state), build(state)
    expected = steps(whole, 6)
    assert steps(first, 3) == expected[:3]
    saved = {name: tensor.clone() for name, tensor in first.state().items()}

    def read(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])

    second.load(read)
    assert steps(second, 3, first=3) == expected[3:]


def test_states_may_change_between_stages() -> None:
    """What one engine saves, the other loads: the fp32 weights are the same."""
    first, second = build("split"), build("fp32")
    steps(first, 2)
    saved = {name: tensor.clone() for name, tensor in first.state().items()}
    second.load(lambda tensors: [tensor.copy_(saved[name]) for name, tensor in tensors.items()])
    for name, tensor in second.state().items():
        assert torch.equal(tensor, saved[name]), name


@pytest.mark.parametrize("state", ["split", "bf16"])
def test_a_step_without_finite_gradient_changes_nothing(state: str) -> None:
    engine = build(state)
    steps(engine, 2)
    before = {name: tensor.clone() for name, tensor in engine.state().items()}
    batch = random_batch(5)
    staged = engine.stage_batch(batch)
    loss = engine.forward_backward(staged)
    _, moved = engine.update(loss * torch.nan, 1e-3)
    assert not moved
    for name, tensor in engine.state().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    ("state", "micro_batch", "expected"), [("split", 1, 16), ("split", 4, 14), ("bf16", 1, 12), ("bf16", 4, 10)]
)
def test_bytes_a_parameter(state: str, micro_batch: int, expected: int) -> None:
    """Held between the backward pass and the update: weights, rests, moments, gradients."""
    config = model_preset("tiny")
    train = TrainConfig(precision="bf16", seq_len=32, batch_tokens=128, micro_batch=micro_batch, steps=10)
    stage = StageConfig(model=config, train=train, optimizer=OptimizerConfig(state=state))
    model = Transformer(config)
    init_weights(model, 0)
    engine = make_engine(stage, World.alone(CPU), model)
    engine.forward_backward(engine.stage_batch(random_batch(0)))
    held = list(engine.parameters.values()) + [
        p.grad for p in (*engine.parameters.values(), *engine.local.values()) if p.grad is not None
    ]
    for name in engine.parameters:
        held += [value for kind, value in engine.optimizers.state(name).items() if kind != "step"]
    parameters = sum(p.numel() for p in engine.parameters.values())
    assert sum(one.nbytes for one in held) == expected * parameters


@pytest.mark.slow
def test_the_compiled_update_is_the_same() -> None:

    got, expected = steps(build("bf16", compiled=True), 3), steps(build("bf16"), 3)
    assert np.array(got) == pytest.approx(np.array(expected), rel=1e-3)
