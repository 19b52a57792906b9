"""How many ranks do what: sizes from the configuration and the number of processes, before any process group."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from internevo.config.derive import step_sizes
from internevo.config.schema import StageConfig
from internevo.files.errors import UserError


class LayoutError(UserError):
    """Sizes that do not fit the number of processes, or each other."""


@dataclass(frozen=True)
class Layout:
    """The sizes of every kind of parallelism. Data parallelism takes what the others leave."""

    pipeline: int
    data: int
    ring: int
    ulysses: int
    tensor: int
    shard: int
    """Ranks that share one copy of the sharded state; of the `data * context` ranks with the same weights."""

    @property
    def context(self) -> int:
        """Ranks that share a row."""
        return self.ring * self.ulysses

    @property
    def replicas(self) -> int:
        """Ranks that have the same weights: their gradients are added."""
        return self.data * self.context

    @property
    def world(self) -> int:
        """All ranks."""
        return self.pipeline * self.replicas * self.tensor

    def __str__(self) -> str:
        sizes = {name: getattr(self, name) for name in ("pipeline", "data", "ring", "ulysses", "tensor")}
        return " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "one rank"


ONE_PROCESS = Layout(1, 1, 1, 1, 1, 1)
"""The layout of a process that is alone."""


def make_layout(stage: StageConfig, world: int) -> Layout:
    """The stage's layout over `world` processes. Raises LayoutError with the arithmetic spelled out."""
    parallel, model = stage.parallel, stage.model
    pipeline, context, tensor = parallel.pipeline.size, parallel.context.size, parallel.tensor
    used = pipeline * context * tensor
    arithmetic = f"pipeline {pipeline} x context {context} x tensor {tensor} = {used}"
    if world % used:
        raise LayoutError(
            f"stage {stage.name}: {arithmetic}, so its layout needs {used} processes or a multiple; there "
            f"{'is' if world == 1 else 'are'} {world}. Start {used}, {2 * used}, ... (`internevo launch --nproc {used} "
            f"CONFIG`), or change the stage's `parallel`."
        )
    data = world // used
    ulysses = parallel.context.ulysses
    if ulysses == "auto":
        ulysses = gcd(context, model.attention.heads // tensor)
    shard = parallel.zero.shard
    shard = data * context if shard == -1 else shard
    if parallel.zero.stage == 0:
        shard = 1
    if (data * context) % shard:
        raise LayoutError(
            f"stage {stage.name}: parallel.zero.shard {shard} does not divide the {data * context} ranks with the same "
            f"weights (data {data} x context {context}; {world} processes, {arithmetic})."
        )
    _check_rows(stage, data, f"{world} processes, {arithmetic}")
    return Layout(pipeline, data, context // ulysses, ulysses, tensor, shard)


def _check_rows(stage: StageConfig, data: int, arithmetic: str) -> None:
    """The rows of each step must be whole micro-batches on every data rank."""
    train, together = stage.train, data * stage.train.micro_batch
    sizes = [*(leg.batch_tokens for leg in train.batch_ramp), train.batch_tokens]
    for batch_tokens, rows in zip(sizes, step_sizes(train), strict=True):
        if rows % together:
            near = sorted({max(1, rows // together) * together, (rows // together + 1) * together})
            raise LayoutError(
                f"stage {stage.name}: batch_tokens {batch_tokens:,} // seq_len {train.seq_len:,} = {rows:,} rows, "
                f"which {data} data ranks with micro-batches of {train.micro_batch} cannot share ({arithmetic}); near "
                "are batch_tokens " + " and ".join(f"{count * train.seq_len:,}" for count in near)
            )
