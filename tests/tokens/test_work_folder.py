"""The folder that `data prepare` works in: what is gone on with, what is begun anew, and what is not touched."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from internevo.files.errors import UserError
from internevo.tokens import work_folder
from internevo.tokens.build import BytesDone
from internevo.tokens.import_internevo import import_internevo
from internevo.tokens.prepare import prepare
from tests.tokens.test_prepare import contents, lines, tokenizer
from tests.tokens.test_prepare_resumed import Stop, numbered

__all__ = ["tokenizer"]  # a fixture

OPTIONS = {"held_out": 0.2, "max_rejects": 1.0, "piece_bytes": 1500, "shard_tokens": 2500}


def begun(folder: Path, tokenizer: Path) -> Path:
    """A file of which a shard is whole and more is tokenised."""
    path = numbered(folder / "a.jsonl", 200)

    def stop(progress: object) -> None:
        if len(list((folder / "out.partial" / "store").glob("train-*.idx"))) == 2:
            raise Stop

    with pytest.raises(Stop):
        prepare([path], folder / "out", tokenizer, progress=stop, **OPTIONS)
    return path


def test_fewer_rejects_may_be_allowed_when_all_is_joined(tmp_path: Path, tokenizer: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", 200)
    go = partial(prepare, [path], tmp_path / "out", tokenizer, piece_bytes=1500, shard_tokens=1)

    def stop(progress: BytesDone) -> None:
        if progress.read == progress.size:
            raise Stop

    with pytest.raises(Stop):
        go(max_rejects=0.03, progress=stop)
    with pytest.raises(UserError, match=r"4 of the first 200 documents .*a\.jsonl:162: not JSON"):
        go(max_rejects=0.001)
    made = go(max_rejects=0.005)  # fewer than 1,000 documents count as 1,000
    assert (made.rejected, made.documents) == (4, 196)


def test_an_output_that_is_taken_away_is_made_again(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run that made it was killed before it had removed its folder of work."""
    path = numbered(tmp_path / "a.jsonl", 200)
    go = partial(prepare, [path], tmp_path / "out", tokenizer, **OPTIONS)

    def killed(folder: Path) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(work_folder, "_empty", killed)
        with pytest.raises(Stop):
            go()
    assert (tmp_path / "out.partial" / "joined.json").exists()
    with pytest.raises(UserError, match="out exists already"):
        go()
    (tmp_path / "out").rename(tmp_path / "first")
    go()
    assert contents(tmp_path / "out") == contents(tmp_path / "first")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.jsonl", "first", "out"]


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00001.idx", "heldout-00000.idx", "rejects.jsonl"])
@pytest.mark.parametrize("damage", ["gone", "empty"])
def test_a_whole_shard_that_is_lost_is_said(tmp_path: Path, tokenizer: Path, name: str, damage: str) -> None:
    path = begun(tmp_path, tokenizer)
    file = tmp_path / "out.partial" / "store" / name
    file.unlink() if damage == "gone" else file.write_bytes(b"")
    go = partial(prepare, [path], tokenizer_path=tokenizer, **OPTIONS)
    said = "is missing" if damage == "gone" else r"has 0 bytes and was written with [\d,]+"
    with pytest.raises(UserError, match=rf"{name} {said}\. .*remove .*out\.partial"):
        go(output=tmp_path / "out")
    shutil.rmtree(tmp_path / "out.partial")
    go(output=tmp_path / "out")
    go(output=tmp_path / "unbroken")
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


def test_work_without_its_plan_is_not_gone_on_with(tmp_path: Path, tokenizer: Path) -> None:
    """It may be of another corpus."""
    begun(tmp_path, tokenizer)
    (tmp_path / "out.partial" / "plan.json").unlink()
    other = lines(tmp_path / "b.jsonl", *["another corpus"] * 300)
    with pytest.raises(
        UserError, match=r"out\.partial is needed to work in and has no plan\.json.* holds joined\.json"
    ):
        prepare([other], tmp_path / "out", tokenizer, **OPTIONS)
    assert (tmp_path / "out.partial" / "joined.json").exists()


def test_a_removal_that_is_cut_short_keeps_the_plan(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = numbered(tmp_path / "a.jsonl", 200)
    go = partial(prepare, [path], tmp_path / "out", tokenizer, **OPTIONS)

    def fail(folder: Path) -> None:
        raise OSError("the disk is away")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fail)
        with pytest.warns(UserWarning, match=r"out\.partial is not needed any more, but .*: the disk is away"):
            go()
    assert (tmp_path / "out").exists()
    assert (tmp_path / "out.partial" / "plan.json").exists()


def test_a_folder_of_the_users_own_is_not_touched(tmp_path: Path, tokenizer: Path) -> None:
    path = lines(tmp_path / "a.jsonl", "one", "two")
    own = tmp_path / "out.partial"
    own.mkdir()
    (own / "precious").write_text("mine")
    with pytest.raises(UserError, match=r"out\.partial .* holds precious\. Move it away, or choose another name"):
        prepare([path], tmp_path / "out", tokenizer)
    with pytest.raises(UserError, match=r"out\.partial .* holds precious"):
        prepare([path], tmp_path / "out", tokenizer, text_key="wrong")
    assert contents(own) == {"precious": b"mine"}
    (own / "precious").unlink()  # an empty folder is as good as none
    assert prepare([path], tmp_path / "out", tokenizer).documents == 2
    assert not own.exists()


def test_a_place_where_nothing_can_be_made_is_said(tmp_path: Path, tokenizer: Path) -> None:
    path = lines(tmp_path / "a.jsonl", "one", "two")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Not a directory\. Fix it and run the same command again"):
        prepare([path], tmp_path / "file" / "out", tokenizer)
    (tmp_path / "taken.partial").touch()
    with pytest.raises(UserError, match=r"taken\.partial: File exists\. Fix it"):
        prepare([path], tmp_path / "taken", tokenizer)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.jsonl", "file", "taken.partial"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_said(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(
        UserError, match=r"out\.partial is on a file system without locks .* Choose a folder on another"
    ):
        prepare([lines(tmp_path / "a.jsonl", "one")], tmp_path / "out", tokenizer)


def test_an_output_that_cannot_be_one_is_said_before_the_work(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "corpus").mkdir()
    path = lines(tmp_path / "corpus" / "a.jsonl", "one", "two")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "same").symlink_to(tmp_path / "corpus")
    for inputs, output, message in (
        ([path], tmp_path / "link", "link is a link to nowhere; it is not overwritten"),
        ([path], Path("s3://bucket/out"), "s3:/bucket/out is in object storage, and stores are made on disks"),
        ([tmp_path / "corpus"], tmp_path / "corpus" / "out", "it would be its own input"),
        ([tmp_path / "corpus"], tmp_path / "same" / "deep" / "out", "it would be its own input"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(inputs, output, tokenizer)
        with pytest.raises(UserError, match=message):
            prepare([path], output, tokenizer, held_out_inputs=inputs)
    assert not Path("s3:").exists()
    assert [one.name for one in (tmp_path / "corpus").iterdir()] == ["a.jsonl"]
    assert prepare([path], tmp_path / "corpus" / "out", tokenizer).documents == 2


def test_an_import_is_not_made_in_its_input(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_text('{"tokens": [1]}\n')
    with pytest.raises(UserError, match="it would be its own input"):
        import_internevo([tmp_path], tmp_path / "out")
    assert import_internevo([tmp_path / "a.bin"], tmp_path / "out").documents == 1
