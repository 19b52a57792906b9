"""Languages, told apart in whole and mixed text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internevo.files.errors import UserError
from internevo.refine.language import UNSURE, Language, detect
from internevo.refine.shards import Document
from tests.refine.corpus import CHINESE, GERMAN, docstrings

TRADITIONAL = "清晨的河邊總是很安靜。老人們沿著石板路慢慢地走，一邊活動手腳，一邊談論昨天的天氣和菜市場的價錢。"


def verdict(step: Language, text: str) -> str | None:
    return step.judge(Document(text, "x"))


def test_english_and_chinese_are_kept_and_german_is_not() -> None:
    step = Language()
    assert [verdict(step, text) for text in (*docstrings(50), *CHINESE, TRADITIONAL)] == [None] * 55
    assert verdict(step, GERMAN) == "language de"
    assert verdict(step, "1 2 3 4 - - 55 + +") == UNSURE
    assert verdict(step, "") == UNSURE


def test_scripts_of_chinese() -> None:
    assert verdict(Language(keep=["zh-Hant"]), TRADITIONAL) is None
    assert verdict(Language(keep=["zh-Hant"]), CHINESE[0]) == "language zh"


def test_a_mixture_is_none_of_its_languages() -> None:
    mixed = Document(GERMAN + "\n" + docstrings(1)[0][: len(GERMAN)], "x")
    assert Language(at_least=0.8).judge(mixed) == UNSURE
    assert 0.3 < mixed.metadata["language_share"] < 0.8
    assert Language(keep=["en", "de"], at_least=0.3).judge(mixed) is None


def test_what_is_found_is_kept_in_the_metadata() -> None:
    document = Document(GERMAN, "x", {"url": "http://x"})
    Language(keep=["de"]).judge(document)
    assert document.metadata["language"] == "de"
    assert document.metadata["language_share"] > 0.9
    assert document.metadata["url"] == "http://x"


@given(st.lists(st.characters(), min_size=1, max_size=20))
def test_no_character_stops_it(odd: list[str]) -> None:
    """Its detector refuses controls and what is no character."""
    words = docstrings(1)[0].split()
    text = " ".join(words[:40]) + "".join(odd) + " ".join(words[40:])
    assert detect(text)[0] == "en"
    detect("".join(odd))


def test_values_that_make_no_sense() -> None:
    with pytest.raises(UserError, match=r"language\.keep: 'english' is not known"):
        Language(keep=["english"])
    with pytest.raises(UserError, match=r"language\.keep: no language is named"):
        Language(keep=[])
