"""Muon: the update is torch's own, it is orthogonal, and the right parameters get it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from internevo.config.presets import model_preset
from internevo.config.schema import OptimizerConfig, StageConfig, TrainConfig
from internevo.model.initial import init_weights, initial_model
from internevo.model.roles import Kind, Role
from internevo.model.transformer import Transformer
from internevo.optim.groups import width_rate
from internevo.optim.muon import Muon, each_matrix, orthogonalise
from internevo.optim.optimizers import Given, Optimizers
from internevo.parallel.world import World
from internevo.train.build import make_engine
from internevo.train.step import train_step
from tests.train.test_step import CPU, random_batch


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 2**31))
def test_singular_values_come_near_one(rows: int, columns: int, seed: int) -> None:
    torch.manual_seed(seed)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(rows, columns), steps=8))
    assert values.max() < 1.3
    assert values.quantile(0.2) > 0.5


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon is not in this torch")
def test_the_update_is_torchs() -> None:
    """Twenty steps on the same gradients, in torch's bf16 arithmetic; a step that is not finite changes nothing."""
    torch.manual_seed(0)
    config = OptimizerConfig(name="muon", lr=0.01, weight_decay=0.1, momentum=0.9)
    shapes = {"blocks.0.a": (24, 40), "blocks.0.b": (40, 24)}
    ours = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours.values()]
    adjusted = {"adjust_lr_fn": "match_rms_adamw"}
    optimizer = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, momentum=0.9, **adjusted)
    muon = Muon(ours, config, 1.0, torch.bfloat16, torch.float32, each_matrix)
    for number in range(20):
        finite = number % 5 != 2
        muon.grad_scale, muon.found_inf = torch.tensor(4.0), torch.tensor(0.0 if finite else 1.0)
        for parameter, other in zip(ours.values(), theirs, strict=True):
            gradient = torch.randn(parameter.shape)
            parameter.grad = gradient * 4 if finite else gradient * torch.nan
            other.grad = gradient
        muon.step()
        if finite:
            optimizer.step()
    for parameter, other in zip(ours.values(), theirs, strict=True):
        torch.testing.assert_close(parameter, other, atol=2e-3, rtol=0)
        torch.testing.assert_close(muon.state[parameter]["momentum_buffer"], optimizer.state[other]["momentum_buffer"])


def test_a_stack_of_matrices_moves_as_its_matrices() -> None:
    torch.manual_seed(0)
    config = OptimizerConfig(name="muon", lr=0.01)
    stack = nn.Parameter(torch.randn(3, 24, 40))
    apart = [nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    gradients = torch.randn(3, 24, 40)
    for names in ({"stack": stack}, {str(n): p for n, p in enumerate(apart)}):
        muon = Muon(names, config, 1.0, torch.float32, torch.float32, each_matrix)
        muon.grad_scale, muon.found_inf = torch.tensor(1.0), torch.tensor(0.0)
        stack.grad, (apart[0].grad, apart[1].grad, apart[2].grad) = gradients, gradients
        muon.step()
    torch.testing.assert_close(stack, torch.stack([p.detach() for p in apart]))


def test_a_wider_model_is_moved_as_far_as_a_narrow_one() -> None:
    """muP: what an update does to activations does not depend on the width; without `width_base` it grows."""
    moved: dict[int, list[float]] = {0: [], 64: []}
    for base, found in moved.items():
        for hidden in (64, 256):
            shape = model_preset("tiny", hidden=hidden, width_base=base, feed_forward={"width": 2 * hidden})
            torch.manual_seed(0)
            weight = nn.Parameter(torch.zeros(hidden, hidden))
            weight.grad = torch.randn(hidden, hidden)
            made_of = Given(
                {"w": weight},
                {"w": Role(Kind.matrix)},
                OptimizerConfig(name="muon", weight_decay=0.0),
                width_rate(shape),
            )
            Optimizers(made_of).step(0.01, torch.tensor(1.0), torch.tensor(True))
            found.append(float(torch.linalg.matrix_norm(weight.detach(), 2)))
    assert moved[64][1] == pytest.approx(moved[64][0], rel=0.15)
    assert moved[0][1] == pytest.approx(2 * moved[0][0], rel=0.15)


def test_matrices_of_blocks_by_muon_and_the_rest_by_adamw() -> None:
    model = Transformer(model_preset("tiny", attention={"bias": True}))
    init_weights(model, 0)
    optimizers = Optimizers(Given(dict(model.named_parameters()), model.roles, OptimizerConfig(name="muon")))
    kinds = {name: set(optimizers.state(name)) for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        inner = parameter.ndim == 2 and name.startswith("blocks.")
        assert kinds[name] == ({"momentum_buffer"} if inner else {"step", "exp_avg", "exp_avg_sq"}), name


def test_it_learns() -> None:
    """On one batch again and again, with AdamW's learning rate."""
    train = TrainConfig(precision="fp32", steps=100)
    stage = StageConfig(model=model_preset("tiny"), train=train, optimizer=OptimizerConfig(name="muon"))
    engine = make_engine(stage, World.alone(CPU), initial_model(stage.model, CPU, 0))
    losses = [train_step(engine, engine.stage_batch(random_batch(0)), 3e-3).loss for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
