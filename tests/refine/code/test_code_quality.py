"""Classes of code, by rules and by a classifier."""

from __future__ import annotations

from collections import Counter

import pytest

from internevo.files.errors import UserError
from internevo.refine.code.code_quality import HIGH, LOW, MODERATE, CodeQuality
from internevo.refine.shards import Document
from internevo.refine.step import NotJudged
from tests.refine.code.library import LIBRARY

GOOD = '"""Adds."""\n\n\ndef add(one, other):\n    # nothing is carried\n    return one + other\n'
HERE = "tests.refine.code.test_code_quality"


def favour_add(text: str) -> float:
    """A classifier for the tests."""
    return 0.9 if "def add" in text else 0.5 if "return" in text else 0.1


def wrong(text: str) -> float:
    """One that gives no share."""
    return 7.0


def judged(text: str, path: str = "a.py", **keys: object) -> tuple[str, str | None, str | None]:
    document = Document(text, path, {"path": path})
    reason = CodeQuality(**keys).judge(document)  # type: ignore[arg-type]
    return document.metadata["quality"], document.metadata.get("quality_why"), reason


@pytest.mark.parametrize(
    ("text", "path", "quality", "why"),
    [
        (GOOD, "a.py", HIGH, None),
        (GOOD.replace("return", "retrun"), "a.py", LOW, "syntax"),
        (GOOD.replace("return", "retrun"), "a.rb", HIGH, None),
        ("print 'python 2 is not parsed any more'\n", "a.py", LOW, "syntax"),
        ("def add(one, other):\n    return one + other\n", "a.py", MODERATE, None),
        ("x = 1\n", "a.py", LOW, "short"),
        ("// words of a comment\n" + "int value = 1;" * 20 + "\n", "a.c", LOW, "long lines"),
        ("A readme's paragraph is a line. " * 12 + "\n", "README.md", MODERATE, None),
        ("{}[]();;,,..%%&&||++--**//==!!<<>>\n" * 3, "a.c", LOW, "few letters"),
        ("data = [\n" + "    12345, 67890, 12345,\n" * 9 + "]\n", "a.py", LOW, "many digits"),
        ("def add(one, other):\n" + "    one = one + other\n" * 30, "a.py", LOW, "repeated lines"),
        ("# nothing\n# but comments\n# are in this\n# file of ours\n", "a.py", MODERATE, None),
        ("(" * 3000 + ")" * 3000 + "  # words and words and words\n" * 300, "a.py", LOW, None),
    ],
)
def test_classes_by_rules(text: str, path: str, quality: str, why: str | None) -> None:
    found = judged(text, path, drop=[])
    assert found[0] == quality
    assert found[1] == why or text.startswith("(((")
    assert found[2] is None


def test_what_is_low_is_dropped_and_told_why() -> None:
    assert judged("x = 1\n") == (LOW, "short", "low: short")
    assert judged("x = 1\n", drop=["moderate"]) == (LOW, "short", None)


def test_a_classifier_of_the_users_own() -> None:
    keys = {"classifier": f"{HERE}:favour_add"}
    assert judged(GOOD, **keys)[0] == HIGH
    assert judged(GOOD.replace("def add", "def plus"), **keys)[0] == MODERATE
    assert judged(GOOD.replace("def add", "def plus"), high=0.5, **keys)[0] == HIGH
    assert judged(GOOD.replace("def add", "def plus").replace("return", "yield"), **keys) == (
        LOW,
        "score",
        "low: score",
    )
    with pytest.raises(NotJudged, match=r"score 7\.0"):
        judged(GOOD, classifier=f"{HERE}:wrong")


@pytest.mark.parametrize("odd", [["en"], 3, {"a": 1}, None])
def test_metadata_of_any_kind(odd: object) -> None:
    """JSON lines may have other things under `language` and `path`; such a document is judged as text."""
    document = Document(GOOD, "id", {"language": odd, "path": odd})
    assert CodeQuality().judge(document) is None
    assert document.metadata["quality"] == MODERATE


def test_the_library_is_good_code() -> None:
    step = CodeQuality()
    classes: Counter[str] = Counter()
    for path in sorted(LIBRARY.glob("*.py")):
        document = Document(path.read_text(), path.name, {"path": path.name, "language": "python"})
        step.judge(document)
        classes[document.metadata["quality"]] += 1
    assert classes.total() > 100
    assert classes[LOW] <= 0.03 * classes.total()
    assert classes[HIGH] > 0.6 * classes.total()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"low": 0.8, "high": 0.7}, "code_quality.low"),
        ({"high_comments": [0.5]}, "code_quality.high_comments"),
        ({"drop": ["bad"]}, "code_quality.drop"),
        ({"classifier": "no_such_module:f"}, "code_quality.classifier"),
        ({"classifier": f"{HERE}:none_such"}, "code_quality.classifier"),
        ({"classifier": f"{HERE}:HERE"}, "code_quality.classifier"),
    ],
)
def test_mistakes_are_told_at_once(keys: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        CodeQuality(**keys)  # type: ignore[arg-type]
