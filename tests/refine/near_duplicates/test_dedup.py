"""What deduplication keeps, and what it says of the rest."""

from __future__ import annotations

import pickle
import random
import sys
from pathlib import Path

import pytest

from internevo.files.errors import UserError
from internevo.refine.near_duplicates.dedup import DUPLICATE_OF, NEAR_DUPLICATE, UNDATED, Dedup
from internevo.refine.shards import Document, Tally
from tests.refine.near_duplicates.planted import deduplicated, mixture, numbered, originals
from tests.refine.running import dropped, kept, place_of, run_phases
from tools.near_duplicates import jaccard, shingle_set, words


def ids(documents: list[Document]) -> list[str]:
    return [document.id for document in documents]


def test_the_newest_is_kept_and_of_the_same_age_the_first(tmp_path: Path) -> None:
    text, other, third = originals("English")[:3]
    documents = [
        Document(text, "old", {"date": "2020-01-01"}),
        Document(other, "undated"),
        Document(text, "new", {"date": "2021-05-05"}),
        Document(text, "new too", {"date": "2021-05-05T00:00:00Z"}),
        Document(other, "dated", {"date": "1999-01-01"}),
        Document(third, "alone", {"date": "2000-01-01"}),
        Document(other, "odd", {"date": "some day"}),
    ]
    place = deduplicated(tmp_path, documents)
    assert ids(kept(place)) == ["new", "dated", "alone"]
    assert [(one.id, one.metadata[DUPLICATE_OF], one.metadata["reason"]) for one in dropped(place)] == [
        ("old", "new", NEAR_DUPLICATE),
        ("undated", "dated", UNDATED),
        ("new too", "new", NEAR_DUPLICATE),
        ("odd", "dated", UNDATED),
    ]
    assert [one.metadata["date"] for one in dropped(place)[:1]] == ["2020-01-01"]


def test_other_choices_of_what_is_kept(tmp_path: Path) -> None:
    text = originals("English")[0]
    dates = [{"crawled": str(2000 + number)} for number in range(3)]
    texts = [text, f"{text} One more.", text]
    documents = [Document(one, str(number), dates[number]) for number, one in enumerate(texts)]
    for options, expected in [
        ({"keep": "first"}, "0"),
        ({"keep": "longest"}, "1"),
        ({"keep": "newest", "date": "crawled"}, "2"),
        ({"keep": "newest"}, "0"),
    ]:
        place = deduplicated(tmp_path / expected / options["keep"], documents, **options)
        assert ids(kept(place)) == [expected]


def test_a_chain_is_one_cluster(tmp_path: Path) -> None:
    """a is like b, b like c, but a not like c: one of them is kept."""
    found = [f"word{number}" for number in range(130)]
    chain = [" ".join(found[start : start + 100]) for start in (0, 15, 30)]
    a, b, c = map(shingle_set, chain)
    assert jaccard(a, b) > 0.7 < jaccard(b, c)
    assert jaccard(a, c) < 0.6
    place = deduplicated(tmp_path, numbered(chain), keep="first")
    assert ids(kept(place)) == ["0"]
    assert [one.metadata[DUPLICATE_OF] for one in dropped(place)] == ["0", "0"]


def test_short_and_empty_documents_are_like_none_but_the_same(tmp_path: Path) -> None:
    texts = ["", "!", "?", "a", "A", "a.", "a b", "b a", "a b c d", "a b c e", "中文", "中文。", " ", "\n"]
    place = deduplicated(tmp_path, numbered(texts * 3))
    assert ids(kept(place)) == [str(number) for number in range(len(texts))]
    assert all(int(one.metadata[DUPLICATE_OF]) == int(one.id) % len(texts) for one in dropped(place))


def test_nothing_and_empty_shards(tmp_path: Path) -> None:
    assert kept(deduplicated(tmp_path / "none", [], shards=2)) == []
    texts = originals("English")[:2]
    place = deduplicated(tmp_path / "some", numbered([*texts, texts[0]]), shards=7)
    assert ids(kept(place)) == ["0", "1"]


def test_a_document_of_ten_megabytes(tmp_path: Path) -> None:
    chance = random.Random(0)
    text = " ".join(chance.choices(sorted({word for one in originals("code") for word in words(one)}), k=1_400_000))
    assert len(text) > 10_000_000
    documents = numbered([text, *originals("English")[:50], "Again: " + text, text[: len(text) // 2]])
    place = deduplicated(tmp_path, documents)
    assert [(one.id, one.metadata[DUPLICATE_OF]) for one in dropped(place)] == [("51", "0")]


def test_many_identical_lines(tmp_path: Path) -> None:
    """Each band has them all in one bucket."""
    texts = ["All rights reserved by the owner of this page."] * 20_000
    texts[7_000] = "This page has a text of its own, which nothing else has."
    place = deduplicated(tmp_path, numbered(texts))
    assert ids(kept(place)) == ["0", "7000"]
    assert {one.metadata[DUPLICATE_OF] for one in dropped(place)} == {"0"}


def test_done_is_done(tmp_path: Path) -> None:
    place = deduplicated(tmp_path, mixture(5))
    times = {path: path.stat().st_mtime_ns for path in place.folder.rglob("*")}
    run_phases(Dedup(), place)
    assert {path: path.stat().st_mtime_ns for path in place.folder.rglob("*")} == times
    assert not (place.folder / "work" / "signatures").exists()  # it takes as much room as the text


def test_the_counts_have_the_reasons(tmp_path: Path) -> None:
    place = deduplicated(tmp_path, mixture(20), shards=2)
    tally = Tally()
    for number in range(2):
        tally.merge(Tally.load(place.folder / "counts" / f"{number:05}.json"))
    assert list(tally.dropped) == [NEAR_DUPLICATE]
    assert tally.dropped[NEAR_DUPLICATE].documents == len(dropped(place))
    assert tally.kept.documents == len(kept(place))


def test_phases_travel(tmp_path: Path) -> None:
    place = place_of(tmp_path, mixture(2), 130)
    phases = Dedup().phases(place)
    assert [(phase.name, phase.tasks) for phase in phases] == [
        ("signatures", 130),
        ("pairs", 25 * 3),
        ("clusters", 1),
        ("sift", 130),
    ]
    assert [phase.name for phase in pickle.loads(pickle.dumps(phases))] == [phase.name for phase in phases]


@pytest.mark.parametrize("library", ["rensa", "scipy"])
def test_a_library_that_is_missing(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # as Python itself marks what cannot be imported
    with pytest.raises(UserError, match=rf"{library}.*internevo\[refine\]"):
        Dedup().phases(place_of(tmp_path, [], 1))
