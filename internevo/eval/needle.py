"""A needle in a haystack: can the model find one sentence again, at any place in a text of any length?

A sentence that gives a key a value is put into running text at some depth, and the text ends with the same sentence up
to the value. It is found when every token of the value is the model's likeliest one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from internevo.eval.scorer import Scorer
from internevo.files.errors import UserError
from internevo.tokens.store import TokenStore
from internevo.tokens.tokenizer import Tokenizer

NEEDLE = " The code of {key} is {value}."
KEYS = ("amber", "birch", "cobalt", "daisy", "ember", "falcon", "garnet", "harbor", "indigo", "jasper")
_WORDS = (
    "apple bridge candle desert engine flower guitar hammer island jacket "
    "kettle ladder mirror needle orange pencil quartz ribbon silver tunnel"
)
WORDS = tuple(_WORDS.split())


@dataclass(frozen=True)
class Cell:
    """All trials of one length and depth."""

    length: int  # tokens of the whole text, the question included
    depth: float  # where the needle stands: 0 at the beginning, 1 at the end
    found: float  # the share of trials in which every token of the value was the likeliest
    loss: float  # nats per token of the value


def needle_in_a_haystack(
    scorer: Scorer,
    tokenizer: Tokenizer,
    haystack: TokenStore,
    lengths: Sequence[int],
    depths: Sequence[float],
    trials: int = 5,
    *,
    sentence: str = NEEDLE,
    seed: int = 0,
    progress: Callable[[int], None] = lambda length: None,
) -> list[Cell]:
    """Every length with every depth. The haystack's documents are joined to texts as long as they must be.

    `sentence` is the needle: it has `{key}`, and after it `{value}`, four digits, or `{word}`. Raises UserError when
    it has not, or when a length leaves no room for needle and question.
    """
    templates = split_sentence(sentence)
    cells = []
    text = _Haystack(haystack, tokenizer)
    for length in lengths:
        progress(length)
        draw = random.Random(f"{seed}:{length}")
        rows, values = [], []
        for depth in depths:
            for _ in range(trials):
                row, count = text.row(length, depth, draw_facts(draw), templates, draw)
                rows.append(row)
                values.append(count)
        scored = scorer.score(rows)
        ends = [(one.correct[-n:].all(), one.losses[-n:].mean()) for one, n in zip(scored, values, strict=True)]
        for number, depth in enumerate(depths):
            mine = ends[number * trials : (number + 1) * trials]
            found, losses = zip(*mine, strict=True)
            cells.append(Cell(length, depth, float(np.mean(found)), float(np.mean(losses))))
    return cells


def split_sentence(sentence: str) -> tuple[str, str, str]:
    """The needle, the question and the answer as templates: the question is all before the value."""
    found = re.search(r" ?\{(value|word)\}", sentence)
    if found is None or "{key}" not in sentence[: found.start()]:
        raise UserError(f"a needle has {{key}}, and after it {{value}} or {{word}}; found {sentence!r}")
    return sentence, sentence[: found.start()], found[0]


def draw_facts(draw: random.Random) -> dict[str, str]:
    """A key with its value."""
    return {"key": draw.choice(KEYS), "value": str(draw.randrange(1000, 10000)), "word": draw.choice(WORDS)}


class _Haystack:
    """Running text of any length: documents one after the other, without what begins and ends them."""

    def __init__(self, store: TokenStore, tokenizer: Tokenizer):
        self.store, self.tokenizer, self.special = store, tokenizer, [tokenizer.bos_id, tokenizer.eos_id]

    def row(
        self, length: int, depth: float, said: dict[str, str], templates: Sequence[str], draw: random.Random
    ) -> tuple[np.ndarray, int]:
        """The ids of one trial, and how many of the last are the value's."""
        needle, question, answer = (self.tokenizer.encode(one.format(**said)) for one in templates)
        room = length - 1 - len(needle) - len(question) - len(answer)
        if room < 0:
            raise UserError(f"a text of {length} tokens has no room for a needle and its question")
        hay = self.take(room, draw)
        at = round(depth * room)
        ids = [self.tokenizer.bos_id, *hay[:at], *needle, *hay[at:], *question, *answer]
        return np.array(ids, np.int64), len(answer)

    def take(self, length: int, draw: random.Random) -> list[int]:
        """`length` tokens, from some document on."""
        taken: list[int] = []
        number = draw.randrange(len(self.store))
        empty = 0
        while len(taken) < length:
            tokens = self.store.ids(self.store.read(number))
            tokens = tokens[~np.isin(tokens, self.special)]
            empty = 0 if len(tokens) else empty + 1
            if empty > len(self.store):
                raise UserError("the haystack's documents hold no text")
            taken += tokens.tolist()
            number = (number + 1) % len(self.store)
        return taken[:length]
