"""From bytes to documents: encodings, the limit of CPU time, and what becomes of pages without text."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internevo.refine.extract import FAILED, NO_TEXT, TOO_LARGE, TOO_LONG, Extract
from internevo.refine.html import TooLong, cpu_limit, decode
from internevo.refine.read import NO_DOCUMENT, NOT_A_PAGE
from internevo.refine.shards import DROPPED, Document, Tally, read_shard, shard_name
from internevo.refine.step import Place
from tests.refine.corpus import CHINESE, docstrings, page, write_jsonl, write_warc


def extracted(step: Extract, *inputs: Path) -> tuple[list[Document], list[Document]]:
    """What it keeps and drops, through its own phases."""
    folder = inputs[0].parent / "01-extract"
    place = Place(inputs, folder)
    for phase in step.phases(place):
        for number in range(phase.tasks):
            phase.run(number)
    kept = [document for shard in step.kept(place) for document in read_shard(shard)]
    dropped = [
        one for number in range(len(step.kept(place))) for one in read_shard(folder / DROPPED / shard_name(number))
    ]
    return kept, dropped


def test_pages_become_their_text(tmp_path: Path) -> None:
    texts = docstrings(20)
    path = write_warc(
        tmp_path / "a.warc.gz", [(f"http://example.com/{n}", page(t).encode()) for n, t in enumerate(texts)]
    )
    kept, dropped = extracted(Extract(), path)
    assert not dropped
    assert len({document.id for document in kept}) == 20
    for text, document in zip(texts, kept, strict=True):
        assert set(text.split()) - set(document.text.split()) == set()
        assert "All rights reserved" not in document.text
        assert "var x" not in document.text
        assert document.metadata["date"] == "2024-05-01T10:00:00Z"
    fast, _ = extracted(
        Extract(fast=True), write_warc(_in(tmp_path, "b.warc"), [("http://e.com", page(texts[0]).encode())])
    )
    assert fast[0].text == kept[0].text


def _in(tmp_path: Path, name: str) -> Path:
    (tmp_path / name.partition(".")[0]).mkdir()
    return tmp_path / name.partition(".")[0] / name


@pytest.mark.parametrize(
    ("said", "meta", "real"),
    [
        ("", "", "utf-8"),
        ("", "", "utf-8-sig"),
        ("gb2312", "", "gb18030"),
        ("", "gbk", "gb18030"),
        ("no-such-thing", "gb2312", "gb18030"),
        ("hex", "big5", "big5"),
        ("utf-8", "gb18030", "gb18030"),  # servers often say what they do not send
        ("", "", "gb18030"),
    ],
)
def test_encodings(said: str, meta: str, real: str) -> None:
    text = (
        CHINESE[1]
        if real != "big5"
        else "清晨的河邊總是很安靜。老人們沿著石板路慢慢地走，一邊活動手腳，一邊談論昨天的天氣。"
    )
    html = page(text).replace("<head>", f'<head><meta charset="{meta}">' if meta else "<head>")
    assert text in decode(html.encode(real), said or None)


@given(
    st.binary(max_size=300),
    st.sampled_from([None, "utf-8", "gbk", "latin-1", "utf-16", "rot13", "base64", "\x00", "x" * 99]),
)
def test_any_bytes_are_decoded(body: bytes, charset: str | None) -> None:
    assert isinstance(decode(body, charset), str)


def stubborn() -> None:
    """A library that takes every exception for its own."""
    while True:
        try:
            sum(range(1000))
        except Exception:
            continue


def test_cpu_time_is_bounded_not_time() -> None:
    with cpu_limit(0.2):
        time.sleep(0.5)
    before = time.process_time()
    with pytest.raises(TooLong), cpu_limit(0.2):
        stubborn()
    assert 0.15 < time.process_time() - before < 5
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)
    with cpu_limit(60):
        pass
    deadline = time.process_time() + 0.2
    while time.process_time() < deadline:  # nothing comes late
        pass


def test_what_becomes_of_pages_without_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trafilatura

    extract = trafilatura.extract

    def endless(html: str, **options: object) -> str | None:
        if "take for ever" in html:
            stubborn()
        return extract(html, **options)

    monkeypatch.setattr(trafilatura, "extract", endless)
    path = write_warc(tmp_path / "a.warc", [("http://e.com/good", page(docstrings(1)[0]).encode())])
    write_warc(path, [("http://e.com/slow", b"take for ever"), ("http://e.com/empty", b"<html></html>")])
    write_warc(path, [("http://e.com/large", b"<p>" + b"word " * 400_000), ("http://e.com/nothing", b"")])
    write_warc(path, [("http://e.com/x.pdf", b"%PDF")], kind="application/pdf")
    kept, dropped = extracted(Extract(cpu_seconds=3, max_bytes=1_900_000), path)
    assert [document.metadata["url"] for document in kept] == ["http://e.com/good"]
    reasons = {one.metadata["url"].rpartition("/")[2]: one.metadata["reason"] for one in dropped}
    assert reasons == {"slow": TOO_LONG, "empty": NO_TEXT, "large": TOO_LARGE, "nothing": NO_TEXT, "x.pdf": NOT_A_PAGE}
    (tally,) = (Tally.load(file) for file in tmp_path.glob("01-extract/counts/*.json"))
    assert sum(heap.documents for heap in tally.dropped.values()) == 5


def test_an_extractor_that_fails_costs_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trafilatura

    extract = trafilatura.extract

    def failing(html: str, **options: object) -> str | None:
        if "fail here" in html:
            raise RecursionError
        return extract(html, **options)

    monkeypatch.setattr(trafilatura, "extract", failing)
    pages = [("http://e.com/1", page("fail here").encode()), ("http://e.com/2", page(docstrings(1)[0]).encode())]
    kept, dropped = extracted(Extract(), write_warc(tmp_path / "a.warc", pages))
    assert [one.metadata["url"] for one in kept] == ["http://e.com/2"]
    assert [one.metadata["reason"] for one in dropped] == [FAILED]
    assert "fail here" in dropped[0].text  # enough of it to see what it was


def test_lines_get_ids(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": "one", "url": "http://x"},
        {"text": "two", "id": 7},
        {"body": "x"},
        {"text": " "},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    kept, dropped = extracted(Extract(), path)
    assert [(one.text, one.id) for one in kept] == [("one", f"{path}:1"), ("two", "7")]
    assert kept[0].metadata == {"file": str(path), "url": "http://x"}
    assert [(one.id, one.metadata["reason"]) for one in dropped] == [(f"{path}:3", NO_DOCUMENT), (f"{path}:4", NO_TEXT)]
    body, _ = extracted(Extract(text_key="body", id_key="url"), write_jsonl(_in(tmp_path, "b.jsonl"), rows))
    assert [one.text for one in body] == ["x"]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=30), st.integers(0, 40))
def test_each_file_is_in_one_shard_in_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], shards: int
) -> None:
    folder = tmp_path_factory.mktemp("files")
    for number, size in enumerate(sizes):
        (folder / f"{number:03}.jsonl").write_bytes(b" " * size)
    step = Extract(shards=shards)
    groups = step._groups(Place((folder,), folder / "out"))
    assert [file.name for group in groups for file in group] == [f"{number:03}.jsonl" for number in range(len(sizes))]
    assert len(groups) == min(shards or 1000, len(sizes))
    assert all(groups)
    assert len(step.kept(Place((folder,), folder / "out"))) == len(groups)
    # no shard has more than its share and one file
    heaviest = max(sum(file.stat().st_size + 1 for file in group) for group in groups)
    assert heaviest <= (sum(sizes) + len(sizes)) / len(groups) + 2 * (max(sizes) + 1)
