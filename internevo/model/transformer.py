"""The decoder of InternLM2 and the Llama family: pre-norm blocks of grouped-query attention and SwiGLU.

The file knows nothing of ranks, precision policies or losses; `parallel/` and `train/` put those around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internevo.config.choices import choose
from internevo.config.schema import ModelConfig
from internevo.model.attention import Attend, attention, prepare_documents
from internevo.model.cache import KVCache, LayerCache, attend_cached
from internevo.model.cost import Cost
from internevo.model.documents import Documents
from internevo.model.recompute import Policy, recompute
from internevo.model.roles import Kind, Role, check_half, declare, roles_of
from internevo.model.rope import rotary_tables, rotate

Rotary = tuple[Tensor, Tensor]

BY_ROWS = Role(Kind.matrix, cut=0, fp8=True)
"""Makes what each rank has its part of: heads, or inner features."""
BY_COLUMNS = Role(Kind.matrix, cut=1, into_residual=True, fp8=True)
"""Takes such a part; the ranks' results add up."""


class RMSNorm(nn.Module):
    """Root-mean-square norm (arXiv 1910.07467), computed in fp32 whatever the input's dtype, and rounded once."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps
        declare(self, weight=Role(Kind.scale))

    @staticmethod
    def cost(dim: int) -> Cost:
        """It keeps its input and its output."""
        return Cost(parameters=dim, kept=2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions (arXiv 2305.13245)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        shape = config.attention
        self.head_dim = shape.head_dim
        self.kernel = "sdpa"
        self.attend: Attend = attention
        q_dim, kv_dim = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        # with grouped heads, keys and values are too narrow to gain from FP8
        narrow = Role(Kind.matrix, cut=0, pieces=shape.kv_heads)
        bias = {"bias": Role(Kind.bias, cut=0)} if shape.bias else {}
        narrow_bias = {"bias": Role(Kind.bias, cut=0, pieces=shape.kv_heads)} if shape.bias else {}
        self.wq = declare(nn.Linear(config.hidden, q_dim, bias=shape.bias), weight=BY_ROWS, **bias)
        self.wk = declare(nn.Linear(config.hidden, kv_dim, bias=shape.bias), weight=narrow, **narrow_bias)
        self.wv = declare(nn.Linear(config.hidden, kv_dim, bias=shape.bias), weight=narrow, **narrow_bias)
        self.wo = declare(nn.Linear(q_dim, config.hidden, bias=False), weight=BY_COLUMNS)
        self.q_norm = _head_norm(config) if shape.qk_norm else None
        self.k_norm = _head_norm(config) if shape.qk_norm else None

    def forward(self, x: Tensor, rotary: Rotary, documents: Documents | None, cache: LayerCache | None) -> Tensor:
        # x: [batch, seq, hidden]; q: [batch, seq, heads, head_dim]; k, v: [batch, seq, kv_heads, head_dim]
        q, k, v = (project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.wq, self.wk, self.wv))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            out = attend_cached(q, k, v, cache)
        else:
            assert documents is not None
            out = self.attend(q, k, v, documents, self.kernel)
        return self.wo(out.flatten(-2))  # [batch, seq, heads * head_dim] -> [batch, seq, hidden]

    @staticmethod
    def cost(config: ModelConfig) -> Cost:
        """Queries, keys, values and the output's projection; two products for a query and a key that meet."""
        shape = config.attention
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        matrices = config.hidden * (2 * q + 2 * kv)
        biases = q + 2 * kv if shape.bias else 0
        head_norms = 2 * shape.head_dim if shape.qk_norm else 0
        return Cost(
            parameters=matrices + biases + head_norms,
            products=matrices,
            pairs=2 * q,
            # queries, keys, values and what attention gave; before the heads' norms too
            kept=2 * q + 2 * kv + (q + kv if shape.qk_norm else 0),
            kept_selective=2 * q + 2 * kv + config.hidden,
            kept_fp32=shape.heads,  # the logarithm of each softmax's sum
        )


def _head_norm(config: ModelConfig) -> RMSNorm:
    """A norm of each head: all heads share its weight."""
    return declare(RMSNorm(config.attention.head_dim, config.norm_eps), weight=Role(Kind.scale, partial=True))


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202): `down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        hidden, width = config.hidden, config.feed_forward.width
        self.gate = declare(nn.Linear(hidden, width, bias=False), weight=BY_ROWS)
        self.up = declare(nn.Linear(hidden, width, bias=False), weight=BY_ROWS)
        self.down = declare(nn.Linear(width, hidden, bias=False), weight=BY_COLUMNS)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # [batch, seq, hidden] -> [batch, seq, width] -> back

    @staticmethod
    def cost(config: ModelConfig) -> Cost:
        """Three matrices."""
        hidden, width = config.hidden, config.feed_forward.width
        matrices = 3 * hidden * width
        return Cost(matrices, matrices, kept=4 * width, kept_selective=2 * width + hidden)


ATTENTIONS: dict[str, type[nn.Module]] = {"gqa": Attention}
"""By `model.attention.kind`."""
FEED_FORWARDS: dict[str, type[nn.Module]] = {"dense": FeedForward}
"""By `model.feed_forward.kind`."""


def run_half(part: nn.Module, norm: nn.Module, x: Tensor, *more: Any) -> Tensor:
    """What one half of a block adds to the residual stream `[batch, seq, hidden]`."""
    return part(norm(x), *more)


class Block(nn.Module):
    """One layer: attention, then feed-forward, each after a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden, config.norm_eps)
        self.attention = choose(config.attention.kind, ATTENTIONS)(config)
        self.feed_forward_norm = RMSNorm(config.hidden, config.norm_eps)
        self.feed_forward = choose(config.feed_forward.kind, FEED_FORWARDS)(config)
        self.run_attention: Callable[..., Tensor] = run_half
        self.run_feed_forward: Callable[..., Tensor] = run_half
        """How the halves are run: tensor parallelism puts its messages around them."""
        self.policy = Policy.none
        """What the backward pass recomputes."""

    def forward(
        self, x: Tensor, rotary: Rotary, documents: Documents | None, cache: LayerCache | None = None
    ) -> Tensor:
        def run(x: Tensor) -> Tensor:  # [batch, seq, hidden], and so it stays
            x = x + self.run_attention(self.attention, self.attention_norm, x, rotary, documents, cache)
            return x + self.run_feed_forward(self.feed_forward, self.feed_forward_norm, x)

        return recompute(run, x, self.policy)

    @staticmethod
    def cost(config: ModelConfig) -> Cost:
        """Its parts, its norms, and the input that selective recomputation begins from."""
        halves = choose(config.attention.kind, ATTENTIONS), choose(config.feed_forward.kind, FEED_FORWARDS)
        parts = sum((half.cost(config) for half in halves), start=RMSNorm.cost(config.hidden).times(2))
        return parts + Cost(kept_selective=config.hidden)


class Transformer(nn.Module):
    """Token ids to logits.

    Build it on any device, also `meta`, and give it weights with `initial.init_weights` or `load_state_dict`.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.compiled = False
        self.embed = declare(nn.Embedding(config.vocab, config.hidden), weight=Role(Kind.embedding, cut=0))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        self.head = declare(nn.Linear(config.hidden, config.vocab, bias=False), weight=Role(Kind.head, cut=0))
        if config.tied:
            self.head.weight = self.embed.weight
        self.take_stock()

    def take_stock(self) -> None:
        """Note what parameters there are; to be called again by what adds some."""
        for number, block in enumerate(self.blocks):
            for half in ("attention", "feed_forward"):
                check_half(getattr(block, half), f"blocks.{number}.{half}")
        self.roles = roles_of(self)
        """What each parameter is, by its name; also after modules are wrapped, or a rank has given some up."""
        self.shapes = {name: parameter.shape for name, parameter in self.named_parameters()}
        """The whole shape of each, whatever a rank has of it."""

    @property
    def attentions(self) -> list[Any]:
        """The attention of every block that is here, of whatever kind: it has a `kernel`, and calls `attend`."""
        return [block.attention for block in self.blocks.children()]

    def use_kernel(self, kernel: str) -> None:
        """Let every block attend with this kernel of `attention.KERNELS`."""
        for one in self.attentions:
            one.kernel = kernel

    def use_policies(self, policies: Sequence[Policy]) -> None:
        """Let the blocks recompute by these policies, one for each block that is here."""
        for block, policy in zip(self.blocks.children(), policies, strict=True):
            assert isinstance(block, Block)
            block.policy = policy

    def compile_blocks(self, mode: str = "default", options: Mapping[str, Any] | None = None) -> None:
        """Compile each block with torch.compile, in one of its modes, with more of its `options`.

        Blocks share what is compiled. Documents come as tensors of varying size, so that a new batch of them compiles
        nothing.
        """
        self.compiled = True
        together = {**torch._inductor.list_mode_options(mode), **(options or {})}  # torch takes a mode or options
        for block in self.blocks.children():
            block.compile(options=together)

    def features(
        self, tokens: Tensor, positions: Tensor, documents: Documents | None, cache: KVCache | None = None
    ) -> Tensor:
        """The normed last hidden states `[batch, seq, hidden]`, which `head` turns into logits."""
        rotary = rotary_tables(positions, self.config)  # twice [batch, seq, 1, head_dim / 2]
        return self.norm(self.run_blocks(self.embed(tokens), rotary, documents, cache))

    def run_blocks(
        self, x: Tensor, rotary: Rotary, documents: Documents | None, cache: KVCache | None = None
    ) -> Tensor:
        """Hidden states `[batch, seq, hidden]` through all blocks; `rotary` as from `rotary_tables`."""
        if documents is not None:
            documents = prepare_documents(documents, self.attentions[0].kernel)
            if self.compiled:
                torch._dynamo.mark_dynamic(documents.offsets, 0)
                torch._dynamo.mark_dynamic(documents.host, 0)
        for i, block in enumerate(self.blocks.children()):
            x = block(x, rotary, documents, cache.layers[i] if cache else None)
        return x

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Documents | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits `[batch, seq, vocab]` in the weights' dtype.

        tokens, positions: integers `[batch, seq]`; positions restart at each document. `documents` says where
        documents end; without them, each row is one. With a `cache`, each row of the batch is one sequence, and the
        call extends it by `seq` tokens (any number at first, then one at a time).
        """
        batch, seq = tokens.shape
        if positions is None:
            first = cache.length if cache else 0
            positions = torch.arange(first, first + seq, device=tokens.device).expand(batch, seq)
        if documents is None and cache is None:
            documents = Documents.of([seq] * batch, tokens.device)
        return self.head(self.features(tokens, positions, documents, cache))

    @staticmethod
    def head_cost(config: ModelConfig) -> Cost:
        """The output head; a tied one has no parameters of its own."""
        matrix = config.hidden * config.vocab
        return Cost(parameters=0 if config.tied else matrix, products=matrix)

    @staticmethod
    def cost(config: ModelConfig) -> Cost:
        """All blocks, the last norm, embedding and head."""
        embedding = Cost(parameters=config.vocab * config.hidden)
        blocks = Block.cost(config).times(config.layers)
        return blocks + RMSNorm.cost(config.hidden) + embedding + Transformer.head_cost(config)
