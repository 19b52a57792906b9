"""Shards: what is written is read, however long it is, and what is damaged is told."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow
import pytest

from internevo.files.errors import UserError
from internevo.refine.shards import KEPT, Document, ShardWriter, read_shard, shard_name


@pytest.mark.parametrize("length", [0, 10, 2**20, 5 * 2**20 + 3])
def test_documents_of_any_length(tmp_path: Path, length: int) -> None:
    written = [Document("x" * length, "long"), Document("a\nb", "short", {"url": "u"})]
    with ShardWriter(tmp_path, 0) as out:
        for document in written:
            out.write(document)
    assert list(read_shard(tmp_path / KEPT / shard_name(0))) == written


def test_a_last_line_that_does_not_end(tmp_path: Path) -> None:
    path = tmp_path / shard_name(0)
    with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write(b'{"text": "one", "id": "1"}\n{"text": "two", "id": "2"}')
    documents = read_shard(path)
    assert next(documents).text == "one"
    with pytest.raises(UserError, match="its last line does not end"):
        next(documents)


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
        out.write(Document("text", "id"))
    names = {"kept": "00007.jsonl.zst.partial", "dropped": "00007.jsonl.zst.partial", "counts": "00007.json.partial"}
    steps = ((("synced", name), ("renamed", name), ("synced", folder)) for folder, name in names.items())
    assert done == [one for step in steps for one in step]
