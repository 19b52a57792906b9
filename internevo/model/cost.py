"""What a part of the model costs: each part says it beside its code, and sums of them answer for the whole."""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Cost:
    """Of one part, or of several together.

    A worked example: a feed-forward of width 4 on a model of width 2 has three matrices of 8 numbers, so 24 parameters
    and 24 multiplications a token. Without recomputation it keeps four rows of 4 numbers for each token: what `gate`
    and `up` gave, the activation of the one, and their product. Selective recomputation keeps what products gave: two
    rows of 4, and the 2 numbers of `down`.
    """

    parameters: int = 0
    products: int = 0
    """Multiplications and additions, a pair as one, of its matrix products for a token."""
    pairs: int = 0
    """The same of attention, for a query and a key that meet."""
    kept: int = 0
    """Numbers that it keeps for the backward pass, for a token, without recomputation ..."""
    kept_selective: int = 0
    """... and with the selective one."""
    kept_fp32: int = 0
    """Numbers that it keeps in fp32 under either, whatever it computes in."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def times(self, count: int) -> Cost:
        """Of `count` such parts."""
        return Cost(*(count * one for one in astuple(self)))
