"""A stored model as the refinery needs it: text to tokens, and how likely tokens are after others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from internevo.eval.scorer import Scorer
from internevo.files.errors import UserError
from internevo.parallel.world import World
from internevo.train.build import choose_device
from internevo.train.stored_model import open_model


class TextScorer:
    """The model of a run, an import or a Hugging Face folder, on one device; its weights are loaded when first needed.

    `max_tokens` is the longest sequence that will come, the token that begins a document included. Raises UserError
    when there is no model, or none with a tokenizer, or rows of so many tokens are longer than it was trained on.
    """

    def __init__(self, model: str, max_tokens: int, device: str = "auto"):
        stored = open_model(Path(model))
        if max_tokens > stored.seq_len:
            raise UserError(
                f"{stored.name} was trained on rows of {stored.seq_len:,} tokens; {max_tokens:,} are too many."
            )
        self._tokenizer = stored.needs_tokenizer()
        self._stored, self._max_tokens, self._device = stored, max_tokens, choose_device(device)

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self._stored, World.alone(self._device), self._max_tokens)

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text, int64 `[tokens]`, without BOS and EOS."""
        return np.array(self._tokenizer.encode(text), np.int64)

    def log_likelihoods(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float]:
        """Of each prefix and ids, mean log P(ids | BOS, prefix) of a token, in nats."""
        begin = np.array([self._tokenizer.bos_id], np.int64)
        scored = self._scorer.score([np.concatenate([begin, prefix, ids]) for prefix, ids in pairs])
        means = [one.losses[-len(ids) :].mean(dtype=np.float64) for one, (_, ids) in zip(scored, pairs, strict=True)]
        return [-float(mean) for mean in means]
