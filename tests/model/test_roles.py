"""Parameters say what they are, and are treated by that, whatever they are called."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from internevo.config.presets import model_preset
from internevo.config.schema import OptimizerConfig
from internevo.model.initial import initial_values
from internevo.model.roles import Kind, Role, declare, roles_of
from internevo.model.transformer import Transformer
from internevo.optim.groups import decays, width_rate
from internevo.optim.optimizers import Given, Optimizers


def test_a_parameter_without_a_role_is_an_error() -> None:
    model = Transformer(model_preset("tiny"))
    model.blocks[0].feed_forward.extra = nn.Linear(4, 4)
    with pytest.raises(TypeError, match=r"blocks\.0\.feed_forward\.extra\.weight has no role"):
        roles_of(model)


def test_a_role_of_no_parameter_is_an_error() -> None:
    with pytest.raises(TypeError, match="Linear has no parameter bias"):
        declare(nn.Linear(4, 4, bias=False), weight=Role(Kind.matrix), bias=Role(Kind.bias))


def test_names_mean_nothing() -> None:
    """A scale called `wo`, a bias called `norm`, a matrix of three dimensions, a head called `embed.weight`."""
    config = model_preset("tiny", width_base=32)
    module = nn.Module()
    module.wo = nn.Parameter(torch.empty(8))
    module.norm = nn.Parameter(torch.empty(8))
    module.gate = nn.Parameter(torch.empty(3, 8, 8))
    declare(module, wo=Role(Kind.scale), norm=Role(Kind.bias), gate=Role(Kind.matrix))
    roles = roles_of(module)
    values = {name: initial_values(name, p.shape, roles[name], config, 0) for name, p in module.named_parameters()}
    assert torch.equal(values["wo"], torch.ones(8))
    assert torch.equal(values["norm"], torch.zeros(8))
    assert float(values["gate"].std()) == pytest.approx(config.init_std * (32 / config.hidden) ** 0.5, rel=0.2)
    assert [decays(roles[name], OptimizerConfig()) for name in ("wo", "norm", "gate")] == [False, False, True]
    rate = width_rate(config)
    assert [rate(roles[name]) for name in ("wo", "norm", "gate")] == [1.0, 1.0, 32 / config.hidden]
    assert rate(Role(Kind.head)) == 32 / config.hidden
    assert rate(Role(Kind.embedding)) == 1.0
    adamw = Optimizers(Given(dict(module.named_parameters()), roles, OptimizerConfig()))
    assert set(adamw.state("gate")) == {"step", "exp_avg", "exp_avg_sq"}
