"""Shards: what is written is read, in whatever pieces it comes, and what is damaged is told."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internevo.files.errors import UserError
from internevo.refine.shards import KEPT, Document, ShardWriter, _lines, read_shard, shard_name


class Pieces:
    """A file that gives these pieces one after the other."""

    def __init__(self, *pieces: bytes):
        self._pieces = iter(pieces)

    def read(self, size: int) -> bytes:
        return next(self._pieces, b"")


@given(st.lists(st.text("ab\n", min_size=1).map(str.encode)))
def test_lines_come_out_whatever_pieces_they_come_in(pieces: list[bytes]) -> None:
    *whole, left = b"".join(pieces).split(b"\n")
    lines = _lines(Pieces(*pieces))
    assert list(islice(lines, len(whole))) == whole
    if left:
        with pytest.raises(ValueError, match="its last line does not end"):
            next(lines)
    else:
        assert next(lines, None) is None


@pytest.mark.timeout(100)
def test_a_long_line_is_put_together_once() -> None:
    """Once for each of its pieces, it would take hours."""
    (line,) = _lines(Pieces(*[b"x" * 100] * 300_000, b"\n"))
    assert len(line) == 30_000_000


def test_a_shard_without_documents_is_not_an_empty_file(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 0):
        pass
    path = tmp_path / KEPT / shard_name(0)
    assert path.stat().st_size
    assert list(read_shard(path)) == []
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"00000\.jsonl\.zst is damaged: it is empty\. Remove its step's folder"):
        list(read_shard(path))


def test_a_name_is_given_to_what_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    fsync, rename = os.fsync, Path.rename

    def synced(number: int) -> None:
        done.append(("synced", Path(os.readlink(f"/proc/self/fd/{number}")).name))
        fsync(number)

    def renamed(self: Path, target: Path) -> Path:
        done.append(("renamed", self.name))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    with ShardWriter(tmp_path, 7) as out:
        out.keep(Document("text", "id"))
    names = {"kept": "00007.jsonl.zst.partial", "dropped": "00007.jsonl.zst.partial", "counts": "00007.json.partial"}
    steps = ((("synced", name), ("renamed", name), ("synced", folder)) for folder, name in names.items())
    assert done == [one for step in steps for one in step]
