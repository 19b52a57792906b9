"""Parameters say what they are, and are treated by that, whatever they are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from internevo.config.presets import model_preset
from internevo.config.schema import ModelConfig, OptimizerConfig, StageConfig
from internevo.files.errors import UserError
from internevo.model.initial import initial_values
from internevo.model.roles import Kind, Role, declare, roles_of
from internevo.model.transformer import FeedForward, Transformer
from internevo.optim.groups import decays, width_rate
from internevo.optim.optimizers import Given, Optimizers
from internevo.train.build import check_engine


def test_a_parameter_without_a_role_is_an_error() -> None:
    model = Transformer(model_preset("tiny"))
    model.blocks[0].feed_forward.extra = nn.Linear(4, 4)
    with pytest.raises(UserError, match=r"blocks\.0\.feed_forward\.extra\.weight has no role"):
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


class Changed(FeedForward):
    """With a parameter or a buffer more, of whatever kind `options` say."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        shape, kind, buffer = (config.feed_forward.options.get(key) for key in ("shape", "kind", "buffer"))
        if buffer:
            self.register_buffer("more", torch.ones(3))
        else:
            self.more = nn.Parameter(torch.ones(shape))
            declare(self, more=Role(Kind(kind), partial=config.feed_forward.options.get("partial", False)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"buffer": True}, r"more is a buffer, which no checkpoint would hold: make it in `forward`"),
        ({"shape": [], "kind": "scale", "partial": True}, r"more is of the kind scale and has the shape \[\]: too few"),
        ({"shape": [3], "kind": "matrix", "partial": True}, r"more is of the kind matrix and has the shape \[3\]: too"),
        ({"shape": [3], "kind": "scale"}, r"blocks\.0\.feed_forward\.more is cut along no dimension: .*`partial=True`"),
    ],
)
def test_what_no_layout_could_train_is_refused(options: dict[str, Any], said: str) -> None:
    kind = {"kind": "tests.model.test_roles:Changed", "options": options}
    with pytest.raises(UserError, match=said):
        Transformer(model_preset("tiny", feed_forward=kind))
    good = {**kind, "options": {"shape": [3], "kind": "scale", "partial": True}}
    assert Transformer(model_preset("tiny", feed_forward=good)).roles["blocks.1.feed_forward.more"].partial


def test_roles_may_be_said_one_after_the_other() -> None:
    linear = declare(nn.Linear(4, 4), weight=Role(Kind.matrix))
    assert set(roles_of(declare(linear, bias=Role(Kind.bias)))) == {"weight", "bias"}


class Uncounted(FeedForward):
    """It has a matrix more than it counts."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.more = declare(nn.Linear(config.hidden, 1, bias=False), weight=Role(Kind.matrix, partial=True))


def without_cost(config: ModelConfig) -> FeedForward:
    return FeedForward(config)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("Uncounted", r"count 151,872 parameters and have 152,000: the `cost` of gqa or .*:Uncounted leaves some out"),
        ("without_cost", r"tests.model.test_roles:without_cost has no `cost`"),
    ],
)
def test_parts_count_what_they_have(kind: str, said: str) -> None:
    stage = StageConfig(model=model_preset("tiny", feed_forward={"kind": f"tests.model.test_roles:{kind}"}))
    stage.train.precision, stage.train.steps = "fp32", 1
    with pytest.raises(UserError, match=said):
        check_engine(stage, 1, torch.device("cpu"))
