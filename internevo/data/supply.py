"""Whether the sources of a stage can give what it takes, of each within its `max_epochs`."""

from __future__ import annotations

import math
from collections.abc import Mapping

from internevo.data.plan import Plan
from internevo.data.shares import capped_shares
from internevo.tokens.megatron import StoreError


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
