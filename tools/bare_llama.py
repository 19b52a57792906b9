"""A Llama in bare torch, as a competent engineer writes it in an afternoon: what internevo's speed is compared with.

SDPA, fused AdamW, bf16 by autocast over fp32 weights, blocks that can be compiled and checkpointed, the logits all at
once or in checkpointed chunks. Rows are causal from end to end: documents packed into a row see each other, which a
careful engineer would regret and a benchmark forgives.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Shape:
    """Sizes of the model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    rope_base: float = 10000.0
    norm_eps: float = 1e-5


class Block(nn.Module):
    """Attention and SwiGLU, each after a norm."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape, self.head_dim = shape, shape.hidden // shape.heads
        kv = shape.kv_heads * self.head_dim
        self.norm1 = nn.RMSNorm(shape.hidden, shape.norm_eps)
        self.wq = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.wk, self.wv = (nn.Linear(shape.hidden, kv, bias=False) for _ in range(2))
        self.wo = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.norm2 = nn.RMSNorm(shape.hidden, shape.norm_eps)
        self.gate, self.up = (nn.Linear(shape.hidden, shape.ffn, bias=False) for _ in range(2))
        self.down = nn.Linear(shape.ffn, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (w(h).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        grouped = self.shape.heads != self.shape.kv_heads
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        x = x + self.wo(out.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, half-split."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class Llama(nn.Module):
    """Token ids and labels to the mean loss."""

    def __init__(self, shape: Shape, recompute: bool = False, loss_chunks: int = 1):
        super().__init__()
        self.shape, self.recompute, self.loss_chunks = shape, recompute, loss_chunks
        self.embed = nn.Embedding(shape.vocab, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, shape.norm_eps)
        self.head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(tokens)
        head_dim = self.shape.hidden // self.shape.heads
        frequencies = self.shape.rope_base ** -(torch.arange(0, head_dim, 2, device=x.device) / head_dim)
        angles = torch.arange(tokens.shape[1], device=x.device)[:, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        for block in self.blocks:
            x = checkpoint(block, x, cos, sin, use_reentrant=False) if self.recompute else block(x, cos, sin)
        x, labels = self.norm(x).flatten(0, 1), labels.flatten()
        if self.loss_chunks == 1:
            return self.loss(x, labels) / (labels != -100).sum()
        parts = zip(x.chunk(self.loss_chunks), labels.chunk(self.loss_chunks), strict=True)
        sums = [checkpoint(self.loss, part, target, use_reentrant=False) for part, target in parts]
        return torch.stack(sums).sum() / (labels != -100).sum()

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.head(x).float(), labels, reduction="sum")


class Trainer:
    """Llama with fused AdamW; `step` trains on one batch."""

    def __init__(self, shape: Shape, device: torch.device, bf16: bool, compiled: bool, recompute: bool, chunks: int):
        with device:
            self.model = Llama(shape, recompute, chunks)
        if compiled:
            for block in self.model.blocks:
                block.compile()
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        free = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": free, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)
        self.device, self.bf16 = device, bf16

    def step(self, micro_batches: list[tuple[Tensor, Tensor]]) -> float:
        """Train on micro-batches of tokens and labels `[rows, seq]`; the mean loss."""
        total = torch.zeros((), device=self.device)
        for tokens, labels in micro_batches:
            with self.cast():
                loss = self.model(tokens, labels) / len(micro_batches)
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total.item()

    def cast(self) -> AbstractContextManager[object]:
        """bf16 by autocast, if wanted."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()
