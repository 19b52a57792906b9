"""The weights of a model with low-rank adapters, merged: what evaluation, sampling and export read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from internevo.checkpoint.tensors import fill_tensors
from internevo.config.schema import LoraConfig
from internevo.hf.weights import CheckpointWeights, Weights
from internevo.model.lora import FACTORS, scale_of


class AdaptedWeights:
    """`W + (alpha / rank) B A` where there is an adapter, added in fp32, and the base's own weights elsewhere."""

    def __init__(self, base: Weights, adapter: CheckpointWeights, config: LoraConfig):
        self.base, self.adapter, self.config = base, adapter, config
        self.matrices = {matrix_of(name): None for name in adapter.names}
        """The names of the weights that are adapted, in order."""

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32 if name in self.matrices else self.base.dtype(name)

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        if name not in self.matrices:
            return self.base.read(name, dtype)
        a, b = self.factors(name)
        merged = torch.addmm(self.base.read(name, torch.float32), b, a, alpha=scale_of(self.config))
        return merged if dtype is None else merged.to(dtype)

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """A `[rank, in]` and B `[out, rank]` beside a weight, fp32 on the CPU."""
        a, b = (self.adapter.read(f"{name.removesuffix('.weight')}.{factor}", torch.float32) for factor in FACTORS)
        return a, b

    def fill(self, into: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> None:
        self.base.fill({name: tensor for name, tensor in into.items() if name not in self.matrices}, group)
        adapted = {name: tensor for name, tensor in into.items() if name in self.matrices}
        fill_tensors(_Merged(self, adapted), adapted, group)

    def fingerprint(self) -> str:
        both = f"{self.base.fingerprint()} {self.adapter.fingerprint()} {self.config}"
        return hashlib.blake2b(both.encode(), digest_size=16).hexdigest()


class _Merged:
    """The merged weights as a source of tensors of these shapes."""

    def __init__(self, weights: AdaptedWeights, like: Mapping[str, Tensor]):
        self._weights, self._like, self.dtype = weights, like, weights.dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._like[name].shape)

    def read(self, name: str, dtype: torch.dtype | None = None, part: tuple[slice, ...] = ()) -> Tensor:
        return self._weights.read(name, dtype)[part]


def matrix_of(factor: str) -> str:
    """`blocks.0.attention.wq.weight` for `blocks.0.attention.wq.lora_a`."""
    return f"{factor.rpartition('.')[0]}.weight"
