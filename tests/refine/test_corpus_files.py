"""Which files are read: all that are known, each once, and what is left out is said."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from warcio.warcwriter import WARCWriter

from internevo.files.errors import UserError
from internevo.refine.code.repositories import Repositories
from internevo.refine.config import load_refinery
from internevo.refine.corpus_files import corpus_files, files_below, passed_over
from internevo.refine.extract import Extract
from internevo.refine.plan import begin
from internevo.refine.step import Place
from tests.refine.corpus import write_jsonl
from tests.refine.running import kept, run_phases
from tests.refine.test_refine import write_config


def test_files_of_folders(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/1.WARC.gz", "a.parquet", ".hidden/x.jsonl", "b/notes.txt", "b/.y.jsonl"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    single = write_jsonl(tmp_path / "z.jsonl", [])
    names = [file.relative_to(tmp_path).as_posix() for file in corpus_files([single, tmp_path / "in"])]
    assert names == ["z.jsonl", "in/a.parquet", "in/b/1.WARC.gz", "in/b/2.jsonl"]
    with pytest.raises(UserError, match="no file ends in"):
        corpus_files([_empty(tmp_path)])
    with pytest.raises(UserError, match=r"notes\.txt is of no known kind"):
        corpus_files([tmp_path / "in" / "b" / "notes.txt"])
    with pytest.raises(UserError, match="nowhere does not exist"):
        corpus_files([tmp_path / "nowhere"])


def _empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_wet_files_are_archives(tmp_path: Path) -> None:
    """Texts of a crawl as Common Crawl names them."""
    (tmp_path / "in").mkdir()
    for number, name in enumerate(("CC-MAIN-1.warc.wet.gz", "CC-MAIN-2.warc.wet", "3.wet.gz")):
        with (tmp_path / "in" / name).open("wb") as file:
            writer = WARCWriter(file, gzip=name.endswith(".gz"))
            writer.write_record(
                writer.create_warc_record(
                    f"http://example.com/{number}",
                    "conversion",
                    payload=io.BytesIO(f"A text of a page, {number}.".encode()),
                    warc_content_type="text/plain",
                )
            )
    run_phases(Extract(shards=1), place := Place((tmp_path / "in",), tmp_path / "step"))
    assert sorted(one.text for one in kept(place)) == [f"A text of a page, {number}." for number in range(3)]
    assert not passed_over([tmp_path / "in"])


def test_links_to_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "disk2"
    for folder in (inside / "a", outside / "b"):
        folder.mkdir(parents=True)
        write_jsonl(folder / "x.jsonl", [])
    (inside / "more").symlink_to(outside)
    (outside / "b" / "back").symlink_to(inside)
    (inside / "a" / "up").symlink_to("..")
    names = [file.relative_to(tmp_path).as_posix() for file in corpus_files([inside])]
    assert names == ["in/a/x.jsonl", "in/more/b/x.jsonl"]
    assert [file.name for file in files_below(inside, links=False)] == ["x.jsonl"]


def test_a_file_behind_a_link_is_part_of_what_was_begun_with(tmp_path: Path) -> None:
    (tmp_path / "crawl").mkdir()
    (tmp_path / "disk2").mkdir()
    file = write_jsonl(tmp_path / "disk2" / "x.jsonl", [{"text": "one"}])
    (tmp_path / "crawl" / "more").symlink_to(tmp_path / "disk2")
    refinery = load_refinery(write_config(tmp_path, steps=["extract"]))
    begin(refinery)
    begin(refinery)
    write_jsonl(file, [{"text": "one"}, {"text": "two"}])
    with pytest.raises(UserError, match=r"crawl came, went or changed"):
        begin(refinery)


def test_a_file_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    one = write_jsonl(tmp_path / "in" / "a.jsonl", [])
    with pytest.raises(UserError, match=r"a\.jsonl would be read twice: .*a\.jsonl is the same file"):
        corpus_files([tmp_path / "in", one])
    (tmp_path / "in" / "b.jsonl").symlink_to(one)
    with pytest.raises(UserError, match=r"b\.jsonl would be read twice: .*a\.jsonl is the same file"):
        corpus_files([tmp_path / "in"])


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.csv", "c/d.CSV", "c/README", ".git/e.csv", "f.zip"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    assert passed_over([tmp_path / "in"]) == {".csv": 2, "": 1, ".zip": 1}
    assert passed_over([tmp_path / "in" / "a.jsonl"]) == {}


def test_a_folder_that_cannot_be_listed_hides_nothing(nobody: Path) -> None:
    for name in ("r/a", "r/b"):
        (nobody / "in" / name).mkdir(parents=True)
        write_jsonl(nobody / "in" / name / "x.jsonl", [{"text": "one"}])
    (nobody / "in" / "r" / "b").chmod(0)
    for work in (
        lambda: corpus_files([nobody / "in"]),
        lambda: begin(load_refinery(write_config(nobody, input=[str(nobody / "in")], steps=["repositories"]))),
        lambda: run_phases(Repositories(shards=1), Place((nobody / "in",), nobody / "step")),
    ):
        with pytest.raises(UserError, match=r"in/r/b cannot be listed: Permission denied"):
            work()
    (nobody / "in" / "r" / "b").chmod(0o777)
    shutil.rmtree(nobody / "in")


def test_a_link_to_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match=r"b\.jsonl is a link to nothing"):
        corpus_files([tmp_path])
