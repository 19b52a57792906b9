"""The register of optimizers, and that none moves a weight by gradients that are not finite."""

from __future__ import annotations

import typing

import pytest
import torch
from torch import nn

from internevo.config.presets import model_preset
from internevo.config.schema import OptimizerConfig
from internevo.model.initial import init_weights
from internevo.model.roles import Kind, Role
from internevo.model.transformer import Transformer
from internevo.optim.lion import Lion
from internevo.optim.optimizers import OPTIMIZERS, Given, Optimizers


def model_with_gradients(value: float) -> Transformer:
    model = Transformer(model_preset("tiny", attention={"bias": True}))
    init_weights(model, 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    next(model.parameters()).grad.view(-1)[0] = value
    return model


def test_the_register_has_what_configurations_can_name() -> None:
    assert tuple(OPTIMIZERS) == typing.get_args(typing.get_type_hints(OptimizerConfig)["name"])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("value", [1.0, float("inf"), float("nan")])
def test_nothing_moves_by_what_is_not_finite(name: str, value: float) -> None:
    model = model_with_gradients(value)
    before = {key: one.clone() for key, one in model.state_dict().items()}
    optimizers = Optimizers(Given(dict(model.named_parameters()), model.roles, OptimizerConfig(name=name)))
    state = {key: {k: v.clone() for k, v in optimizers.state(key).items()} for key in before}
    finite = torch.tensor(value == 1.0)
    optimizers.step(1e-3, torch.tensor(2.0), finite)
    moved = [key for key, one in model.state_dict().items() if not torch.equal(one, before[key])]
    assert len(moved) == (len(before) if finite else 0)
    changed = [key for key in before for k, v in optimizers.state(key).items() if not torch.equal(v, state[key][k])]
    assert bool(changed) == bool(finite)


def test_lion_is_the_paper_s_algorithm() -> None:
    """Algorithm 2 of arXiv 2302.06675 in float64, over several steps."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 4, generator=generator, dtype=torch.float64))
    expected, average = weight.detach().clone(), torch.zeros(6, 4, dtype=torch.float64)
    optimizer = Lion([{"params": [weight], "weight_decay": 0.1}], 0.01, (0.9, 0.99))
    for _ in range(5):
        gradient = torch.randn(6, 4, generator=generator, dtype=torch.float64)
        weight.grad = gradient.clone()
        optimizer.step()
        direction = (0.9 * average + 0.1 * gradient).sign()
        expected = expected - 0.01 * (direction + 0.1 * expected)
        average = 0.99 * average + 0.01 * gradient
        torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-12)


def test_gradients_are_clipped_before_a_plain_optimizer() -> None:
    """Lion's average is of what was divided; without clipping it would be twice as much."""
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.full((3,), 4.0)
    roles = {"w": Role(Kind.scale)}
    optimizers = Optimizers(Given({"w": weight}, roles, OptimizerConfig(name="lion", betas=[0.9, 0.5])))
    optimizers.step(1.0, torch.tensor(2.0), torch.tensor(True))
    assert torch.equal(optimizers.state("w")["exp_avg"], torch.ones(3))
