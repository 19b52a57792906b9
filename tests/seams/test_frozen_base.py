"""A frozen matrix with a small factor that learns beside it, as somebody outside the package would write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internevo.config.schema import ModelConfig
from internevo.files.errors import UserError
from internevo.model.cost import Cost
from internevo.model.roles import Kind, Role, declare
from internevo.model.transformer import FeedForward
from internevo.train.build import make_engine
from tests.parallel.jobs import ALONE, engine_of, stage_of, train
from tests.seams.compare import same_as_one_rank

RANK = 4


class WithFactor(nn.Module):
    """A frozen linear layer and `b @ a` beside it (LoRA, arXiv 2106.09685), cut into parts as the layer is."""

    def __init__(self, base: nn.Linear, cut: int):
        super().__init__()
        self.base = base.requires_grad_(False)
        outer, inner = base.weight.shape
        self.lora_a, self.lora_b = nn.Parameter(torch.empty(RANK, inner)), nn.Parameter(torch.empty(outer, RANK))
        if cut == 0:  # a rank has some of the outputs: all of `a`, for its part of them
            declare(self, lora_a=Role(Kind.matrix, partial=True), lora_b=Role(Kind.matrix, cut=0))
        else:  # a rank has some of the inputs: all of `b`, for its part of the sum
            declare(self, lora_a=Role(Kind.matrix, cut=1), lora_b=Role(Kind.matrix, partial=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.lora_a), self.lora_b)


class Adapted(FeedForward):
    """The package's feed-forward, frozen, with factors."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.gate, self.up = WithFactor(self.gate, 0), WithFactor(self.up, 0)
        self.down = WithFactor(self.down, 1)

    @staticmethod
    def cost(config: ModelConfig) -> Cost:
        factors = 3 * RANK * (config.hidden + config.feed_forward.width)
        return FeedForward.cost(config) + Cost(factors, factors, kept=3 * RANK, kept_selective=3 * RANK)


ADAPTED = {"feed_forward": {"kind": "tests.seams.test_frozen_base:Adapted"}}


def test_it_trains_as_on_one_rank(store: Path, ranks: Any) -> None:
    alone = same_as_one_rank({**ADAPTED, "width": 161}, store, ranks)  # which two ranks cannot share evenly
    learned = {name for name in alone.gradients if "feed_forward." in name}
    assert len(learned) == 4 * 6
    assert all("lora" in name for name in learned)


def test_engines_that_train_all_parameters_say_so() -> None:
    stage = stage_of({**ADAPTED, "precision": "bf16"})
    stage.optimizer.state = "split"
    with pytest.raises(UserError, match=r"optimizer.state=split trains all parameters, and .*base.weight is frozen"):
        make_engine(stage, ALONE)


def test_what_is_frozen_stays_and_has_no_state(store: Path) -> None:
    for precision in ("fp32", "bf16"):
        changes = {**ADAPTED, "precision": precision}
        before, after = (train(ALONE, changes, store, 2, after=one).weights for one in (False, True))
        moved = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
        assert {name for name in before if name not in moved} == {name for name in before if ".base." in name}
    state = engine_of(stage_of(ADAPTED), ALONE).state()
    assert "model/blocks.0.feed_forward.up.base.weight" in state
    assert not any(name.startswith("optimizer/") and ".base." in name for name in state)
