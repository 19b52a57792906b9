"""Exact parameter counts and the floating-point operations of a training step.

A multiplication and an addition count as two operations; only matrix products and attention count, as in the
PaLM appendix (arXiv 2204.02311). Recomputation does not count. Two conventions for attention are in use:

- *causal*: a token's query meets itself and the earlier tokens of its document: `n (n + 1) / 2` pairs for a
  document of `n` tokens. This is the work that a good kernel does, and what `mfu` counts.
- *full*: every token of a row meets every other, `seq_len ** 2` pairs whatever the documents. Megatron-LM and
  the InternLM2 report count so; `mfu_full` does too.
"""

from __future__ import annotations

from collections.abc import Iterable

from internevo.config.schema import ModelConfig


def block_parameters(config: ModelConfig) -> int:
    """Parameters of one block."""
    q_dim, kv_dim = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention = config.hidden * (2 * q_dim + 2 * kv_dim)
    biases = q_dim + 2 * kv_dim if config.qkv_bias else 0
    norms = 2 * config.head_dim if config.qk_norm else 0
    return attention + biases + norms + 3 * config.hidden * config.ffn + 2 * config.hidden


def parameters(config: ModelConfig) -> int:
    """All parameters; a tied embedding counts once."""
    embeddings = config.vocab * config.hidden * (1 if config.tied else 2)
    return config.layers * block_parameters(config) + embeddings + config.hidden


def matmul_flops_per_token(config: ModelConfig) -> int:
    """Forward operations of all matrix products for one token, the output head included."""
    heads_dim = (2 * config.heads + 2 * config.kv_heads) * config.head_dim
    per_block = config.hidden * heads_dim + 3 * config.hidden * config.ffn
    return 2 * (config.layers * per_block + config.hidden * config.vocab)


def causal_pairs(lengths: Iterable[int]) -> int:
    """Query-key pairs of documents of these lengths."""
    return sum(n * (n + 1) // 2 for n in lengths)


def forward_flops(config: ModelConfig, tokens: int, pairs: int) -> int:
    """Forward operations for `tokens` tokens whose attention covers `pairs` query-key pairs."""
    # two products a pair and head, q.k and weight.v, each of head_dim multiply-adds
    per_pair = 2 * 2 * config.head_dim * config.heads * config.layers
    return tokens * matmul_flops_per_token(config) + pairs * per_pair


def training_flops(config: ModelConfig, tokens: int, pairs: int) -> int:
    """Forward and backward: the backward pass does each product twice, once for each operand's gradient."""
    return 3 * forward_flops(config, tokens, pairs)
