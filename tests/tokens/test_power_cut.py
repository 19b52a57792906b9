"""A power cut at any moment of `data prepare`: what was not brought to the disk is lost, and the result is the same."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from internevo.tokens.prepare import prepare
from tests.tokens.test_prepare import contents, tokenizer
from tests.tokens.test_prepare_resumed import Stop, text

__all__ = ["tokenizer"]  # a fixture


class Disk:
    """What fsync has brought to the disk of what is below a folder, by inode."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.root, self.left, self.syncs = root, -1, 0
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, dict[str, int]] = {}
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _fsync(self, opened: int) -> None:
        if not self.left:
            raise Stop
        self.left, self.syncs = self.left - 1, self.syncs + 1
        number = os.fstat(opened).st_ino
        (path,) = [one for one in (self.root, *self.root.rglob("*")) if one.lstat().st_ino == number]
        if path.is_dir():
            self._folders[number] = {one.name: one.lstat().st_ino for one in path.iterdir()}
        else:
            self._files[number] = path.read_bytes()

    def cut(self, lost: Path, names: str) -> None:
        """Leave what is on the disk, with the `names` that were synced, or with those of now, as a journal keeps them.

        What `lost` held until now is kept there for looking at it.
        """
        now = {one.lstat().st_ino: one for one in (self.root, *self.root.rglob("*")) if one.is_dir()}
        if names == "now":
            self._folders = {
                number: {one.name: one.lstat().st_ino for one in path.iterdir()} for number, path in now.items()
            }
        folders = now.keys() | self._folders.keys()
        number = self.root.lstat().st_ino
        self.root.rename(lost)
        self._write(self.root, number, folders)

    def _write(self, path: Path, number: int, folders: set[int]) -> None:
        if number in folders:
            path.mkdir()
            for name, inner in self._folders.get(number, {}).items():
                self._write(path / name, inner, folders)
        else:
            path.write_bytes(self._files.get(number, b""))


@pytest.mark.parametrize("names", ["synced", "now"])
def test_a_power_cut_anywhere(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    """Every piece is a shard, but the last ones, which hold rejects alone."""
    path, root = tmp_path / "a.jsonl", tmp_path / "root"
    good = [json.dumps({"text": text(number)}) for number in range(30)]
    path.write_text("\n".join([*good[:15], "broken", *good[15:], *["broken"] * 300]))
    go = partial(prepare, [path], tokenizer_path=tokenizer, held_out=0.2, max_rejects=1.0)
    go = partial(go, piece_bytes=1500, shard_tokens=1)
    root.mkdir()
    with monkeypatch.context() as patch:
        disk = Disk(root, patch)
        go(output=root / "out")
        syncs = disk.syncs
    unbroken = contents(root / "out")
    assert len([name for name in unbroken if name.endswith(".idx")]) > 2
    for left in range(syncs + 1):
        shutil.rmtree(root)
        root.mkdir()
        with monkeypatch.context() as patch:
            disk = Disk(root, patch)
            disk.left = left
            if left < syncs:
                with pytest.raises(Stop):
                    go(output=root / "out")
            else:
                go(output=root / "out")
            disk.left = -1
            disk.cut(tmp_path / "lost", names)
        if not (root / "out").exists():
            assert left < syncs
            go(output=root / "out")
        assert contents(root / "out") == unbroken, f"the power was cut before sync {left + 1} of {syncs}"
        shutil.rmtree(tmp_path / "lost")
