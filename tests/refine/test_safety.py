"""Lists of domains and words, and classifiers by name, in safety and quality."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internevo.files.errors import UserError
from internevo.refine.quality import Quality
from internevo.refine.safety import BLOCKED, UNSAFE, WORDS, Safety
from internevo.refine.shards import Document
from internevo.refine.wordlists import Domains, Words, domains
from tests.refine.corpus import CHINESE, docstrings

LABELS = st.text(st.sampled_from("abc"), min_size=1, max_size=2)
HOSTS = st.lists(LABELS, min_size=1, max_size=4).map(".".join)


@given(st.sets(HOSTS, max_size=12), HOSTS)
def test_a_domain_stands_for_all_below_it(listed: set[str], host: str) -> None:
    """But not for those that merely end like it."""
    parents = [host.split(".", number)[-1] for number in range(host.count(".") + 1)]
    expected = next((parent for parent in parents if parent in listed), None)
    known = Domains(iter(listed))
    assert known.of(f"https://{host.upper()}:8080/a?b=c.b.a") == expected
    assert known.of(host) == expected


def test_odd_addresses() -> None:
    known = Domains(iter(["bad.example", "evil.test."]))
    assert known.of("http://user:pw@www.BAD.example./x") == "bad.example"
    assert known.of("http://evil.test") == "evil.test"
    for url in (
        "",
        "http://",
        "http://[::1",
        "not a url",
        "mailto:x@bad.example.org",
        "http://notbad.example",
        "x" * 9999,
    ):
        assert known.of(url) is None


@given(
    st.sets(st.sampled_from(["cat", "big cat", "cat dog", "dog", "猫", "大猫", "c3"]), min_size=1),
    st.lists(
        st.sampled_from(["cat", "Cat", "cats", "big", "dog", "c3", "x", "大", "猫", "狗", ",", "\n"]), max_size=25
    ),
)
def test_words_by_hand(listed: set[str], parts: list[str]) -> None:
    text = " ".join(parts)
    latin = re.sub("[大猫狗]", " ", text).lower()
    expected = 0
    for entry in listed:
        if entry[0] in "大猫":
            expected += sum(text.startswith(entry, place) for place in range(len(text)))
        else:
            pattern = r"\W+".join(map(re.escape, entry.split()))
            expected += len(re.findall(rf"(?=\b{pattern}\b)", latin))
    found, of = Words(iter(listed)).find(text)
    assert found == expected
    assert of == len(re.findall(r"\w+", latin)) + len(re.findall("[大猫狗]", text))


MIXED = ["a大", "大a", "c3猫", "大·猫", "a大c3", "大 猫"]


@given(
    st.sets(st.sampled_from(MIXED), min_size=1),
    st.lists(st.sampled_from([*MIXED, "a", "A", "c3", "x", "_", "大", "猫", "·", " ", "İ"]), max_size=25).map("".join),
)
def test_entries_of_two_scripts_by_hand(listed: set[str], text: str) -> None:
    letter = r"[a-z0-9_]"
    expected = 0
    for entry in listed:
        before = rf"(?<!{letter})" if entry[0] in "ac" else ""
        behind = rf"(?!{letter})" if entry[-1] in "a3" else ""
        expected += len(re.findall(rf"(?={before}{re.escape(entry)}{behind})", text.lower()))
    assert Words(iter(listed)).find(text)[0] == expected


@pytest.mark.parametrize(
    ("entry", "text", "count"),
    [
        ("A片", "看A片和a片，不是BA片。", 2),
        ("K粉", "他买了K粉。OK粉笔", 1),
        ("阿道夫·希特勒", "关于阿道夫·希特勒的书", 1),
        ("卡拉OK", "卡拉OK厅，卡拉OKAY", 1),
    ],
)
def test_entries_of_two_scripts(entry: str, text: str, count: int) -> None:
    assert Words(iter([entry])).find(text)[0] == count


def test_a_list_of_a_hundred_thousand_words_is_as_quick_as_a_short_one() -> None:
    """Work is counted in look-ups: it depends on the lengths of entries, not on their number."""
    chosen = random.Random(0)
    many = {"".join(chosen.choices("abcdefgh", k=12)) for _ in range(100_000)}
    known = Words(iter(many))
    assert list(known._phrases) == [1]
    assert known.find(" ".join([*list(many)[:5], *docstrings(1)[0].split()]))[0] == 5


@pytest.fixture
def lists(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "domains.txt").write_text("# spam\nbad.example\nworse.example # found in May\n\n")
    (tmp_path / "words.txt").write_text("casino\nfree pills\n赌场\n")
    return {name: str(tmp_path / f"{name}.txt") for name in ("domains", "words")}


def test_safety(lists: dict[str, str]) -> None:
    step = Safety(domains=[lists["domains"]], words=[lists["words"]])
    step.prepare()
    good = docstrings(1)[0]

    def verdict(text: str, url: str | None = None) -> str | None:
        document = Document(text, "x", {"url": url} if url else {})
        reason = step.judge(document)
        if reason:
            assert {BLOCKED: "blocked_domain", WORDS: "blocked_words"}[reason] in document.metadata
        return reason

    assert verdict(good, "http://good.example/bad.example") is None
    assert verdict(good, "http://www.worse.example/") == BLOCKED
    assert verdict(good + " casino" * 2) is None  # twice may be chance
    assert verdict(good + " Casino, free pills, casino.") == WORDS
    assert verdict(" ".join(docstrings(30)) + " casino" * 5) is None  # and five times in a book too
    assert verdict(CHINESE[0] + "赌场" * 3) == WORDS
    assert verdict(CHINESE[0]) is None
    assert step.files() == [Path(lists["domains"]), Path(lists["words"])]


def test_lists_are_read_once(lists: dict[str, str]) -> None:
    files = (Path(lists["domains"]),)
    assert domains(files) is domains(files)


SCORER = """
def shouting(text):
    return sum(map(str.isupper, text)) / len(text)
NUMBER = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_scorer.py").write_text(SCORER)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("my_scorer", None)
    return "my_scorer:shouting"


def test_classifiers_of_ones_own(module: str) -> None:
    loud, soft = (
        Document("BUY THIS NOW", "x", {"language": "en"}),
        Document("Do not buy this now.", "y", {"language": "en"}),
    )
    safety = Safety(classifier=module, max_score=0.3)
    safety.prepare()
    assert [safety.judge(one) for one in (loud, soft)] == [UNSAFE, None]
    assert soft.metadata["safety"] == pytest.approx(1 / 20)
    quality = Quality(classifier=module, name="volume", min_score=0.1, max_score=0.9, languages=["en"])
    quality.prepare()
    assert [quality.judge(one) for one in (loud, soft)] == [None, "volume too low"]
    assert quality.judge(Document("BUY", "z", {"language": "en"})) == "volume too high"
    assert quality.judge(Document("buy", "z", {"language": "zh-Hant"})) is None
    chinese = Quality(classifier=module, languages=["zh"])
    chinese.prepare()
    assert chinese.judge(Document("buy", "z", {"language": "zh-Hant"})) == "quality too low"


def test_values_that_make_no_sense(module: str, tmp_path: Path) -> None:
    for make, message in (
        (lambda: Safety(), r"safety: name files of domains or of words, or a classifier"),
        (lambda: Quality(), r"quality\.classifier: missing"),
        (lambda: Quality(classifier="my_scorer:none"), r"quality\.classifier: my_scorer has no 'none'"),
        (lambda: Quality(classifier="no_module:x"), r"quality\.classifier: no_module cannot be imported"),
        (lambda: Quality(classifier="my_scorer:NUMBER"), r"quality\.classifier: my_scorer:NUMBER cannot be called"),
    ):
        with pytest.raises(UserError, match=message):
            make()
    bad = tmp_path / "latin.txt"
    bad.write_bytes("Gr\xfc\xdfe".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt is not UTF-8 text \(byte 2\)"):
        domains((bad,))
