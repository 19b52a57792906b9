"""Statistics of long texts: figures counted by hand, and text told from what is none, in English and Chinese."""

from __future__ import annotations

import random
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internevo.files.errors import UserError
from internevo.refine.long.features import features
from internevo.refine.long.long_statistics import DomainLimits, Limits, LongStatistics
from internevo.refine.long.words import WORDS
from internevo.refine.shards import Document
from internevo.refine.step import NotJudged
from tests.refine.long.texts import chinese, chinese_junk, english, english_junk


def test_english_by_hand() -> None:
    text = "However, it's late and dark; even though we'd go. Would 3 do?\n\nThe end"
    found = features(text, WORDS["en"])
    # However it's late and dark even though we'd go Would do The end
    units, shown, signs = 13, len("".join(text.split())), len(",';'.?")
    assert found.connectives == pytest.approx(2 / units * 1000), "However, even though"
    assert found.conjunctions == pytest.approx(2 / units * 1000), "and, though"
    assert found.function_words == pytest.approx(5 / units * 1000), "it we would do the"
    assert found.punctuation == pytest.approx(signs / shown)
    assert found.digits == pytest.approx(1 / shown)
    assert found.paragraph == pytest.approx(units / 2)
    assert found.sentence == pytest.approx(units / 3)
    assert found.unique == 1


def test_chinese_by_hand() -> None:
    text = "因为下雨，所以我不去。\n他说：「但是今天是12号」！\n"
    found = features(text, WORDS["zh"])
    units, shown = 17, len(text) - 2
    assert found.connectives == pytest.approx(3 / units * 1000), "因为 所以 但是"
    assert found.punctuation == pytest.approx(6 / shown)
    assert found.digits == pytest.approx(2 / shown)
    assert found.paragraph == pytest.approx(units / 2), "lines, where no blank one divides"
    assert found.sentence == pytest.approx(units / 2)
    assert found.unique == pytest.approx(len(set("因为下雨所以我不去他说但是今天是号")) / units)


@given(st.lists(st.integers(0, 60), max_size=3500))
def test_unique_words_are_those_of_whole_stretches(drawn: list[int]) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [letters[n % 26] * (1 + n // 26) for n in drawn]
    found = features(" ".join(words), WORDS["en"]).unique
    whole = [words[at : at + 1000] for at in range(0, len(words), 1000) if at == 0 or at + 1000 <= len(words)]
    assert found == (pytest.approx(sum(len(set(one)) / len(one) for one in whole) / len(whole)) if words else 0)


@given(st.text(), st.sampled_from(["en", "zh"]))
def test_any_text_has_figures(text: str, language: str) -> None:
    for name, value in asdict(features(text, WORDS[language])).items():
        assert value >= 0
        assert value <= 1 or name not in ("punctuation", "digits", "unique")


@pytest.mark.parametrize("seed", range(3))
def test_texts_are_kept_and_what_is_none_is_dropped(seed: int) -> None:
    step, chance = LongStatistics(), random.Random(seed)
    for language, text, junk in (
        ("en", english(chance), english_junk(chance)),
        ("zh", chinese(chance), chinese_junk(chance)),
        ("zh-Hant", chinese(chance), {}),
    ):
        document = Document(text, "text", {"language": language})
        assert step.judge(document) is None, document.metadata["statistics"]
        for name, bad in junk.items():
            assert step.judge(Document(bad, name, {"language": language})) is not None, name


def test_a_text_without_its_connectives_is_dropped_for_that() -> None:
    """What the report saw its filter do."""
    for language, text in (("en", english(random.Random(0))), ("zh", chinese(random.Random(0)))):
        bare = WORDS[language].connectives.sub("", text.lower())
        assert LongStatistics().judge(Document(bare, "id", {"language": language})) == "low connectives"


def test_limits_of_a_domain_win() -> None:
    table = english_junk(random.Random(0))["table"]
    least = {name: 0.0 for name in asdict(Limits()) if name.startswith("min_")}
    step = LongStatistics(
        domains={"tables": DomainLimits(en=Limits(**least, max_digits=1.0))}, en=Limits(max_digits=0.01), domain="kind"
    )
    assert step.judge(Document(table, "id", {"language": "en", "kind": "tables"})) is None
    assert step.judge(Document(table, "id", {"language": "en", "kind": "other"})) is not None
    assert step.limits("en", "tables").max_unique == LongStatistics().en.max_unique, "what a domain does not set"
    assert step.limits("en", "other").max_digits == 0.01
    assert step.limits("zh", "tables") == LongStatistics().zh


def test_other_languages_go_through_and_unknown_ones_do_not() -> None:
    document = Document("1 2 3", "id", {"language": "de"})
    assert LongStatistics().judge(document) is None
    assert "statistics" not in document.metadata
    with pytest.raises(NotJudged, match="no 'language' is in its metadata"):
        LongStatistics().judge(Document("text", "id"))


def test_impossible_limits() -> None:
    with pytest.raises(UserError, match=r"domains\.law\.zh: min_unique"):
        LongStatistics(domains={"law": DomainLimits(zh=Limits(min_unique=0.9))})
