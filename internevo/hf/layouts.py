"""How several of our tensors lie in one of theirs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from internevo.config.schema import ModelConfig


class Layout:
    """One of theirs is one of ours, as it is."""

    def pack(self, ours: Sequence[Tensor], config: ModelConfig) -> Tensor:
        """Theirs, from ours."""
        return ours[0]

    def unpack(self, theirs: Tensor, config: ModelConfig) -> Sequence[Tensor]:
        """The inverse of `pack`."""
        return (theirs,)


class GroupedQKV(Layout):
    """InternLM2's `wqkv`: for each kv head its query heads, then its key, then its value.

    Weights `[heads * head_dim, hidden]`, `[kv_heads * head_dim, hidden]` twice, to
    `[(heads + 2 * kv_heads) * head_dim, hidden]`. Tensor parallelism can cut the result by rows.
    """

    def pack(self, ours: Sequence[Tensor], config: ModelConfig) -> Tensor:
        heads = [tensor.unflatten(0, (config.attention.kv_heads, -1, config.attention.head_dim)) for tensor in ours]
        return torch.cat(heads, dim=1).flatten(0, 2)

    def unpack(self, theirs: Tensor, config: ModelConfig) -> Sequence[Tensor]:
        group = config.attention.heads // config.attention.kv_heads
        heads = theirs.unflatten(0, (config.attention.kv_heads, group + 2, config.attention.head_dim))
        return [part.flatten(0, 2) for part in heads.split([group, 1, 1], dim=1)]


AS_IT_IS, GROUPED_QKV = Layout(), GroupedQKV()
