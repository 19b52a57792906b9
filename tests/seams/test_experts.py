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
from internevo.parallel.layout import LayoutError
from internevo.parallel.tensor import check_cut
from tests.parallel.jobs import ALONE, train
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


class Unchosen(Experts):
    """One more expert, which no token chooses."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        width = config.feed_forward.width
        self.idle = declare(nn.Linear(config.hidden, width, bias=False), weight=Role(Kind.matrix, cut=0))


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon"])
def test_an_expert_that_no_token_chooses_has_no_gradient(optimizer: str, store: Path, ranks: Any) -> None:
    """It decays, and nothing else happens, on one rank and on several."""
    experts = {"kind": "tests.seams.test_experts:Unchosen", "width": 32, "options": {"experts": 2}}
    changes = {"feed_forward": experts, "optimizer": optimizer, "micro_batch": 8}
    torch.set_num_threads(1)
    alone = train(ALONE, changes, store, 2, after=True)
    got = ranks(2).run(train, {**changes, "tensor": 2}, store, 2, True)[0]
    assert got.losses == pytest.approx(alone.losses, rel=1e-4)
    for name, weight in alone.weights.items():
        assert (got.weights[name] - weight).norm() <= 1e-2 * weight.norm(), name


@pytest.mark.parametrize("role", [Role(Kind.matrix, cut=1), Role(Kind.matrix, cut=0, pieces=6)])
def test_what_ranks_cannot_share_evenly_is_refused(role: Role) -> None:
    with pytest.raises(LayoutError, match=r"4 ranks cannot share up of \[12, 6\] along dimension"):
        check_cut("up", role, torch.Size([12, 6]), 4)
    check_cut("up", Role(Kind.matrix, cut=0, pieces=2), torch.Size([12, 6]), 4)  # two ranks a piece


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_trains_as_on_one_rank(optimizer: str, store: Path, ranks: Any) -> None:
    experts = {"kind": "tests.seams.test_experts:Experts", "width": 32, "options": {"experts": 3}}
    alone = same_as_one_rank({"feed_forward": experts, "optimizer": optimizer}, store, ranks)
    assert alone.gradients["blocks.0.feed_forward.up"].shape == (3, 32, 64)


class Chosen(nn.Module):
    """One of several experts for each row, which others do not see: ranks with other rows have other experts."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        count, hidden, width = config.feed_forward.options["experts"], config.hidden, config.feed_forward.width
        self.gate = declare(nn.Linear(hidden, count, bias=False), weight=Role(Kind.matrix, partial=True))
        up = (nn.Linear(hidden, width, bias=False) for _ in range(count))
        down = (nn.Linear(width, hidden, bias=False) for _ in range(count))
        self.up = nn.ModuleList(declare(one, weight=Role(Kind.matrix, cut=0)) for one in up)
        self.down = nn.ModuleList(declare(one, weight=Role(Kind.matrix, cut=1, into_residual=True)) for one in down)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.gate(x).softmax(-1)  # [batch, seq, experts]
        out = []
        for row, share in zip(x, shares, strict=True):
            best = int(share.mean(0).argmax())
            out.append(self.down[best](self.up[best](row).relu()) * share[:, best, None])
        return torch.stack(out)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_ranks_may_use_other_experts(zero: int, micro_batch: int, store: Path, ranks: Any) -> None:
    experts = {"kind": "tests.seams.test_experts:Chosen", "width": 32, "options": {"experts": 6}}
    torch.set_num_threads(1)
    alone = train(ALONE, {"feed_forward": experts, "micro_batch": 8}, store, 2, after=True)
    idle = [name for name, gradient in alone.gradients.items() if not gradient.norm() > 0]
    assert 0 < len(idle) < len(alone.gradients) / 2  # no rank has used these
    got = ranks(2).run(train, {"feed_forward": experts, "zero": zero, "micro_batch": micro_batch}, store, 2, True)[0]
    assert got.losses == pytest.approx(alone.losses, rel=1e-5)
    for name, gradient in alone.gradients.items():
        assert (got.gradients[name] - gradient).norm() <= 1e-4 * gradient.norm(), name
    for name, weight in alone.weights.items():
        assert (got.weights[name] - weight).norm() <= 1e-3 * weight.norm(), name
