"""Heuristics that detect long texts without prose (lists, tables, logs, keywords) by what holds a text together.

The InternLM2 report (arXiv 2403.17297, section 3.1.3) filters long data by lexical and linguistic features, with
thresholds for each language and domain. Limits here are wide: what they drop is not worth rows of 32,768 tokens.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated

from internevo.config.bounds import Between
from internevo.files.errors import UserError
from internevo.refine.long.features import Features, features
from internevo.refine.long.words import WORDS
from internevo.refine.shards import Document
from internevo.refine.step import NotJudged, Sift


@dataclass
class Limits:
    """What a text must be like. A limit that is absent is the language's own, and in a language's own no limit.

    Units are words, or Chinese characters.
    """

    min_connectives: Annotated[float | None, Between(0, 10**12)] = None
    """Connectives (`however`, `because`; 因此, 虽然) for 1,000 units, at least."""
    min_conjunctions: Annotated[float | None, Between(0, 10**12)] = None
    """Conjunctions (`and`, `that`, `when`; 和, 而) for 1,000 units, at least."""
    min_function_words: Annotated[float | None, Between(0, 10**12)] = None
    """Function words (`the`, `of`, `is`; 的, 了) for 1,000 units, at least."""
    min_punctuation: Annotated[float | None, Between(0, 1)] = None
    """Share of punctuation in the characters that are not white space, at least."""
    max_punctuation: Annotated[float | None, Between(0, 1)] = None
    """The same, at most."""
    max_digits: Annotated[float | None, Between(0, 1)] = None
    """Share of digits in the characters that are not white space, at most."""
    min_paragraph: Annotated[float | None, Between(0, 10**12)] = None
    """Units of a paragraph on average, at least. Blank lines divide paragraphs; in a text without any, lines do."""
    max_paragraph: Annotated[float | None, Between(0, 10**12)] = None
    """The same, at most."""
    min_sentence: Annotated[float | None, Between(0, 10**12)] = None
    """Units of a sentence on average, at least."""
    max_sentence: Annotated[float | None, Between(0, 10**12)] = None
    """The same, at most."""
    min_unique: Annotated[float | None, Between(0, 1)] = None
    """Share of different units in stretches of 1,000, on average, at least."""
    max_unique: Annotated[float | None, Between(0, 1)] = None
    """The same, at most."""

    def broken(self, found: Features) -> str | None:
        """The first limit that is broken, as `low connectives` or `high digits`."""
        for key, limit in asdict(self).items():
            kind, feature = key.split("_", 1)
            value = getattr(found, feature)
            if limit is not None and (value < limit if kind == "min" else value > limit):
                return f"{'low' if kind == 'min' else 'high'} {feature.replace('_', ' ')}"
        return None

    def over(self, base: Limits) -> Limits:
        """These limits, and those of `base` where there is none."""
        own = {key: limit for key, limit in asdict(self).items() if limit is not None}
        return Limits(**{**asdict(base), **own})


@dataclass
class DomainLimits:
    """Limits of one domain."""

    en: Limits = field(default_factory=Limits)
    """For English."""
    zh: Limits = field(default_factory=Limits)
    """For Chinese."""


_LIMITS = {  # English, Chinese
    "min_connectives": (4.0, 1.2),
    "min_conjunctions": (25.0, 15.0),
    "min_function_words": (200.0, 90.0),
    "min_punctuation": (0.01, 0.03),
    "max_punctuation": (0.2, 0.25),
    "max_digits": (0.15, 0.15),
    "min_paragraph": (5.0, 8.0),
    "min_sentence": (4.0, 6.0),
    "max_sentence": (100.0, 150.0),
    "min_unique": (0.15, 0.12),
    "max_unique": (0.75, 0.7),
}


def _limits(column: int) -> Limits:
    return Limits(**{key: limits[column] for key, limits in _LIMITS.items()})


_english, _chinese = partial(_limits, 0), partial(_limits, 1)


@dataclass
class LongStatistics(Sift):
    """Drops texts whose figures are beyond a limit. Every document gets its figures as `statistics` in its metadata,
    so that limits can be set from what was kept and dropped. Documents in other languages than English and Chinese go
    through untouched."""

    en: Limits = field(default_factory=_english)
    """Limits for English. Setting one leaves the others as they are."""
    zh: Limits = field(default_factory=_chinese)
    """Limits for Chinese."""
    domains: dict[str, DomainLimits] = field(default_factory=dict)
    """Limits of domains, which win over those of the language."""
    domain: str = "domain"
    """The key of a document's metadata that has its domain."""
    language: str = "language"
    """The key of a document's metadata that has its language; `zh-Hant` counts as `zh`."""

    def __post_init__(self) -> None:
        self.en, self.zh = self.en.over(_english()), self.zh.over(_chinese())
        for domain in (None, *self.domains):
            for language in WORDS:
                _check(language if domain is None else f"domains.{domain}.{language}", self.limits(language, domain))

    def judge(self, document: Document) -> str | None:
        """Raises NotJudged for a document whose language is not known."""
        language = document.metadata.get(self.language)
        if not isinstance(language, str):
            raise NotJudged(
                f"no {self.language!r} is in its metadata. The step `language` finds it; `long_statistics.language` "
                "says under which key it is."
            )
        language = language.partition("-")[0]
        if language not in WORDS:
            return None
        found = features(document.text, WORDS[language])
        document.metadata["statistics"] = {name: round(value, 4) for name, value in asdict(found).items()}
        return self.limits(language, document.metadata.get(self.domain)).broken(found)

    def limits(self, language: str, domain: object) -> Limits:
        """Those of a language in a domain."""
        base: Limits = getattr(self, language)
        own = self.domains.get(domain) if isinstance(domain, str) else None
        return base if own is None else getattr(own, language).over(base)


def _check(place: str, limits: Limits) -> None:
    for name in ("punctuation", "paragraph", "sentence", "unique"):
        least, most = getattr(limits, f"min_{name}"), getattr(limits, f"max_{name}")
        if least is not None and most is not None and least > most:
            raise UserError(f"long_statistics.{place}: min_{name} is {least}, above max_{name}, {most}")
