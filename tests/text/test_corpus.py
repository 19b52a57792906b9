"""Readers: every kind of file, what is left out, and what cannot be read."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import feather, parquet

from internevo.files.errors import UserError
from internevo.text.corpus import input_files, read_documents
from internevo.text.documents import Document, Reject

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


@pytest.mark.parametrize(
    "name",
    [
        "a.jsonl",
        "a.jsonl.gz",
        "a.jsonl.zst",
        "a.json.gz",
        "a.json.zst",
        "A.JSONL",
        "a.ndjson",
        "a.ndjson.gz",
        "a.ndjson.zst",
    ],
)
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
    with pytest.raises(UserError, match=rf"{name} is damaged after line [\d,]+: .* Fix it or leave it out"):
        list(read_documents(path))


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [*TEXTS, None], "n": range(5)}), path)
    found = list(read_documents(path))
    assert [one.text for one in found if isinstance(one, Document)] == TEXTS
    assert found[-1] == Reject(str(path), 5, "no text under 'text'")
    with pytest.raises(UserError, match="has no column 'body'; it has text, n"):
        list(read_documents(path, "body"))


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_row_that_is_not_utf8(tmp_path: Path, kind: str, nested: bool) -> None:
    """Arrow and parquet files may hold it: not all that write them look."""
    values = ["before", b"caf\xe9 \xff", None, "after 书生"]
    raw = pyarrow.array([one.encode() if isinstance(one, str) else one for one in values], pyarrow.large_binary())
    column = pyarrow.Array.from_buffers(pyarrow.large_string(), len(raw), raw.buffers())
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(getattr(pyarrow, kind)())
    table = pyarrow.table({"text": column, "other": range(4)})
    key = "content.text" if nested else "text"
    if nested:
        table = pyarrow.table({"content": table.to_struct_array()})
    path = tmp_path / "a.arrow"
    with pyarrow.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    files = [path]
    if kind != "string_view":  # which parquet does not have
        files.append(tmp_path / "a.parquet")
        parquet.write_table(table, files[-1])
    for file in files:
        assert list(read_documents(file, key)) == [
            Document("before"),
            Reject(str(file), 2, "not UTF-8 (byte 3)", "caf\udce9 \udcff"),
            Reject(str(file), 3, f"no text under {key!r}"),
            Document("after 书生"),
        ]


def test_a_column_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"n": [1, None], "bytes": [b"x", b"\xff"], "at": [{"x": "\n"}, None]}), path)
    for key, said in (("n", ": the column is int64"), ("bytes", ": the column is binary"), ("at.y", "")):
        assert [one.reason for one in rejects(path, key)] == [f"no text under {key!r}{said}"] * 2
    assert rejects(path, "at")[0].reason == "no text under 'at': the column is struct<x: string>"


def test_parquet_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.parquet is not a parquet file"):
        list(read_documents(write(tmp_path / "a.parquet", b"no")))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "feather"])
def test_a_key_within_another(tmp_path: Path, kind: str) -> None:
    """As web archives are often extracted; a key that is spelled with the dot comes first."""
    rows = [{"content": {"text": one, "n": 5}} for one in TEXTS] + [
        {"content": {"text": None, "n": 1}},
        {"content": None},
    ]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        write(path, b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    elif kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        feather.write_feather(pyarrow.Table.from_pylist(rows), path)
    found = list(read_documents(path, "content.text"))
    assert [one.text for one in found if isinstance(one, Document)] == TEXTS
    reasons = {one.reason for one in found if isinstance(one, Reject)}
    assert (len(found), reasons) == (len(rows), {"no text under 'content.text'"})
    plain = write(tmp_path / "b.jsonl", b'{"content.text": "x", "content": {"text": "y"}}')
    assert texts(plain, "content.text") == ["x"]
    if kind != "jsonl":
        with pytest.raises(UserError, match=r"has no column 'body\.text'; it has content"):
            list(read_documents(path, "body.text"))


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
    assert [path.relative_to(tmp_path).as_posix() for path in input_files(tmp_path).files] == texts(tmp_path)


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    names = ["a.csv", "b/c.CSV", "d.jsonl.xz", "e.txt.gz", "v1.2.bin", "Makefile", ".hidden", ".git/x.csv"]
    for name in (*names, "z.txt"):
        write(tmp_path / name, b"x")
    found = input_files(tmp_path)
    assert found.files == [tmp_path / "z.txt"]
    assert found.left_out == {".csv": 2, ".jsonl.xz": 1, ".txt.gz": 1, ".bin": 1, "without an ending": 1}
    assert not input_files(tmp_path / "z.txt").left_out


def test_links_in_circles_multiply_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.txt", b"x")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    found = input_files(tmp_path)
    assert found.files == [tmp_path / "a" / "x.txt"]
    assert found.left_out == {"linked folder that is read already": 2}


def test_json_lines_that_are_called_json(tmp_path: Path) -> None:
    path = write(tmp_path / "in" / "a.json", LINES)
    for given in (path, tmp_path / "in"):
        with pytest.raises(UserError, match=r"a\.json holds JSON lines, .* Rename it to a\.jsonl, or move it away"):
            input_files(given)
    code = write(tmp_path / "in" / "a.py", LINES + b"\n")
    assert input_files(tmp_path / "in").files == [path, code]  # a repository with some data
    for one in (b'{"a": 1}\n', b'{\n "a": {}\n}\n', b"[1]\n[2]\n", b"{}\nno", b"", LINES.splitlines()[0]):
        assert texts(write(path, one)) == [one.decode()]


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
