"""Reading a corpus: nothing is lost without being counted, and what is damaged is told."""

from __future__ import annotations

import gzip
import json
import random
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather, parquet

from internevo.files.errors import UserError
from internevo.refine.read import NO_DOCUMENT, NOT_A_PAGE, Page, read
from internevo.refine.shards import Document
from tests.refine.corpus import docstrings, page, write_warc


def found(path: Path) -> list[object]:
    return list(read(path, "text", "id"))


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_answers_of_a_web_archive(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    bodies = [page(text).encode() for text in docstrings(3)]
    write_warc(path, [(f"http://example.com/{n}", body) for n, body in enumerate(bodies)])
    write_warc(path, [("http://example.com/gone", b"no")], status="404 Not Found")
    write_warc(path, [("http://example.com/cat.png", b"\x89PNG")], kind="image/png")
    write_warc(path, [("http://example.com/t", b"words")], kind="text/plain; charset=GBK")
    pages = found(path)
    assert len(pages) == 6  # neither requests nor the archive's own record
    assert [one.body for one in pages if isinstance(one, Page)] == [*bodies, b"words"]
    assert [one[1] for one in pages if isinstance(one, tuple)] == [NOT_A_PAGE] * 2
    first, last = pages[0], pages[5]
    assert isinstance(first, Page)
    assert isinstance(last, Page)
    assert first.metadata == {"url": "http://example.com/0", "date": "2024-05-01T10:00:00Z", "file": str(path)}
    assert first.id.startswith("urn:uuid:")
    assert (first.charset, first.plain) == ("utf-8", False)
    assert (last.charset, last.plain) == ("GBK", True)


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_a_torn_archive_is_told_wherever_it_is_torn(tmp_path: Path, name: str) -> None:
    path = write_warc(
        tmp_path / name, [(f"http://example.com/{n}", page(t).encode()) for n, t in enumerate(docstrings(4))]
    )
    whole = path.read_bytes()
    chosen = random.Random(1)
    for cut in (len(whole) - 9, *(chosen.randrange(1, len(whole) - 8) for _ in range(60))):
        if whole[:cut].endswith(b"\r\n\r\n") or whole[cut:].startswith(b"\x1f\x8b\x08"):
            continue  # where a record may end; packed, each is a member of its own
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"a\.warc.* is damaged"):
            found(path)


def test_something_else_in_an_archive(tmp_path: Path) -> None:
    path = write_warc(tmp_path / "a.warc", [("http://example.com", b"<p>one</p>")])
    path.write_bytes(path.read_bytes() + b"what is this\r\n\r\n")
    with pytest.raises(UserError, match=r"a\.warc is damaged at record 3"):
        found(path)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.one_of(
            st.fixed_dictionaries(
                {"text": st.text(st.characters(codec="utf-8"))},
                optional={"id": st.integers(), "url": st.text(st.characters(codec="utf-8"))},
            ).map(lambda row: json.dumps(row).encode()),
            st.sampled_from(
                [b"{", b"[1]", b'{"body": "x"}', b'{"text": 3}', b'{"text": "\\ud800"}', b"\xff\xfe", b"", b"  "]
            ),
        ),
        max_size=20,
    ),
    st.sampled_from(["a.jsonl", "a.jsonl.gz", "a.ndjson", "a.ndjson.gz"]),
)
def test_each_line_is_a_document_or_counted(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], name: str
) -> None:
    path = tmp_path_factory.mktemp("lines") / name
    content = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    expected: list[str | None] = []
    names = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row["text"].encode()
        except (ValueError, TypeError, KeyError, AttributeError):
            row = {"text": None}
        expected.append(row["text"])
        names.append(str(row.get("id", f"{path}:{number}")))
    all_found = found(path)
    assert [one.text if isinstance(one, Document) else None for one in all_found] == expected
    assert [(one[0] if isinstance(one, tuple) else one).id for one in all_found] == names  # type: ignore[attr-defined]
    assert all(one[1] == NO_DOCUMENT for one in all_found if isinstance(one, tuple))


def write_columns(path: Path, columns: dict[str, Any]) -> None:
    """A table, in more than one part."""
    table = pyarrow.table(columns)
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=2)
    elif path.suffix == ".feather":
        feather.write_feather(table, path, chunksize=2)
    else:  # as Hugging Face's datasets writes it
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=2)


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrow"])
def test_columns_with_what_json_cannot_say(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    columns = {
        "text": ["one", None, "three"],
        "id": ["a", "b", None],
        "date": [datetime(2024, 1, 2)] * 3,
        "score": [0.5, 1.0, float("nan")],
        "metadata": [{"url": "http://x"}] * 3,
        "tags": [["p", "q"]] * 3,
    }
    write_columns(path, columns)
    one, two, three = found(path)
    assert isinstance(one, Document)
    assert isinstance(two, tuple)
    assert isinstance(three, Document)
    more = {"file": str(path), "date": "2024-01-02 00:00:00", "tags": ["p", "q"], "url": "http://x"}
    assert (one.text, one.id, one.metadata) == ("one", "a", {**more, "score": 0.5})
    assert (three.id, three.metadata["score"]) == (f"{path}:3", None)
    json.dumps(one.metadata, allow_nan=False)
    write_columns(path, {"body": ["x"]})
    with pytest.raises(UserError, match=r"has no column 'text'; it has body\. Set extract\.text_key"):
        found(path)
    path.write_bytes(b"PAR1 or not")
    with pytest.raises(UserError, match=rf"{name} is not an? (parquet|arrow) file"):
        found(path)


def test_one_bad_row_of_parquet_is_one_document(tmp_path: Path) -> None:
    """Writers in other languages than Python put bytes that are not UTF-8 into columns of text, and years past 9999."""
    path = tmp_path / "a.parquet"
    broken = pyarrow.array([b"one", b"\xff\xfe", b"three", b"four"]).cast(pyarrow.string(), safe=False)
    names = pyarrow.array([b"a", b"b", b"c", b"\xe9"]).cast(pyarrow.string(), safe=False)
    dates = pyarrow.array([0, 0, 2**60, 0], pyarrow.int64()).cast(pyarrow.timestamp("us"))
    with pytest.raises(ValueError):
        broken.to_pylist()
    parquet.write_table(pyarrow.table({"text": broken, "id": names, "date": dates}), path)
    one, two, three, four = found(path)
    assert isinstance(two, tuple)
    assert (two[1], two[0].id) == (NO_DOCUMENT, f"{path}:2")
    assert isinstance(one, Document)
    assert isinstance(three, Document)
    assert isinstance(four, Document)
    assert (one.text, one.id, one.metadata["date"]) == ("one", "a", "1970-01-01 00:00:00")
    assert (three.text, three.metadata["date"]) == ("three", None)
    assert (four.text, four.id) == ("four", f"{path}:4")


def test_damaged_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n' * 5000)[:-10])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz is damaged after line [\d,]+:"):
        found(path)
