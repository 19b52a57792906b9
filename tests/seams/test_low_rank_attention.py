"""An attention whose keys and values come out of a narrow vector, as somebody outside the package would write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from internevo.config.schema import ModelConfig
from internevo.model.attention import Attend, attention
from internevo.model.cache import LayerCache
from internevo.model.cost import Cost
from internevo.model.documents import Documents
from internevo.model.roles import Kind, Role, declare
from internevo.model.rope import rotate
from tests.seams.compare import same_as_one_rank

HEADS = Role(Kind.matrix, cut=0)


class LowRankAttention(nn.Module):
    """Multi-head attention with keys and values through a bottleneck (the idea of arXiv 2405.04434)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        hidden, heads, rank = config.hidden, config.attention, config.attention.options["rank"]
        width = heads.heads * heads.head_dim
        self.head_dim, self.kernel = heads.head_dim, "sdpa"
        self.attend: Attend = attention
        self.query = declare(nn.Linear(hidden, width, bias=False), weight=HEADS)
        # on every tensor rank, for the heads that it has
        self.narrow = declare(nn.Linear(hidden, rank, bias=False), weight=Role(Kind.matrix, partial=True))
        self.key = declare(nn.Linear(rank, width, bias=False), weight=HEADS)
        self.value = declare(nn.Linear(rank, width, bias=False), weight=HEADS)
        self.out = declare(nn.Linear(width, hidden, bias=False), weight=Role(Kind.matrix, cut=1, into_residual=True))

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], documents: Documents | None, cache: LayerCache | None
    ) -> Tensor:
        assert documents is not None
        assert cache is None
        narrow = self.narrow(x)  # [batch, seq, rank]
        parts = self.query(x), self.key(narrow), self.value(narrow)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in parts)  # [batch, seq, heads, head_dim]
        out = self.attend(rotate(q, *rotary), rotate(k, *rotary), v, documents, self.kernel)
        return self.out(out.flatten(-2))

    @staticmethod
    def cost(config: ModelConfig) -> Cost:
        hidden, heads, rank = config.hidden, config.attention, config.attention.options["rank"]
        width = heads.heads * heads.head_dim
        weights = 2 * hidden * width + rank * (hidden + 2 * width)
        return Cost(weights, weights, 2 * width, 4 * width + rank, 4 * width + hidden, heads.heads)


def test_it_trains_as_on_one_rank(store: Path, ranks: Any) -> None:
    kind = {"kind": "tests.seams.test_low_rank_attention:LowRankAttention", "options": {"rank": 24}}
    alone = same_as_one_rank({"attention": kind}, store, ranks)
    assert alone.gradients["blocks.3.attention.narrow.weight"].shape == (24, 64)


def test_it_goes_around_a_ring(store: Path, ranks: Any) -> None:
    """Context parallelism takes the place of `attend`, whatever calls it."""
    kind = {"kind": "tests.seams.test_low_rank_attention:LowRankAttention", "options": {"rank": 24}}
    same_as_one_rank({"attention": kind, "context": 2, "ulysses": 1}, store, ranks)
