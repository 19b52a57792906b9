"""Which source gives the next row."""

from __future__ import annotations

from collections.abc import Sequence


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
