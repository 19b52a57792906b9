"""The key and value cache for generation, and attention with it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from internevo.config.schema import ModelConfig


class LayerCache:
    """Keys and values of one layer, `[batch, max_length, kv_heads, head_dim]`, filled from the left."""

    def __init__(self, batch: int, max_length: int, config: ModelConfig, like: Tensor):
        shape = (batch, max_length, config.attention.kv_heads, config.attention.head_dim)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add new positions; returns all keys and values so far. Raises ValueError when the cache is full."""
        end = self.length + k.shape[1]
        if end > self.keys.shape[1]:
            raise ValueError(f"the cache holds {self.keys.shape[1]} positions, {end} were asked for")
        self.keys[:, self.length : end], self.values[:, self.length : end] = k, v
        self.length = end
        return self.keys[:, :end], self.values[:, :end]


class KVCache:
    """One `LayerCache` a layer, for `batch` sequences of equal length."""

    def __init__(self, batch: int, max_length: int, config: ModelConfig, like: Tensor):
        self.layers = [LayerCache(batch, max_length, config, like) for _ in range(config.layers)]

    @property
    def length(self) -> int:
        """Positions filled so far."""
        return self.layers[0].length

    def positions(self, new: int, device: torch.device) -> Tensor:
        """Positions `[1, new]` of the next tokens."""
        return torch.arange(self.length, self.length + new, device=device)[None]


def attend_cached(q: Tensor, k: Tensor, v: Tensor, cache: LayerCache) -> Tensor:
    """Attention of a prompt (an empty cache) or of one new token (a filled one), which are added to the cache.

    q: `[batch, new, heads, head_dim]`; k, v: `[batch, new, kv_heads, head_dim]`. Returns a tensor like q.
    """
    if cache.length and q.shape[1] > 1:
        raise ValueError("after the prompt, tokens go through the cache one at a time")
    prompt = q.shape[1] > 1
    q, k, v = (x.transpose(1, 2) for x in (q, *cache.append(k, v)))
    return F.scaled_dot_product_attention(q, k, v, is_causal=prompt, enable_gqa=True).transpose(1, 2)
