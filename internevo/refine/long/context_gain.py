"""How much of a text its own earlier part explains.

For two segments S1 and S2 of a text, the gain is the mean over the tokens of S2 of

    log P(token | S1, S2 so far) - log P(token | S2 so far)

in nats, which is minus the difference of the logarithms of the two perplexities (InternLM2 report, arXiv 2403.17297,
section 3.1.3). In a text that holds together it is positive; when S2 comes from elsewhere it is near zero or below.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

CHARACTERS_PER_TOKEN = 8
"""So many characters are encoded for a token that is wanted: seldom too few, and never a whole book."""

_NEAR_LINE, _NEAR_SPACE = 256, 32  # characters
_SPACE = re.compile(r"\s")


class TextScorer(Protocol):
    """A language model."""

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text, int64 `[tokens]`, without those that begin or end a document."""

    def log_likelihoods(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float]:
        """Of each prefix and ids, mean log P(ids | prefix) in nats a token, from the beginning of a document.

        A prefix may be empty, ids not.
        """


@dataclass(frozen=True)
class Segments:
    """Where a text is cut. S1 are the tokens before a cut, S2 those after it and after the gap.

    Of `cuts` cuts, cut `i` is at character `length * (i + 1) / (cuts + 1)`: one is in the middle, two are at thirds. A
    cut, and the end of a gap, move on to the end of their line if it is near, else to the next white space.
    """

    context_tokens: int
    target_tokens: int
    gap_characters: int
    cuts: int

    def of(self, text: str, scorer: TextScorer) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """S1 and S2 at each cut, shorter where the text begins or ends; cuts without one of them are left out."""
        for number in range(self.cuts):
            cut = _border(text, len(text) * (number + 1) // (self.cuts + 1))
            begin = _border(text, cut + self.gap_characters)
            before = text[max(cut - CHARACTERS_PER_TOKEN * self.context_tokens, 0) : cut]
            after = text[begin : begin + CHARACTERS_PER_TOKEN * self.target_tokens]
            first = scorer.encode(before)[-self.context_tokens :]
            second = scorer.encode(after)[: self.target_tokens]
            if len(first) and len(second):
                yield first, second


def _border(text: str, at: int) -> int:
    """The next place from `at` on that tears no line apart, or at least no word; `at` where there is none near."""
    line_end = text.find("\n", at, at + _NEAR_LINE)
    if line_end >= 0:
        return line_end
    space = _SPACE.search(text, at, at + _NEAR_SPACE)
    return space.start() if space else at


def context_gains(texts: Sequence[str], segments: Segments, scorer: TextScorer) -> list[float | None]:
    """Each text's gain in nats a token, averaged over its cuts; None for a text that is too short to be cut."""
    cut = [list(segments.of(text, scorer)) for text in texts]
    pairs = [pair for one in cut for pair in one]
    alone = [(np.empty(0, np.int64), second) for _, second in pairs]
    scores = scorer.log_likelihoods([*pairs, *alone])
    gains = iter([given - without for given, without in zip(scores[: len(pairs)], scores[len(pairs) :], strict=True)])
    return [sum(next(gains) for _ in one) / len(one) if one else None for one in cut]
