"""Code in three classes: worth reading again, worth reading, and not.

Rules find broken code and data in its shape. Of the rest, the user's own classifier and the share of comments decide.
The InternLM2 report (arXiv 2403.17297, section 3.1.2) trains on high quality more than once, and leaves the low out.
"""

from __future__ import annotations

import ast
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from internevo.config.bounds import Between, Count, Share
from internevo.files.errors import UserError
from internevo.refine.code.languages import Language, comment_share, noted_language
from internevo.refine.scorers import check_scorer, scorer, scorer_files
from internevo.refine.shards import Document
from internevo.refine.step import NotJudged, Sift

HIGH, MODERATE, LOW = "high", "moderate", "low"
CLASSES = (HIGH, MODERATE, LOW)


@dataclass
class CodeQuality(Sift):
    """Notes each document's class as `quality` in its metadata. Low is what breaks a rule or scores too low; high is
    code with comments, and with a high score where there is a classifier; all else is moderate."""

    classifier: str | None = None
    """`module:attribute`, a function that gives a text a score from 0 to 1, or a file of `internevo data classifier
    train`. The score is noted as `quality_score`. Rules alone when absent."""
    low: Share = 0.3
    """Scores below it make the class low."""
    high: Share = 0.7
    """Scores from here on may make it high."""
    high_comments: Annotated[list[float], Between(0, 1)] = field(default_factory=lambda: [0.05, 0.6])
    """Share of lines that are comments, least and most, in code of the class high."""
    max_mean_line: Annotated[float, Between(0, 10**12)] = 100.0
    """Longer lines than this on average are low. Prose is left alone: there a line may be a paragraph."""
    min_alphanumeric: Share = 0.25
    """Share of letters and digits among all characters: less is low."""
    max_digits: Share = 0.3
    """Share of digits among characters that are not white space: more, in a programming language, is low."""
    max_repeated: Share = 0.7
    """Share of lines of ten characters or more that stood in the file before: more is low."""
    min_characters: Count = 32
    """Less is low."""
    syntax: bool = True
    """Whether Python that this Python cannot parse is low. That includes Python 2."""
    drop: list[str] = field(default_factory=lambda: [LOW])
    """Classes that are dropped at once; the step `sample` gives the others their weights."""

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise UserError(f"code_quality.low: expected low <= high, found {self.low} and {self.high}")
        if len(self.high_comments) != 2 or self.high_comments[0] > self.high_comments[1]:
            raise UserError(f"code_quality.high_comments: expected two shares in order, found {self.high_comments}")
        for name in self.drop:
            if name not in CLASSES:
                raise UserError(f"code_quality.drop: expected {', '.join(CLASSES)}, found {name!r}")
        check_scorer("code_quality.classifier", self.classifier)

    def files(self) -> list[Path]:
        return scorer_files(self.classifier)

    def judge(self, document: Document) -> str | None:
        """Raises NotJudged when the classifier's score is not between 0 and 1."""
        quality, why = self._class_of(document)
        document.metadata["quality"] = quality
        if why:
            document.metadata["quality_why"] = why
        if quality not in self.drop:
            return None
        return f"{quality}: {why}" if why else quality

    def _class_of(self, document: Document) -> tuple[str, str | None]:
        language = noted_language(document.metadata)
        if why := self.broken(document.text, language):
            return LOW, why
        score = self._score(document)
        if score is not None and score < self.low:
            return LOW, "score"
        if not language.code or (score is not None and score < self.high):
            return MODERATE, None
        least, most = self.high_comments
        return (HIGH if least <= comment_share(document.text, language) <= most else MODERATE), None

    def broken(self, text: str, language: Language) -> str | None:
        """The first rule that a text breaks."""
        shown = sum(map(len, text.split()))
        if shown < self.min_characters:
            return "short"
        lines = text.splitlines()
        if not language.prose and len(text) / len(lines) > self.max_mean_line:
            return "long lines"
        if sum(map(str.isalnum, text)) < self.min_alphanumeric * len(text):
            return "few letters"
        if language.code and sum(map(str.isdigit, text)) > self.max_digits * shown:
            return "many digits"
        long = [line for line in map(str.strip, lines) if len(line) >= 10]
        if len(long) - len(set(long)) > self.max_repeated * len(long):
            return "repeated lines"
        if self.syntax and language.name == "python" and not _parses(text):
            return "syntax"
        return None

    def _score(self, document: Document) -> float | None:
        if not self.classifier:
            return None
        score = scorer(self.classifier)(document.text)
        if not 0 <= score <= 1:
            raise NotJudged(f"{self.classifier} gave the score {score!r}; expected 0 to 1")
        document.metadata["quality_score"] = score
        return score


def _parses(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old escapes in strings
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two for code nested too deep
            return False
    return True
