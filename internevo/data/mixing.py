"""Which source gives which tokens of a stage: the mixture at each step, the sources' shares, and the next row's source.

A worked example of the rule for the next row, in `Mixture`. Sources a and b have the weights 3 and 1. After each turn,
a should have given 3/4 of the rows, b 1/4; a source may be chosen when it would otherwise be half a row behind that.

    turn   behind if not chosen   may be chosen   chosen
           a       b
    1      0.75    0.25           a               a
    2      0.50    0.50           a, b            a   (both have the same time left, and a comes first)
    3      0.25    0.75           b               b
    4      1.00    0.00           a               a   after four turns, a has given 3 rows and b 1

`capped_shares` is where `max_epochs` enters: a source that would run out gives less over the whole stretch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from internevo.config.derive import legs, stage_steps, step_from
from internevo.config.schema import BLOCK, CACHE, SourceConfig, StageConfig
from internevo.data.length_band import Band
from internevo.tokens.megatron import StoreError

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
    average: str = "token"
    """What counts alike in the loss."""

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
            train.average,
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

    def band(self, source: str) -> Band | None:
        """The lengths of the documents that a source gives; None where it gives none, at no step."""
        later = [changed.get(source, 0.0) for _, changed in self.changes]
        for one in self.sources:
            if source_name(one) == source and max([one.weight, *later]) > 0:
                return Band(one.min_tokens, one.max_tokens)
        return None

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


def capped_shares(weights: Mapping[str, float], left: Mapping[str, float], tokens: float) -> dict[str, float]:
    """Shares of `tokens` tokens by weight, of which no source gives more than it has `left`.

    What such a source cannot give, the others give by their weights, those that it makes too much for left out in turn
    (as UniMax does with equal weights, arXiv 2304.09151). Shares add up to 1, so sources that have too little even
    together give what they have in proportion. Of infinitely many tokens, shares are by weight alone.
    """
    shares = dict.fromkeys(weights, 0.0)
    open_weights = {name: weight for name, weight in weights.items() if weight > 0}
    rest = 1.0
    while open_weights:
        total = math.fsum(open_weights.values())
        wanted = {name: rest * weight / total for name, weight in open_weights.items()}
        short = {name for name, share in wanted.items() if share * tokens > left[name] and tokens < math.inf}
        if not short:
            shares |= wanted
            break
        for name in short:
            shares[name] = left[name] / tokens
            rest -= shares[name]
            del open_weights[name]
    total = math.fsum(shares.values())
    return {name: share / total for name, share in shares.items()} if total else shares


def tokens_drawn(plan: Plan, step: int, left: Mapping[str, float]) -> dict[str, float]:
    """How many tokens each source will give from `step` to the stage's end, when it may still give those in `left`.

    A last step that is not filled is padded, that before a change of the mixture too. Raises StoreError when more than
    that would be padding: of the sources that have a weight, none is left.
    """
    drawn = dict.fromkeys(left, 0.0)
    for begin, end in plan.legs(step):
        weights = plan.weights(begin)
        open_left = {name: left[name] - drawn[name] for name, weight in weights.items() if weight > 0}
        places = plan.places(begin)
        last = plan.rows_at(int(min(end, 2**62)) - 1) * plan.seq_len
        if sum(open_left.values()) + last <= places < math.inf:
            told = ", ".join(f"{name} {amount:,.0f}" for name, amount in open_left.items())
            raise StoreError(
                f"steps {begin + 1:,} to {end:,} of the stage take {places:,.0f} tokens, but their sources may give "
                f"only {sum(open_left.values()):,.0f} within their max_epochs: {told}. Make the stage shorter, raise "
                "max_epochs, or give other sources a weight."
            )
        if places < math.inf:
            for name, share in capped_shares(weights, open_left, places).items():
                drawn[name] += share * places
    return drawn


class Mixture:
    """Keeps every source's share of tokens within one row of its weight, at every moment.

    The rule is Tijdeman's for the chairman assignment problem (Discrete Mathematics 32, 1980): of the sources far
    enough behind their share, the one whose time runs out first. (The source furthest behind, the obvious rule,
    lets shares drift by more than one row when there are many.)
    """

    def __init__(self, weights: Sequence[float]):
        """A source of weight 0 is never chosen; at least one must have more."""
        total = sum(weights)
        self.shares = [weight / total for weight in weights]
        self._open = [i for i, share in enumerate(self.shares) if share > 0]

    def choose(self, drawn: Sequence[int], row: int) -> int:
        """The source of the next row of `row` tokens, when `drawn` tokens came from each so far."""
        if len(self._open) == 1:
            return self._open[0]
        slack = 1 / (2 * len(self._open) - 2)
        total = sum(drawn) + row
        # how many rows each source would be behind its share after this row
        behind = [(share * total - tokens) / row for share, tokens in zip(self.shares, drawn, strict=True)]
        ready = [i for i in self._open if behind[i] >= slack]
        if not ready:  # only when padding made rows shorter than planned
            return max(self._open, key=behind.__getitem__)
        return min(ready, key=lambda i: (1 - slack - behind[i]) / self.shares[i])
