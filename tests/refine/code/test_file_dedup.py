"""Files of the same content: planted copies, against a dictionary of texts."""

from __future__ import annotations

import random
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.refine.code.file_dedup import CONTENT, DUPLICATE, FileDedup
from internevo.refine.shards import Document
from tests.refine.code.library import LIBRARY
from tests.refine.running import dropped, kept, output, place_of, run_phases

texts = st.sampled_from(["a b", "a  b", " a\tb\n", "ab", "a\n\nb", "", " ", "第 三", "第三", "x\ud800"])
dates = st.sampled_from([None, "2024-05-01", "2023-01-01T00:00:00Z", 1_800_000_000, "no date", -5.5])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(texts, dates), max_size=25),
    st.integers(1, 5),
    st.sampled_from(["newest", "first"]),
    st.randoms(use_true_random=False),
)
def test_one_of_each_content_is_kept(
    drawn: list[tuple[str, object]], shards: int, keep: str, chance: random.Random
) -> None:
    seconds = {"2024-05-01": 1714521600, "2023-01-01T00:00:00Z": 1672531200, "no date": None}
    documents = [Document(text, str(n), {"date": date}) for n, (text, date) in enumerate(drawn)]
    expected: dict[str, int] = {}
    for number, (text, date) in enumerate(drawn):
        key = " ".join(text.encode(errors="replace").decode().split())  # as shards hold it
        age = seconds.get(date, date) if isinstance(date, str) else date
        if key in expected and keep == "newest":
            other = drawn[expected[key]][1]
            before = seconds.get(other, other) if isinstance(other, str) else other
            if age is not None and (before is None or age > before):
                expected[key] = number
        expected.setdefault(key, number)
    with tempfile.TemporaryDirectory() as folder:
        place = place_of(Path(folder), documents, shards)
        run_phases(FileDedup(keep=keep), place, chance)
        assert sorted(int(one.id) for one in kept(place)) == sorted(expected.values())
        assert len(dropped(place)) == len(documents) - len(expected)
        assert {one.metadata["reason"] for one in dropped(place)} <= {DUPLICATE}
        hashes = {one.metadata[CONTENT] for one in kept(place)}
        assert len(hashes) == len(expected)
        assert {one.metadata[CONTENT] for one in dropped(place)} <= hashes


def test_planted_copies_in_the_library(tmp_path: Path) -> None:
    # a link, such as Debian's for _sysconfigdata, is a copy that nobody planted
    sources = [path for path in sorted(LIBRARY.glob("*.py")) if path.stat().st_size and not path.is_symlink()]
    originals = {path.name: path.read_text(errors="replace") for path in sources}
    chance = random.Random(3)
    copied = chance.sample(sorted(originals), 40)
    old, new = (datetime(year, 1, 1, tzinfo=UTC).isoformat() for year in (2020, 2025))
    documents = [Document(text, name, {"date": new}) for name, text in originals.items()]
    documents += [
        Document("\n\n" + originals[name].replace("    ", "\t").replace("\n", "\r\n"), f"copy/{name}", {"date": old})
        for name in copied
    ]
    changed = [Document(originals[name] + "# one word\n", f"changed/{name}", {"date": old}) for name in copied]
    documents += changed
    chance.shuffle(documents)
    place = place_of(tmp_path, documents, 4)
    run_phases(FileDedup(), place, chance)
    assert {one.id for one in dropped(place)} == {f"copy/{name}" for name in copied}
    before = output(place)
    run_phases(FileDedup(), place)
    assert output(place) == before
