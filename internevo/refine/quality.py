"""How good a text is, by a classifier: the one that ships (`classifier.py`), or any function."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from internevo.config.bounds import Between
from internevo.files.errors import UserError
from internevo.refine.scorers import check_scorer, scorer, scorer_files
from internevo.refine.shards import Document
from internevo.refine.step import Sift


@dataclass
class Quality(Sift):
    """Drop what a classifier scores too low, or too high. A chain may have several of these, such as one for fluency
    and one for advertising, each with a name."""

    classifier: str = ""
    """What scores a text: a file of `internevo data classifier train`, or `module:attribute`, a function of a text."""
    name: str = "quality"
    """The key of the document's metadata that keeps its score; the reason begins with it."""
    min_score: Annotated[float | None, Between(-(10**6), 10**6)] = 0.5
    """Below it a document is dropped; `null` drops none."""
    max_score: Annotated[float | None, Between(-(10**6), 10**6)] = None
    """Above it a document is dropped."""
    languages: list[str] = field(default_factory=list)
    """Only documents in these languages are scored; others are kept. Empty: all are scored."""

    def __post_init__(self) -> None:
        if not self.classifier:
            raise UserError("quality.classifier: missing; train one with `internevo data classifier train`")
        check_scorer("quality.classifier", self.classifier)

    def files(self) -> list[Path]:
        return scorer_files(self.classifier)

    def prepare(self) -> None:
        self._score = scorer(self.classifier)

    def judge(self, document: Document) -> str | None:
        language = str(document.metadata.get("language") or "")
        if self.languages and language not in self.languages and language.partition("-")[0] not in self.languages:
            return None
        score = document.metadata[self.name] = self._score(document.text)
        if self.min_score is not None and score < self.min_score:
            return f"{self.name} too low"
        return f"{self.name} too high" if self.max_score is not None and score > self.max_score else None
