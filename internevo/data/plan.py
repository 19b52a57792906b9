"""What the steps of a stage are made of, as a function of their number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from internevo.config.derive import legs, stage_steps, step_from
from internevo.config.schema import BLOCK, CACHE, SourceConfig, StageConfig

Asked = dict[str, list[float | None]]
"""By source name: its weight, and for one that may be gone through only so often, how often, and up to which step it is
to last."""


@dataclass(frozen=True)
class Plan:
    """A stage's data. Steps are counted from 0 within the stage."""

    sources: tuple[SourceConfig, ...]
    seq_len: int
    packing: str
    rows: tuple[tuple[int, int], ...]
    """`(step, rows)`, in order: so many rows a step from this one on. The first is that of step 0."""
    changes: tuple[tuple[int, dict[str, float]], ...] = ()
    """`(step, weights)`, in order: other weights of the sources named from this step on."""
    steps: float = math.inf
    """Of the stage."""
    cache: str = CACHE
    """The folder that remote stores are copied into."""
    block_size: int = BLOCK
    """Documents of a source that are packed together."""

    @classmethod
    def constant(
        cls, sources: list[SourceConfig], *, seq_len: int, rows: int, packing: str, block_size: int = BLOCK
    ) -> Plan:
        """The same for ever."""
        return cls(tuple(sources), seq_len, packing, ((0, rows),), block_size=block_size)

    @classmethod
    def of(cls, stage: StageConfig) -> Plan:
        """What a stage's configuration says."""
        train, data = stage.train, stage.data
        return cls(
            tuple(data.sources),
            train.seq_len,
            data.packing,
            tuple((leg.first, leg.rows) for leg in legs(train)),
            tuple((step_from(train, change.at), change.weights) for change in data.changes),
            stage_steps(train),
            data.cache,
            data.block,
        )

    def rows_at(self, step: int) -> int:
        """Rows of a step."""
        return next(rows for first, rows in reversed(self.rows) if first <= step)

    def weights(self, step: int) -> dict[str, float]:
        """By source name, at a step."""
        weights = {source_name(source): float(source.weight) for source in self.sources}
        for first, changed in self.changes:
            if first <= step:
                weights |= {name: float(weight) for name, weight in changed.items()}
        return weights

    def asked(self, step: int) -> Asked:
        """The mixture that is asked for at a step, in plain values. Two that are equal are shared out alike."""
        weights = self.weights(step)
        caps = {source_name(source): source.max_epochs for source in self.sources}
        end = self._end(step)
        lasts = {name: None if cap is None or end == math.inf else end for name, cap in caps.items()}
        return {name: [weight, caps[name], lasts[name]] for name, weight in weights.items()}

    def legs(self, step: int) -> Iterator[tuple[int, float]]:
        """Stretches with the same mixture, from `step` to the stage's end: the first step of each, and that behind."""
        while step < self.steps:
            yield step, (end := self._end(step))
            if end == math.inf:
                return
            step = int(end)

    def places(self, step: int) -> float:
        """Places for tokens from a step to where the mixture changes next, or to the stage's end."""
        return self._places(step, self._end(step))

    def _end(self, step: int) -> float:
        return min([self.steps, *(first for first, _ in self.changes if first > step)])

    def _places(self, begin: int, end: float) -> float:
        ends = [*(first for first, _ in self.rows[1:]), math.inf]
        steps = [max(0, min(end, until) - max(begin, first)) for (first, _), until in zip(self.rows, ends, strict=True)]
        return sum(count * rows for count, (_, rows) in zip(steps, self.rows, strict=True)) * self.seq_len


def source_name(source: SourceConfig) -> str:
    """How metrics call a source."""
    return source.name or Path(source.path).name
