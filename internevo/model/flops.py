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
from internevo.model.transformer import Transformer


def parameters(config: ModelConfig) -> int:
    """All parameters; a tied embedding counts once."""
    return Transformer.cost(config).parameters


def causal_pairs(lengths: Iterable[int]) -> int:
    """Query-key pairs of documents of these lengths."""
    return sum(n * (n + 1) // 2 for n in lengths)


def forward_flops(config: ModelConfig, tokens: int, pairs: int) -> int:
    """Forward operations for `tokens` tokens whose attention covers `pairs` query-key pairs."""
    cost = Transformer.cost(config)
    return 2 * (tokens * cost.products + pairs * cost.pairs)


def training_flops(config: ModelConfig, tokens: int, pairs: int, adapters: int = 0) -> int:
    """Forward and backward: the backward pass does each product twice, once for each operand's gradient.

    `adapters` are the parameters of low-rank adapters: the model's own matrices are frozen then, and need one product
    less each.
    """
    if not adapters:
        return 3 * forward_flops(config, tokens, pairs)
    frozen = forward_flops(config, tokens, 0)
    return 3 * (forward_flops(config, tokens, pairs) + 2 * tokens * adapters) - frozen
