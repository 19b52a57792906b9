"""Pages of blocked domains, texts with many blocked words, and what a classifier takes for unsafe."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from internevo.config.bounds import Between
from internevo.files.errors import UserError
from internevo.refine.scorers import check_scorer, scorer, scorer_files
from internevo.refine.shards import Document
from internevo.refine.step import Sift
from internevo.refine.wordlists import domains, words

BLOCKED = "blocked domain"
WORDS = "blocked words"
UNSAFE = "classified unsafe"


@dataclass
class Safety(Sift):
    """Drop what no model should learn from."""

    domains: list[str] = field(default_factory=list)
    """Files of domains, one a line; a domain stands for all below it. `#` begins a remark."""
    words: list[str] = field(default_factory=list)
    """Files of words and phrases, one a line, in any language. Where a script has spaces, only whole words count;
    in Chinese and the like, and where an entry mixes them (`K粉`), the characters wherever they stand."""
    min_words: Annotated[int, Between(1, 10**12)] = 3
    """A document is dropped when it has at least this many of the words, with at least the density `min_density`."""
    min_density: Annotated[float, Between(0, 1000)] = 5.0
    """How many of the words stand in a thousand words, or Chinese characters. A count alone is often mistaken."""
    classifier: str | None = None
    """What scores a text, 1 for unsafe and 0 for safe: a file of `internevo data classifier train`, or
    `module:attribute`, a function of a text."""
    max_score: Annotated[float, Between(-(10**6), 10**6)] = 0.5
    """Above it a document is dropped. The score is kept as `safety` in its metadata."""

    def __post_init__(self) -> None:
        if not (self.domains or self.words or self.classifier):
            raise UserError("safety: name files of domains or of words, or a classifier; there is nothing to judge by")
        check_scorer("safety.classifier", self.classifier)

    def files(self) -> list[Path]:
        return [*map(Path, self.domains), *map(Path, self.words), *scorer_files(self.classifier)]

    def prepare(self) -> None:
        self._domains = domains(tuple(map(Path, self.domains)))
        self._words = words(tuple(map(Path, self.words)))
        self._score = scorer(self.classifier) if self.classifier else None

    def judge(self, document: Document) -> str | None:
        url = document.metadata.get("url")
        if isinstance(url, str) and (domain := self._domains.of(url)):
            document.metadata["blocked_domain"] = domain
            return BLOCKED
        if self._words:
            found, of = self._words.find(document.text)
            if found >= self.min_words and found >= self.min_density * of / 1000:
                document.metadata["blocked_words"] = found
                return WORDS
        if self._score is not None:
            score = document.metadata["safety"] = self._score(document.text)
            if score > self.max_score:
                return UNSAFE
        return None
