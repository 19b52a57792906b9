"""Which language a document is in, by Compact Language Detector 2, which the InternLM2 chain uses too."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from internevo.config.bounds import Share
from internevo.files.errors import UserError
from internevo.refine.shards import Document
from internevo.refine.step import Sift

UNSURE = "language unsure"

# what the detector takes for invalid: controls, surrogates, and code points that are no characters
_NO_CHARACTERS = "".join(chr(plane * 0x10000 + last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
_REFUSED = re.compile(f"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{_NO_CHARACTERS}]")


@dataclass
class Language(Sift):
    """Keep documents of some languages, and note each one's as `language` and `language_share` in its metadata."""

    keep: list[str] = field(default_factory=lambda: ["en", "zh"])
    """ISO 639-1 codes; `zh` is both scripts, `zh-Hant` the traditional one alone."""
    at_least: Share = 0.6
    """The share of the text that must be in that one language."""

    def __post_init__(self) -> None:
        if not self.keep:
            raise UserError("language.keep: no language is named")
        try:
            from pycld2 import LANGUAGES
        except ImportError:
            raise UserError("language: it needs pycld2: pip install 'internevo[refine]'") from None
        known = {code for _, code in LANGUAGES if code != "un"}
        for code in self.keep:
            if code not in known:
                raise UserError(f"language.keep: {code!r} is not known; expected ISO 639-1 codes such as en, zh, de")

    def judge(self, document: Document) -> str | None:
        code, share = detect(document.text)
        document.metadata.update(language=code, language_share=share)
        if code == "un" or share < self.at_least:
            return UNSURE
        return None if code in self.keep or code.partition("-")[0] in self.keep else f"language {code}"


def detect(text: str) -> tuple[str, float]:
    """The language that most of the text is in, and its share of the text; `un` where the detector does not know."""
    import pycld2

    try:
        sure, _, found = pycld2.detect(text, isPlainText=True)
    except pycld2.error:
        try:
            sure, _, found = pycld2.detect(_REFUSED.sub(" ", text), isPlainText=True)
        except pycld2.error:
            return "un", 0.0
    _, code, percent, _ = found[0]
    return (code, percent / 100) if sure else ("un", 0.0)
