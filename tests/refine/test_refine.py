"""The whole chain: from web pages to text, stopped at any moment, changed in the middle, and read by `data prepare`."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from internevo.files.errors import UserError
from internevo.refine.config import load_refinery
from internevo.refine.counts import step_counts
from internevo.refine.refine import PhasesDone, refine
from internevo.refine.shards import Document, Tally, read_shard
from internevo.text.corpus import read_documents
from internevo.text.documents import Document as Text
from tests.refine.corpus import CHINESE, GERMAN, docstrings, page, write_jsonl, write_warc
from tests.refine.running import internevo
from tests.refine.test_rules import ENGLISH_JUNK

PLANTED = {
    "02-language: language de": GERMAN,
    "03-rules: repeated n-grams": ENGLISH_JUNK["repeated n-grams"],  # repeated lines trafilatura itself leaves out
    "03-rules: abnormal characters": docstrings(3)[2] + " \u00e2\u20ac\u2122t" * 20,
    "03-rules: too few words": "Click here to read more about it, and then come back to us for all the rest.",
    "03-rules: hashes": ENGLISH_JUNK["hashes"],
    "04-safety: blocked domain": docstrings(4)[3],
    "04-safety: blocked words": docstrings(5)[4] + " Play at the casino, the best casino, a casino for you, casino.",
}


def path_of(reason: str) -> str:
    """As a part of an address."""
    return reason.replace(": ", "/").replace(" ", "-")


def crawl(folder: Path) -> Path:
    """Three archives and a file of lines: real prose, and the planted junk ten times each."""
    chosen = random.Random(0)
    pages = [(f"http://good.example/{n}", page(text)) for n, text in enumerate((*docstrings(120), *CHINESE))]
    for reason, text in PLANTED.items():
        host = "www.bad.example" if "domain" in reason else "junk.example"
        pages += [(f"http://{host}/{path_of(reason)}/{n}", page(text)) for n in range(10)]
    chosen.shuffle(pages)
    (folder / "crawl").mkdir()
    for number in range(3):
        some = [(url, text.encode()) for url, text in pages[number::3]]
        write_warc(folder / "crawl" / f"{number}.warc.gz", some)
    write_warc(folder / "crawl" / "1.warc.gz", [("http://x.example/cat.png", b"PNG")], kind="image/png")
    write_jsonl(
        folder / "crawl" / "more.jsonl", ({"text": text, "id": f"more-{n}"} for n, text in enumerate(docstrings(30)))
    )
    (folder / "domains.txt").write_text("bad.example\n")
    (folder / "words.txt").write_text("casino\n")
    return folder / "crawl"


def write_config(folder: Path, **keys: Any) -> Path:
    tree = {
        "name": "web",
        "input": [str(folder / "crawl")],
        "output": str(folder / "out"),
        "executor": {"workers": 1},
        "steps": [
            {"extract": {"fast": True}},
            "language",
            "rules",
            {"safety": {"domains": [str(folder / "domains.txt")], "words": [str(folder / "words.txt")]}},
        ],
        **keys,
    }
    path = folder / "refine.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def tallies(output: Path) -> dict[str, Tally]:
    """What each step has counted, by the names of their folders."""
    return {step.name: step.tally for step in step_counts(output)}


def go(config: Path, *overrides: str) -> dict[str, Any]:
    """Run it here; what was counted."""
    refinery = load_refinery(config, overrides)
    refine(refinery, lambda output: (output / "report.html").write_text("page"))
    return tallies(refinery.output)


def contents(output: Path) -> dict[str, bytes]:
    """All that a refinery makes, but for logs with their times."""
    files = [file for file in output.rglob("*") if file.is_file() and "logs" not in file.parts]
    return {str(file.relative_to(output)): file.read_bytes() for file in files if file.suffix != ".html"}


def shards(folder: Path) -> list[Document]:
    return [one for file in sorted(folder.iterdir()) for one in read_shard(file)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a crawl, and in `out` what is made of it."""
    folder = tmp_path_factory.mktemp("unbroken")
    crawl(folder)
    go(write_config(folder))
    return folder


def beside(unbroken: Path, tmp_path: Path) -> Path:
    """Another folder for the same crawl: names and times of files are part of what is made."""
    for name in ("domains.txt", "words.txt"):
        shutil.copy2(unbroken / name, tmp_path / name)
    path = write_config(unbroken, output=str(tmp_path / "out"))
    return path.rename(tmp_path / "refine.yaml")


def test_junk_is_dropped_for_its_reason_and_prose_kept(unbroken: Path) -> None:
    for reason in PLANTED:
        step, _, why = reason.partition(": ")
        dropped = shards(unbroken / "out" / step / "dropped")
        planted = [one for one in dropped if f"/{path_of(reason)}/" in str(one.metadata.get("url"))]
        assert [one.metadata["reason"] for one in planted] == [why] * 10, reason
    (unusable,) = shards(unbroken / "out" / "01-extract" / "dropped")
    assert unusable.metadata["reason"] == "not a page of text"
    kept = shards(unbroken / "out" / "kept")
    urls = [str(one.metadata.get("url")) for one in kept]
    assert not any("junk" in url or "bad" in url for url in urls)
    good = sum("good.example" in url for url in urls)
    assert good >= 0.9 * 124
    assert sum(one.metadata["language"] == "zh" for one in kept) == len(CHINESE)
    assert len({one.id for one in kept}) == len(kept)


def test_nothing_is_lost(unbroken: Path) -> None:
    """Each step's kept and dropped documents are those that the one before kept, in the same shards."""
    steps = sorted((unbroken / "out").glob("0*"))
    assert len(steps) == 4
    found = tallies(unbroken / "out")
    for before, after in pairwise(steps):
        for shard in sorted((before / "kept").iterdir()):
            given = [one.id for one in read_shard(shard)]
            kept = [one.id for one in read_shard(after / "kept" / shard.name)]
            dropped = [one.id for one in read_shard(after / "dropped" / shard.name)]
            assert sorted(given) == sorted(kept + dropped)
            assert kept == [one for one in given if one in set(kept)]  # in order
    for step in steps:
        tally = found[step.name]
        assert tally.kept.documents == len(shards(step / "kept"))
        assert tally.kept.characters == sum(len(one.text) for one in shards(step / "kept"))
        reasons = [one.metadata["reason"] for one in shards(step / "dropped")]
        assert {reason: heap.documents for reason, heap in tally.dropped.items()} == {
            reason: reasons.count(reason) for reason in set(reasons)
        }


def test_data_prepare_reads_what_is_kept(unbroken: Path) -> None:
    texts = [one.text for one in read_documents(unbroken / "out" / "kept") if isinstance(one, Text)]
    assert texts == [one.text for one in shards(unbroken / "out" / "kept")]


def test_workers_change_nothing(unbroken: Path, tmp_path: Path) -> None:
    config = beside(unbroken, tmp_path)
    seen: list[PhasesDone] = []
    refine(load_refinery(config, ["executor.workers=3"]), lambda output: None, seen.append)
    assert outcome(tmp_path / "out") == outcome(unbroken / "out")
    assert [one.all_done for one in seen] == sorted(one.all_done for one in seen)
    assert (seen[-1].all_done, seen[-1].all_of, seen[-1].job) == (16, 16, "04-safety sift")


def outcome(output: Path) -> dict[str, bytes]:
    """All but the plans: they name the copies of the lists."""
    return {name: content for name, content in contents(output).items() if not name.endswith("plan.json")}


@pytest.mark.slow
def test_killed_again_and_again(unbroken: Path, tmp_path: Path) -> None:
    """By SIGKILL, in the middle of whatever it and its workers do."""
    config = beside(unbroken, tmp_path)
    command = [sys.executable, "-m", "internevo", "data", "refine", config, "executor.workers=2"]
    chosen, killed = random.Random(3), 0
    for _ in range(6):
        before = made(tmp_path / "out")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while made(tmp_path / "out") == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(chosen.random() * 0.3)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        # what it has started ends with it
    assert killed >= 3
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "out") == outcome(unbroken / "out")
    assert not list((tmp_path / "out").rglob("*.partial"))


def made(output: Path) -> list[str]:
    return sorted(str(file) for file in output.rglob("*.zst*"))


@pytest.mark.slow
def test_ctrl_c_and_the_same_command_again(unbroken: Path, tmp_path: Path) -> None:
    config = beside(unbroken, tmp_path)
    command = [sys.executable, "-m", "internevo", "data", "refine", config]
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests run in the background let it be ignored
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=heeding)
    while not made(tmp_path / "out"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert b"Traceback" not in said
    assert b"the same command resumes" in said
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "04-safety: given" in done.stdout
    assert f"internevo data prepare {tmp_path / 'out' / 'kept'}" in done.stdout.replace("\n", "")
    assert outcome(tmp_path / "out") == outcome(unbroken / "out")


def test_what_the_command_says(tmp_path: Path) -> None:
    (tmp_path / "crawl").mkdir()
    for number in range(2):
        write_jsonl(tmp_path / "crawl" / f"{number}.jsonl", ({"text": text} for text in docstrings(20)[number::2]))
    for name in ("a.csv", "b.csv", "README"):
        (tmp_path / "crawl" / name).touch()
    config = write_config(tmp_path, steps=["extract", {"sample": {"other": 2}}])
    said = internevo("data", "refine", config)
    assert "files passed over for their kind: 3 (.csv 2, no ending 1)\n" in said
    assert "01-extract: given 20 documents, kept 20 (100.0%)\n" in said
    assert "02-sample: given 20 documents, kept 40 (2.00 times)\n" in said
    (tmp_path / "out/02-sample/counts/00001.json").unlink()
    assert "wrote" in internevo("data", "refine", config, "--report")
    page = (tmp_path / "out/report.html").read_text()
    assert "waiting for 02-sample: 1 of 2 shards" in page


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A configuration over two files of lines, done."""
    (tmp_path / "crawl").mkdir()
    for number in range(2):
        rows = ({"text": text} for text in docstrings(20)[number::2])
        write_jsonl(tmp_path / "crawl" / f"{number}.jsonl", rows)
    config = write_config(tmp_path, steps=["extract", "language", {"rules": {"en": {"min_units": 60}}}])
    go(config)
    return config


def changed(config: Path, **keys: Any) -> Path:
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text(encoding="utf-8")), **keys}), encoding="utf-8")
    return config


def test_what_has_changed_is_told_and_how_to_go_on(small: Path) -> None:
    out = small.parent / "out"
    before = outcome(out)
    steps = ["extract", "language", {"rules": {"en": {"min_units": 120}}}]
    with pytest.raises(UserError) as raised:
        go(changed(small, steps=steps))
    assert str(raised.value).splitlines()[1:] == [
        "  03-rules: en.min_units: was 60, is 120",
        f"Give what it was begun with, choose another output, or do anew what depends on it: rm -r {out / '03-rules'}",
    ]
    assert outcome(out) == before
    shutil.rmtree(out / "03-rules")
    stamps = {file: file.stat().st_mtime_ns for file in (out / "02-language").rglob("*.zst")}
    go(small)
    assert stamps == {file: file.stat().st_mtime_ns for file in (out / "02-language").rglob("*.zst")}  # not done again
    assert outcome(out) != before
    with pytest.raises(UserError) as raised:
        go(changed(small, steps=["extract", {"language": {"at_least": 0.7}}, *steps[2:]]))
    assert "  02-language: at_least: was 0.6, is 0.7\n" in str(raised.value)
    assert str(raised.value).endswith(f"rm -r {out / '02-language'} {out / '03-rules'}")


def test_there_is_no_result_while_the_last_step_is_done_again(small: Path) -> None:
    """Its link would lead into a folder that is only half full."""
    kept, seen = small.parent / "out" / "kept", []
    assert list(read_documents(kept))
    shutil.rmtree(small.parent / "out" / "03-rules")
    refine(load_refinery(small), lambda output: None, lambda now: seen.append(kept.is_symlink()))
    assert seen
    assert not any(seen)
    assert list(read_documents(kept))
    go(small)
    assert kept.is_symlink()


def test_steps_that_come_and_go(small: Path) -> None:
    out = small.parent / "out"
    with pytest.raises(UserError, match=r"03-rules is no step of this configuration(.|\n)*rm -r .*03-rules$"):
        go(changed(small, steps=["extract", "language"]))
    with pytest.raises(UserError, match=r"02-language is no step of this configuration\n"):
        go(changed(small, steps=["extract", {"rules": {"en": {"min_units": 60}}}]))
    # a step more at the end needs nothing removed
    more = ["extract", "language", {"rules": {"en": {"min_units": 60}}}, {"rules": {"en": {"min_units": 100}}}]
    found = go(changed(small, steps=more))
    assert list(found) == ["01-extract", "02-language", "03-rules", "04-rules"]
    assert (out / "kept").resolve().parent.name == "04-rules"
    with pytest.raises(UserError, match=r"03-rules: en\.min_units: was 60, is 80"):
        go(changed(small, steps=["extract", "language", {"rules": {"en": {"min_units": 80}}}, more[3]]))


def test_a_middle_folder_that_is_gone_takes_those_after_it_along(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scorer's code changes, and its folder is removed: nothing of the old scores may stay behind it."""
    out, scorer = small.parent / "out", small.parent / "changing.py"
    scorer.write_text("def score(text):\n    return 0.9\n")
    monkeypatch.syspath_prepend(small.parent)
    steps = ["extract", {"quality": {"classifier": "changing:score"}}, "language", "rules"]
    shutil.rmtree(out)
    go(changed(small, steps=steps))
    shutil.rmtree(out / "02-quality")
    before = outcome(out)
    with pytest.raises(UserError) as raised:
        go(small)
    assert "03-language: 02-quality, which comes before it, is gone\n" in str(raised.value)
    assert str(raised.value).endswith(f"rm -r {out / '03-language'} {out / '04-rules'}")
    assert outcome(out) == before
    for name in ("03-language", "04-rules"):
        shutil.rmtree(out / name)
    scorer.write_text("def score(text):\n    return len(text) / 2000\n")
    found = go(small)
    assert 0 < found["02-quality"].kept.documents < found["01-extract"].kept.documents
    assert sum(heap.documents for heap in (found["04-rules"].kept, *found["04-rules"].dropped.values())) == (
        found["03-language"].kept.documents
    )


def test_other_input_is_refused(small: Path) -> None:
    crawl = small.parent / "crawl"
    write_jsonl(crawl / "2.jsonl", [{"text": "more"}])
    with pytest.raises(UserError, match=r"01-extract: .*crawl came, went or changed"):
        go(small)
    (crawl / "2.jsonl").unlink()
    go(small)
    (crawl / "1.jsonl").touch()
    with pytest.raises(UserError, match=r"01-extract: .*crawl came, went or changed"):
        go(small)


def test_input_that_changes_meanwhile(small: Path) -> None:
    refinery = load_refinery(small, [f"output={small.parent / 'other'}"])
    with pytest.raises(UserError, match="crawl was changed while it was read"):
        refine(refinery, lambda output: None, lambda now: (small.parent / "crawl" / "0.jsonl").touch())


def test_two_at_once(small: Path) -> None:
    refinery = load_refinery(small)
    with pytest.raises(UserError, match=r"out is in use by process"):
        refine(refinery, lambda output: refine(refinery, lambda again: None))


def test_damaged_input_and_a_damaged_shard(small: Path) -> None:
    out, crawl = small.parent / "out", small.parent / "crawl"
    shard = out / "02-language" / "kept" / "00001.jsonl.zst"
    whole = shard.read_bytes()
    shutil.rmtree(out / "03-rules")
    shard.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"00001\.jsonl\.zst is damaged: .*Remove its step's folder and those"):
        go(small)
    for name in ("02-language", "03-rules"):
        shutil.rmtree(out / name)
    go(small)
    assert shard.read_bytes() == whole
    shutil.rmtree(out)
    (crawl / "x.jsonl.gz").write_bytes(b"\x1f\x8b\x08 no")
    with pytest.raises(UserError, match=r"x\.jsonl\.gz is damaged"):
        go(small)


KILLER = "import os, signal\ndef score(text):\n    os.kill(os.getpid(), signal.SIGKILL)\n"


def test_a_killed_worker_is_told(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small.parent / "killer.py").write_text(KILLER)
    monkeypatch.syspath_prepend(small.parent)
    steps = [*yaml.safe_load(small.read_text(encoding="utf-8"))["steps"], {"quality": {"classifier": "killer:score"}}]
    with pytest.raises(UserError, match="a worker process was killed, perhaps because memory ran out"):
        go(changed(small, steps=steps))
    (small.parent / "killer.py").write_text("def score(text):\n    return 0.9\n")
    assert go(small)["04-quality"].kept.documents > 10


def test_a_broken_scorer_empties_no_corpus(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small.parent / "broken.py").write_text("def score(text):\n    return 1 / 0\n")
    monkeypatch.syspath_prepend(small.parent)
    steps = [*yaml.safe_load(small.read_text(encoding="utf-8"))["steps"], {"quality": {"classifier": "broken:score"}}]
    with pytest.raises(UserError, match=r"04-quality failed on .*00000.* first on .*ZeroDivisionError: div"):
        go(changed(small, steps=steps))
    assert not (small.parent / "out/04-quality/counts/00000.json").exists()
    log = (small.parent / "out/04-quality/logs/sift/logs/task_00000.log").read_text()
    assert "return 1 / 0" in log


def test_an_empty_shard_goes_through(small: Path) -> None:
    (small.parent / "crawl" / "2.jsonl").write_text("\n")
    shutil.rmtree(small.parent / "out")
    found = go(small)
    assert found["03-rules"].kept.documents > 10
    assert shards(small.parent / "out" / "kept")
    assert list(read_documents(small.parent / "out" / "kept"))


FULL = """
set -e
mount -t tmpfs -o size={size} tmpfs {disk}
if {command}; then exit 1; fi
test ! -e {disk}/out/kept
mount -o remount,size=100m {disk}
{command}
cp -r {disk}/out {result}
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", ["100k", "400k"])
def test_a_full_disk(tmp_path: Path, size: str) -> None:
    """A real small disk, later made larger: it is said, and nothing is lost."""
    namespace = ["unshare", "--map-root-user", "--mount"]  # the disk is seen by this test alone
    probe = subprocess.run([*namespace, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no disk can be mounted here: {probe.stderr.strip()}")
    noise = random.Random(0)
    rows = ({"text": f"{text} {noise.randbytes(1500).hex()}"} for text in docstrings())
    (tmp_path / "crawl").mkdir()
    write_jsonl(tmp_path / "crawl" / "a.jsonl", rows)
    disk, result = tmp_path / "disk", tmp_path / "result"
    disk.mkdir()
    config = write_config(tmp_path, output=str(disk / "out"), steps=["extract", {"language": {"at_least": 0.1}}])
    command = f"{sys.executable} -m internevo data refine {config}"
    script = FULL.format(size=size, disk=disk, command=command, result=result)
    done = subprocess.run([*namespace, "sh", "-c", script], capture_output=True, text=True, timeout=300)
    said = " ".join(done.stderr.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"no space is left for {disk / 'out'}. Make some and run the same command again: it resumes" in said
    assert "Traceback" not in said
    go(config, f"output={tmp_path / 'unbroken'}")
    assert outcome(result) == outcome(tmp_path / "unbroken")
