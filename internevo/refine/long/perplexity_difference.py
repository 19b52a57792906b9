"""Drops long texts whose later parts do not follow from the earlier ones: concatenations and shuffles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Annotated

from internevo.config.bounds import Between, Count
from internevo.files.errors import UserError
from internevo.refine.long.context_gain import Segments, TextScorer, context_gains
from internevo.refine.scorers import named_object
from internevo.refine.shards import Document
from internevo.refine.step import JudgedOrFailed, NotJudged, Phase, Place, Step, judged_shard

NO_GAIN = "context does not help"
TOO_SHORT = "too short to cut"
_GROUP = 16  # documents that are scored together, to fill the model's rows


@dataclass
class PerplexityDifference(Step):
    """Compares how likely a model finds a part of a text with the text before it and without. Every document gets the
    difference as `context_gain` in its metadata, in nats a token; a text that holds together has a high one."""

    model: str = ""
    """A run, an import or a Hugging Face folder, with its tokenizer."""
    min_gain: Annotated[float, Between(-(10**6), 10**6)] = 0.0
    """Texts with a lower gain are dropped. Unrelated context helps one model a little and misleads another, so the
    right limit depends on the model: set it from the gains of texts that you know."""
    context_tokens: Annotated[int, Between(1, 2**30)] = 1024
    """Tokens of S1, right before a cut."""
    target_tokens: Annotated[int, Between(1, 2**30)] = 512
    """Tokens of S2, after the cut."""
    gap_characters: Count = 0
    """Characters between S1 and S2 that the model does not see, so that a sentence that continues across the cut does
    not pass for coherence."""
    cuts: Annotated[int, Between(1, 10**6)] = 3
    """Places in a text where it is cut: 1 is the middle, 3 the quarters. The gain is the mean over them."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    scorer: str = "internevo.eval.text_scorer:TextScorer"
    """`module:attribute`: what makes the scorer, from `model`, the tokens of the longest sequence, and `device`. It
    should report errors at once and load weights when they are needed. `internevo/refine/long/context_gain.py` has its
    interface."""

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("perplexity_difference.model: it must be set to a run, an import or a Hugging Face folder")

    def files(self) -> list[Path]:
        """The model's weights, or its folder when that is missing. Exports inside a run's folder are left out."""
        folder = Path(self.model)
        stored = sorted([*folder.glob("checkpoints/**/*.distcp"), *folder.glob("*.safetensors")])
        return stored if folder.exists() else [folder]

    def phases(self, place: Place) -> list[Phase]:
        """Raises UserError when there is no model, or it does not fit the segments."""
        self.make_scorer()
        return [place.sifting("score", partial(judged_shard, self._verdicts, place))]

    def _verdicts(self, documents: Iterator[Document]) -> JudgedOrFailed:
        return self.judged(documents, self.make_scorer())

    def make_scorer(self) -> TextScorer:
        """The model; one in a process. Raises UserError when there is none."""
        # one token more for what begins a document
        return _scorer(self.scorer, self.model, self.context_tokens + self.target_tokens + 1, self.device)

    def judged(self, documents: Iterator[Document], scorer: TextScorer) -> JudgedOrFailed:
        """Each document with its gain, and why it is dropped."""
        segments = Segments(self.context_tokens, self.target_tokens, self.gap_characters, self.cuts)
        while group := list(islice(documents, _GROUP)):
            gains = context_gains([document.text for document in group], segments, scorer)
            for document, gain in zip(group, gains, strict=True):
                if gain is None:
                    yield document, TOO_SHORT
                elif not math.isfinite(gain):
                    yield document, NotJudged(f"the gain is {gain}")
                else:
                    document.metadata["context_gain"] = round(gain, 5)
                    yield document, None if gain >= self.min_gain else NO_GAIN


@lru_cache(maxsize=1)
def _scorer(name: str, model: str, max_tokens: int, device: str) -> TextScorer:
    return named_object(name, "perplexity_difference.scorer")(model, max_tokens, device)
