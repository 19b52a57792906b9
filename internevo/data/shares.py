"""What share of a stage's tokens each source gives, when some may be read only so often."""

from __future__ import annotations

import math
from collections.abc import Mapping


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
