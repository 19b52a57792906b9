"""Real prose is kept, and planted junk dropped for the reason that it is junk."""

from __future__ import annotations

import ast
import inspect
import json
import random
import sysconfig
from pathlib import Path
from textwrap import fill

import pytest

from internevo.refine import rules
from internevo.refine.rules import ENGLISH_STOP_WORDS, Rules, Thresholds, chinese
from internevo.refine.shards import Document
from tests.refine.corpus import CHINESE, GERMAN, docstrings

PROSE = " ".join(docstrings(3)[2].split())
CODE = (Path(sysconfig.get_path("stdlib")) / "json" / "scanner.py").read_text()


def words(count: int) -> list[str]:
    """Many different words of real text, in no order."""
    known = sorted({word for text in docstrings(100) for word in text.split() if word.isalpha()})
    return random.Random(count).sample(known, count)


def verdict(text: str, language: str | None = None, **limits: object) -> str | None:
    metadata = {"language": language} if language else {}
    thresholds = {"en": Thresholds(**limits), "zh": chinese()} if limits else {}  # type: ignore[arg-type]
    return Rules(**thresholds).judge(Document(text, "x", metadata))


def test_real_prose_is_kept() -> None:
    kept = [verdict(text, "en") is None for text in docstrings()]
    # the others are short references that say the same of each argument
    assert sum(kept) >= 0.92 * len(kept), [verdict(text) for text in docstrings() if verdict(text)]
    assert [verdict(text, "zh") for text in CHINESE] == [None] * len(CHINESE)
    assert [verdict(text) for text in CHINESE] == [None] * len(CHINESE)  # told by its characters
    assert verdict(GERMAN, "de") is None  # English stop words are not asked of German


ENGLISH_JUNK = {
    "empty": " \n ",
    "too few words": "Click here to read more.",
    "words too short": ". ".join("a b c d e f g h I j k" for _ in range(20)),
    "words too long": ", ".join("aa" + word * 4 for word in words(150) if len(word) > 3),
    "endless word": " ".join(docstrings(8)[2:]) + " " + "QWxhZGRpbjpvcGVuIHNlc2FtZQ" * 40 + ".",
    "abnormal characters": GERMAN.encode().decode("cp1252", errors="replace"),
    "placeholder text": PROSE + " Lorem ipsum dolor sit amet.",
    "curly braces": " ".join(json.dumps({word: {"value": word}}) for word in words(90)),
    "hashes": ". ".join(f"#{word} the" for word in words(100)),
    "ellipses": " ".join(f"the {word}... and {word[::-1]} of it..." for word in words(40)),
    "separators": "\n".join(f"{word} | the {word} ----- to ===== of |" for word in words(60)),
    "too few letters": "\n".join(f"{n}.{n}, {n * 7} 12:30 1,900 the price" for n in range(100, 160)),
    "too little punctuation": " ".join(words(300)),
    "too much punctuation": " ".join(f"({word}), [\"{word}\"]; '{word}'!?!" for word in words(80)),
    "one sign again and again": "! ".join(words(120)) + "!",
    "line breaks": "\n\n\n".join(f"{word} and {word[::-1]}." for word in words(100)),
    "bullet lines": "\n".join(f"- the {word} of the {word[::-1]} that we have." for word in words(60)),
    "ellipsis lines": "\n".join(f"To read of {word} and the {word[::-1]} of it, click here …" for word in words(12)),
    "short lines": "\n".join(f"Buy the {word}, now!" for word in words(60)),
    "lines that do not end": "\n".join(f"Here is the latest about {word}, and pictures of it" for word in words(30)),
    "repeated lines": "\n".join(
        [PROSE[:200], *["Call now, to have the best of all the offers there are."] * 7, PROSE[:220]]
    ),
    "repeated paragraphs": "\n\nRead more.\n\n".join(fill(text, 70) for text in docstrings(12)[2:]),
    "one n-gram again and again": " ".join(f"best cheap watches, {word} and {word[::-1]}," for word in words(50)) + ".",
    "repeated n-grams": " ".join(
        [f"{PROSE[:160]} {word}." for word in words(4)] + [f"The {word} of {word[::-1]}." for word in words(60)]
    ),
    "too few stop words": ". ".join(
        f"{word} {word[::-1]}" for word in words(200) if word.lower() not in ENGLISH_STOP_WORDS
    )
    + ".",
}


@pytest.mark.parametrize("reason", ENGLISH_JUNK)
def test_english_junk(reason: str) -> None:
    assert verdict(ENGLISH_JUNK[reason], "en") == reason


UNMARKED = ["".join(one for one in text if one not in "，。：；") for text in CHINESE]
CHINESE_JUNK = {
    "too few words": "点击这里查看更多内容。",
    "abnormal characters": CHINESE[0] + "锟斤拷锟斤拷锟斤拷",
    "endless word": "".join(UNMARKED),
    "too little punctuation": " ".join(UNMARKED[n % 4][n : n + 6] for n in range(100)),
    "too few letters": "，".join(f"{n} the {n}" for n in range(120)) + "的中国人在这里",
    "short lines": "\n".join(CHINESE[n % 4][n : n + (7 if n % 4 else 30)] + "。" * (n % 8 == 0) for n in range(90)),
    "separators": "".join(f"{one}｜|/{one}->" for one in CHINESE[0]),
    "repeated lines": "\n".join(["本店长期出售各种二手手机，欢迎新老顾客来电咨询。"] * 5 + [CHINESE[0][:60]]),
    "repeated n-grams": CHINESE[0][:90] + CHINESE[0][:90] + CHINESE[1][:80] + "。",
    "too few stop words": "，".join(f"苹果手机{one}小米电脑" for one in "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳") + "。",
}


@pytest.mark.parametrize("reason", CHINESE_JUNK)
def test_chinese_junk(reason: str) -> None:
    limits = chinese()
    if reason == "too few stop words":  # it repeats itself too, which comes first
        limits = Thresholds(**{**vars(limits), "max_top_ngram": [], "max_repeated_ngrams": []})
    assert Rules(zh=limits).judge(Document(CHINESE_JUNK[reason], "x", {"language": "zh-Hant"})) == reason


def test_code_is_no_prose() -> None:
    assert verdict(CODE, "en") is not None


def test_every_threshold_can_be_left_out() -> None:
    none = {key: [] if isinstance(value, list) else None for key, value in vars(Thresholds()).items()}
    none.update(short_line=30, lorem_ipsum=False, ngram_scale=1)
    assert {verdict(text, "en", **none) for text in ENGLISH_JUNK.values()} == {None, "empty"}


def test_no_stop_words_are_no_rule() -> None:
    text = ENGLISH_JUNK["too few stop words"]
    assert verdict(text, "en", stop_words=["the"]) == "too few stop words"
    assert verdict(text, "en", stop_words=[]) is None


def test_every_reason_can_come() -> None:
    """No rule is shadowed by those before it: each has its example."""
    tree = ast.parse(inspect.getsource(rules))
    yields = [
        node.value for node in ast.walk(tree) if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple)
    ]
    reasons = {ast.literal_eval(one.elts[0]) for one in yields}
    assert len(reasons) > 20
    assert reasons - {"too many words"} == set(ENGLISH_JUNK)
    assert verdict(PROSE, "en", max_units=20) == "too many words"
