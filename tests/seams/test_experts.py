"""A feed-forward of experts and a router, as somebody outside the package would write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from internevo.config.schema import ModelConfig
from internevo.model.cost import Cost
from internevo.model.roles import Kind, Role, declare
from tests.seams.compare import same_as_one_rank


class Experts(nn.Module):
    """Every expert sees every token, and a router weighs what they say: enough to be cut as real ones are."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        count, hidden, width = config.feed_forward.options["experts"], config.hidden, config.feed_forward.width
        # each tensor rank has all of the router, and a part of each expert; so its gradient is of that part
        self.gate = declare(nn.Linear(hidden, count, bias=False), weight=Role(Kind.matrix, partial=True))
        self.up = nn.Parameter(torch.empty(count, width, hidden))
        self.down = nn.Parameter(torch.empty(count, hidden, width))
        declare(self, up=Role(Kind.matrix, cut=1), down=Role(Kind.matrix, cut=2, into_residual=True))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.gate(x).softmax(-1)  # [batch, seq, experts]
        inner = torch.einsum("bsh,ewh->bsew", x, self.up).relu()  # [batch, seq, experts, width]
        return torch.einsum("bsew,ehw,bse->bsh", inner, self.down, shares)

    @staticmethod
    def cost(config: ModelConfig) -> Cost:
        count, width = config.feed_forward.options["experts"], config.feed_forward.width
        weights = count * config.hidden * (1 + 2 * width)
        return Cost(weights, weights, kept=count * (2 * width + 1), kept_selective=count * width + config.hidden)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_trains_as_on_one_rank(optimizer: str, store: Path, ranks: Any) -> None:
    experts = {"kind": "tests.seams.test_experts:Experts", "width": 32, "options": {"experts": 3}}
    alone = same_as_one_rank({"feed_forward": experts, "optimizer": optimizer}, store, ranks)
    assert alone.gradients["blocks.0.feed_forward.up"].shape == (3, 32, 64)
