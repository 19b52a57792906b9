"""Readers: every kind of file, what is left out, and what cannot be read."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from internevo.config.errors import UserError
from internevo.data.corpus import Document, Reject, input_files, read_documents

TEXTS = ["first\nwith a second line", "书生 🙂", "", "last"]
LINES = "".join(json.dumps({"text": text, "id": number}) + "\n" for number, text in enumerate(TEXTS)).encode()


def texts(path: Path, key: str = "text") -> list[str]:
    found = list(read_documents(path, key))
    assert all(isinstance(one, Document) for one in found), found
    return [one.text for one in found if isinstance(one, Document)]


def rejects(path: Path, key: str = "text") -> list[Reject]:
    return [one for one in read_documents(path, key) if isinstance(one, Reject)]


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        half = len(content) // 2  # two frames, as tools that append write them
        content = b"".join(pyarrow.compress(part, "zstd", asbytes=True) for part in (content[:half], content[half:]))
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json.gz", "a.json.zst", "A.JSONL"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    assert texts(write(tmp_path / name, LINES)) == TEXTS


def test_json_lines_say_where(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'\n{"body": "x"}\n\nno\n')
    assert [one.where for one in rejects(path)] == [f"{path}:2", f"{path}:4"]


def test_another_key(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.jsonl", b'{"content": "x", "text": "y"}'), "content") == ["x"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "not JSON"),
        (b'{"text": 5}', "no text under 'text'"),
        (b'{"body": "x"}', "no text under 'text'"),
        (b'["text"]', "no text under 'text'"),
        (b"\xff\xfe{}", "not JSON"),
        (b'{"text": "half \\ud83d"}', "half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_told_and_the_next_read(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    first, bad, last = read_documents(path)
    assert isinstance(first, Document)
    assert isinstance(last, Document)
    assert isinstance(bad, Reject)
    assert (first.text, last.text, bad.where) == ("before", "after", f"{path}:2")
    assert reason in bad.reason


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("damage", [slice(-40, None), slice(-1, None), slice(2000, 2400)])
def test_a_damaged_archive_stops_the_job(tmp_path: Path, name: str, damage: slice) -> None:
    """The loss of what may be a large part of the corpus must not count as one bad document."""
    path = write(tmp_path / name, b"".join(json.dumps({"text": f"{n**9}"}).encode() + b"\n" for n in range(5000)))
    content = bytearray(path.read_bytes())
    del content[damage]
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is damaged after line [\d,]+: .* Mend it or leave it out"):
        list(read_documents(path))


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [*TEXTS, None], "n": range(5)}), path)
    found = list(read_documents(path))
    assert [one.text for one in found if isinstance(one, Document)] == TEXTS
    assert found[-1] == Reject(str(path), 5, "no text under 'text'")
    with pytest.raises(UserError, match="has no column 'body'; it has text, n"):
        list(read_documents(path, "body"))


def test_parquet_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.parquet is not a parquet file"):
        list(read_documents(write(tmp_path / "a.parquet", b"no")))


def test_text_and_code(tmp_path: Path) -> None:
    for name in ("a.txt", "b.py", "c.md", "d.C"):
        assert texts(write(tmp_path / name, "one\n二\r\n".encode())) == ["one\n二\r\n"]
    assert rejects(write(tmp_path / "latin.txt", b"caf\xe9")) == [
        Reject(str(tmp_path / "latin.txt"), None, "not UTF-8 (byte 3)")
    ]


def test_folders_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b/z.py", "b/a.py", "a.txt", "c.jsonl", "B.txt"):
        write(tmp_path / name, b'{"text": "%s"}' % name.encode() if name.endswith("jsonl") else name.encode())
    for name in (".git/x.py", ".hidden.txt", "image.png", "b/core.o"):
        write(tmp_path / name, b"\x00\xff")
    assert texts(tmp_path) == ["B.txt", "a.txt", "b/a.py", "b/z.py", "c.jsonl"]
    assert [path.relative_to(tmp_path).as_posix() for path in input_files(tmp_path)] == texts(tmp_path)


def test_what_cannot_be_read_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list(read_documents(tmp_path / "no.txt"))
    with pytest.raises(UserError, match=r"image\.png is of no known kind. Known endings are: \.jsonl"):
        list(read_documents(write(tmp_path / "image.png", b"")))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.zst"])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # what an import of an absent package meets
    with pytest.raises(UserError, match=r"needs pyarrow: pip install 'internevo\[data\]'"):
        list(read_documents(write(tmp_path / name, b"")))
