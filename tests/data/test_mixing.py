"""Shares of sources: exact within one row, at every moment."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.data.mixing import Mixture


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=12), st.integers(1, 400))
def test_shares_stay_within_one_row(weights: list[float], rows: int) -> None:
    mixture, drawn = Mixture(weights), [0] * len(weights)
    for number in range(1, rows + 1):
        drawn[mixture.choose(drawn, 64)] += 64
        for tokens, weight in zip(drawn, weights, strict=True):
            assert abs(tokens - number * 64 * weight / sum(weights)) <= 64 * (1 + 1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.05, 1), min_size=2, max_size=5), st.data())
def test_padding_is_made_up_for(weights: list[float], data: st.DataObject) -> None:
    """Rows of one source hold less than they could; its share is counted in real tokens all the same."""
    mixture, drawn = Mixture(weights), [0] * len(weights)
    short = data.draw(st.integers(40, 64))
    for _ in range(400):
        chosen = mixture.choose(drawn, 64)
        drawn[chosen] += short if chosen == 0 else 64
    for tokens, weight in zip(drawn, weights, strict=True):
        assert abs(tokens - sum(drawn) * weight / sum(weights)) <= 2 * 64


def test_the_order_is_even() -> None:
    mixture, drawn, order = Mixture([3, 1]), [0, 0], ""
    for _ in range(8):
        chosen = mixture.choose(drawn, 1)
        drawn[chosen] += 1
        order += "ab"[chosen]
    assert drawn == [6, 2]
    assert "aaaa" not in order
    assert "bb" not in order
