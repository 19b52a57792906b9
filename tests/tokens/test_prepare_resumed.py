"""`data prepare` in pieces: cut anywhere, killed at any moment, gone on with, and the same bytes in the end."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from functools import partial
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather, parquet

from internevo.files.errors import UserError
from internevo.text.documents import Document, Reject
from internevo.text.pieces import Piece, cut
from internevo.tokens.megatron import StoreError
from internevo.tokens.prepare import prepare
from internevo.tokens.shards import Joiner
from internevo.tokens.store import TokenStore
from internevo.tokens.workers import Ready
from tests.tokens.test_prepare import contents, documents, lines, tokenizer

__all__ = ["tokenizer"]  # a fixture

WORDS = "the of and to in is that for it as was with be by on not he his but at are this have".split()  # noqa: SIM905


def text(number: int) -> str:
    chosen = random.Random(number)
    return f"{number} " + " ".join(chosen.choices(WORDS, k=chosen.randrange(60)))


def numbered(path: Path, count: int) -> Path:
    """JSON lines, of which one in fifty cannot be used, and one in forty is blank."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write("broken" if number % 50 == 7 else json.dumps({"text": text(number)}))
            file.write("\n\n" if number % 40 == 3 else "\n")
    return path


def found(pieces: list[Piece]) -> list[str | None]:
    """The documents of pieces in order; None for a reject."""
    items = [one for piece in pieces for _, one in piece.read("text")]
    return [one.text if isinstance(one, Document) else None for one in items if one is not None]


@settings(deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=40), max_size=30),
    st.integers(1, 200),
    st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
    st.booleans(),
)
def test_every_line_belongs_to_one_piece(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], piece_bytes: int, end: bytes, ends: bool
) -> None:
    content = end.join(json.dumps({"text": one}, ensure_ascii=False).encode() for one in texts) + end * ends
    folder = tmp_path_factory.mktemp("cut")
    (folder / "a.jsonl").write_bytes(content)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(content))
    for file in sorted(folder.iterdir()):
        pieces = list(cut([file], piece_bytes))
        assert found(pieces) == texts
        assert sum(piece.size for piece in pieces) == (file.stat().st_size if pieces else 0) or file.suffix == ".gz"


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow_in_pieces(tmp_path: Path, kind: str) -> None:
    path, schema = tmp_path / "a.arrow", pyarrow.schema([("text", pyarrow.string()), ("n", pyarrow.int64())])
    texts = [text(number) if number % 9 else None for number in range(100)]
    with (pyarrow.ipc.new_file if kind == "file" else pyarrow.ipc.new_stream)(path, schema) as writer:
        for batch in pyarrow.table({"text": texts, "n": range(100)}).to_batches(max_chunksize=7):
            writer.write_batch(batch)
    pieces = list(cut([path], 3000))
    assert len(pieces) > 3
    assert found(pieces) == texts
    with pytest.raises(UserError, match="has no column 'body'; it has text, n"):
        list(pieces[0].read("body"))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"a\.arrow .*damaged"):
        found(list(cut([path], 3000)))


def test_a_piece_of_an_arrow_file_is_read_without_those_before(tmp_path: Path) -> None:
    """A packed batch must be unpacked to be passed over: in pieces, that would be the square of the file."""
    path, texts = tmp_path / "a.feather", [text(number) for number in range(100)]
    feather.write_feather(pyarrow.table({"text": texts}), path, compression="lz4", chunksize=10)
    first, *others = list(cut([path], 1000))
    assert found([first, *others]) == texts
    content = bytearray(path.read_bytes())
    frame = content.index(b"\x04\x22\x4d\x18")  # where the first of LZ4's frames begins
    content[frame : frame + 4] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        found([first])
    read = found(others)
    assert len(read) > 50
    assert read == texts[-len(read) :]


def test_a_line_longer_than_a_piece_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        file.write('{"text": "one"}\n{"text": "' + "x" * 2**25 + '"}\n{"text": "two"}\n')
    first, *others = cut([path], 2**20)
    tracemalloc.start()
    try:
        assert found(others) == ["two"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**23
    assert [len(one or "") for one in found([first])] == [3, 2**25]


def test_parquet_in_pieces(tmp_path: Path) -> None:
    path, texts = tmp_path / "a.parquet", [text(number) for number in range(100)]
    parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=10)
    pieces = list(cut([path], 2000))
    assert len(pieces) > 3
    assert found(pieces) == texts


def test_small_files_share_a_piece(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02}.txt").write_text(text(number))
    pieces = list(cut(sorted(tmp_path.iterdir()), 500))
    assert 3 < len(pieces) < 20
    assert found(pieces) == [text(number) for number in range(30)]


def test_pieces_and_workers_change_no_document(tmp_path: Path, tokenizer: Path) -> None:
    """Not even the lines that rejects are told by, in files and archives."""
    plain = numbered(tmp_path / "a.jsonl", 400)
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    made = {}
    for name, piece_bytes, workers in (("whole", 2**24, 1), ("cut", 2000, 1), ("by two", 2000, 2)):
        output = tmp_path / name
        prepare(
            [plain, packed], output, tokenizer, held_out=0.2, workers=workers, max_rejects=1, piece_bytes=piece_bytes
        )
        made[name] = contents(output)
    assert made["whole"] == made["cut"] == made["by two"]
    rejects = [json.loads(line) for line in made["cut"]["rejects.jsonl"].splitlines()]
    bad = [number for number, line in enumerate(plain.read_text().splitlines(), 1) if line == "broken"]
    assert [one["where"] for one in rejects] == [f"{file}:{number}" for file in (plain, packed) for number in bad]


def test_shards(tmp_path: Path, tokenizer: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", 400)
    options = {"held_out": 0.2, "max_rejects": 1.0, "piece_bytes": 2000}
    prepare([path], tmp_path / "one", tokenizer, **options)
    manifest = prepare([path], tmp_path / "some", tokenizer, shard_tokens=3000, **options)
    count = len(list((tmp_path / "some").glob("train-*.bin")))
    assert count > 3
    assert len(manifest.sha256) == 4 * count + 1
    for kind in ("train", "heldout"):
        assert documents(tmp_path / "some", kind) == documents(tmp_path / "one", kind)
    (tmp_path / "some" / f"train-00001-of-{count:05}.idx").unlink()
    with pytest.raises(StoreError, match=rf"train-00001-of-{count:05}\.idx does not exist, but other shards"):
        TokenStore.open_source(tmp_path / "some")


class Stop(Exception):
    pass


@pytest.mark.parametrize("shard_tokens", [2**30, 2500])
@settings(deadline=None, max_examples=25)
@given(stops=st.lists(st.integers(0, 25), max_size=6), in_the_middle=st.booleans())
def test_stopped_anywhere_it_goes_on(
    shard_tokens: int,
    stops: list[int],
    in_the_middle: bool,
    tokenizer: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Stopped after any numbers of pieces, before or after they are joined, however often: the same bytes."""
    folder = tmp_path_factory.mktemp("stopped")
    path = numbered(folder / "a.jsonl", 200)
    go = partial(prepare, [path], tokenizer_path=tokenizer, held_out=0.2, max_rejects=1.0, piece_bytes=1500)
    go = partial(go, shard_tokens=shard_tokens)
    go(output=folder / "unbroken")
    real, left = Joiner.add, 0

    def add(joiner: Joiner, ready: Ready) -> None:
        nonlocal left
        left -= 1
        if left < 0 and in_the_middle:
            raise Stop
        real(joiner, ready)
        if left < 0:
            raise Stop

    for left in stops:  # noqa: B007, add counts it down
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Joiner, "add", add)
            try:
                go(output=folder / "out")
                break
            except Stop:
                assert not (folder / "out").exists()
    if not (folder / "out").exists():
        go(output=folder / "out")
    assert contents(folder / "out") == contents(folder / "unbroken")
    assert sorted(one.name for one in folder.iterdir()) == ["a.jsonl", "out", "unbroken"]


JOB = """
import sys
from pathlib import Path
from internevo.tokens.prepare import prepare
if __name__ == "__main__":
    prepare([Path(sys.argv[1])], Path(sys.argv[2]), Path(sys.argv[3]), held_out=0.1, max_rejects=1, workers=2,
            shard_tokens=200_000, piece_bytes=20_000)
"""


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path, tokenizer: Path) -> None:
    """By SIGKILL, in the middle of whatever it and its workers do."""
    path = numbered(tmp_path / "a.jsonl", 30_000)
    (tmp_path / "job.py").write_text(JOB)
    prepare(
        [path], tmp_path / "unbroken", tokenizer, held_out=0.1, max_rejects=1, shard_tokens=200_000, piece_bytes=20_000
    )
    command = [sys.executable, tmp_path / "job.py", path, tmp_path / "out", tokenizer]
    killed = 0
    for delay in (0.0, 0.2, 0.05, 0.4, 0.1, 0.3):
        before = progress_of(tmp_path)
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 120
        while progress_of(tmp_path) == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(delay)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 3
    if not (tmp_path / "out").exists():
        subprocess.run(command, check=True, timeout=120)
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")
    assert not (tmp_path / "out.partial").exists()


def progress_of(folder: Path) -> tuple[list[str], str]:
    joined = folder / "out.partial" / "joined.json"
    pieces = sorted(file.name for file in folder.glob("out.partial/pieces/*/*.npz"))
    return pieces, joined.read_text() if joined.exists() else ""


@pytest.mark.slow
def test_ctrl_c_and_the_same_command_again(tmp_path: Path, tokenizer: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", 300_000)
    command = [sys.executable, "-m", "internevo", "data", "prepare", path, "--tokenizer", tokenizer]
    command += ["--out", tmp_path / "out", "--max-rejects", "1", "--workers", "2"]
    # whoever runs the tests in the background lets them, and what they start, ignore SIGINT
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=heeding)
    while not list(tmp_path.glob("out.partial/pieces/*/*.npz")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"Traceback" not in said
    assert b"the same command resumes" in said
    assert not (tmp_path / "out").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"rejected: 6,000, kept aside in {tmp_path}" in done.stdout.replace("\n", " ")
    assert not (tmp_path / "out.partial").exists()


def begun(tmp_path: Path, tokenizer: Path) -> Path:
    """A file of which some is tokenised."""
    path = numbered(tmp_path / "a.jsonl", 200)

    def stop(progress: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        prepare([path], tmp_path / "out", tokenizer, max_rejects=1, piece_bytes=1500, progress=stop)
    return path


def test_other_options_or_inputs_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    path = begun(tmp_path, tokenizer)
    again = partial(prepare, output=tmp_path / "out", tokenizer_path=tokenizer, max_rejects=1, piece_bytes=1500)
    with pytest.raises(UserError, match=r"out\.partial was begun with other .*\n  held_out: was 0\.0, is 0\.1"):
        again([path], held_out=0.1)
    other = lines(tmp_path / "b.jsonl", "more")
    with pytest.raises(UserError, match=r"inputs: .*b\.jsonl came, went or changed\nGive what it was"):
        again([path, other])
    with pytest.raises(UserError, match=r"inputs: .*a\.jsonl came, went or changed"):
        again([path, path])
    path.touch()
    with pytest.raises(UserError, match=r"inputs: .*a\.jsonl came, went or changed"):
        again([path])


def test_another_order_of_inputs_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    path, other = begun(tmp_path, tokenizer), lines(tmp_path / "b.jsonl", "more")
    shutil.rmtree(tmp_path / "out.partial")
    go = partial(prepare, output=tmp_path / "out", tokenizer_path=tokenizer, max_rejects=1, piece_bytes=1500)

    def stop(progress: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        go([path, other, path], progress=stop)
    with pytest.raises(UserError, match="inputs: their order"):
        go([path, path, other])
    assert go([path, other, path]).documents == 2 * 196 + 1


def test_an_input_that_changes_meanwhile(tmp_path: Path, tokenizer: Path) -> None:
    path = lines(tmp_path / "a.jsonl", "one", "two")
    with pytest.raises(UserError, match=r"a\.jsonl was changed while it was read. Remove .*out\.partial"):
        prepare([path], tmp_path / "out", tokenizer, progress=lambda progress: path.touch())


def test_two_at_once(tmp_path: Path, tokenizer: Path) -> None:
    path = lines(tmp_path / "a.jsonl", "one", "two")
    go = partial(prepare, [path], tmp_path / "out", tokenizer)
    with pytest.raises(UserError, match=r"out\.partial is in use by process"):
        go(progress=lambda progress: (go(), None)[1])


@pytest.mark.parametrize("content", [b"", b"\0" * 2000, None])
def test_a_damaged_piece_is_made_again(tmp_path: Path, tokenizer: Path, content: bytes | None) -> None:
    path = begun(tmp_path, tokenizer)
    piece = next((tmp_path / "out.partial").glob("pieces/*/*.npz"))
    if content is None:
        whole = bytearray(piece.read_bytes())
        whole[200:240] = bytes(40)
        content = bytes(whole)
    piece.write_bytes(content)
    again = partial(prepare, [path], tokenizer_path=tokenizer, max_rejects=1, piece_bytes=1500)
    assert again(output=tmp_path / "out").documents == 196
    again(output=tmp_path / "unbroken")
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


def test_rejects_know_their_line() -> None:
    assert Reject("a", 3, "why").after(10).where == "a:13"
    assert Reject("a", None, "why").after(10).where == "a"


FULL = """
set -e
mount -t tmpfs -o size={size} tmpfs {disk}
if {python} -m internevo data prepare {corpus} --tokenizer {tokenizer} --out {disk}/out --workers 2 --max-rejects 1
then exit 1; fi
test ! -e {disk}/out
mount -o remount,size=100m {disk}
{python} -m internevo data prepare {corpus} --tokenizer {tokenizer} --out {disk}/out --workers 2 --max-rejects 1
cp -r {disk}/out {result}
"""


@pytest.mark.slow
# room for no piece, for some, for all but not for the store too
@pytest.mark.parametrize("size", ["1m", "8m", "16m"])
def test_a_full_disk(tmp_path: Path, tokenizer: Path, size: str) -> None:
    """A real small disk, later made larger: it is said, and nothing is lost."""
    namespace = ["unshare", "--map-root-user", "--mount"]  # the disk is seen by this test alone
    probe = subprocess.run([*namespace, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no disk can be mounted here: {probe.stderr.strip()}")
    corpus = numbered(tmp_path / "a.jsonl", 120_000)
    disk, result = tmp_path / "disk", tmp_path / "result"
    disk.mkdir()
    script = FULL.format(size=size, disk=disk, python=sys.executable, corpus=corpus, tokenizer=tokenizer, result=result)
    done = subprocess.run([*namespace, "sh", "-c", script], capture_output=True, text=True, timeout=300)
    said = " ".join(done.stderr.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"no space is left for {disk / 'out.partial'}. Make some and run the same command again: it resumes" in said
    assert "Traceback" not in said
    prepare([corpus], tmp_path / "unbroken", tokenizer, max_rejects=1)
    assert contents(result) == contents(tmp_path / "unbroken")


@pytest.mark.slow
def test_a_killed_worker_is_told(tmp_path: Path, tokenizer: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", 30_000)

    def kill(progress: object) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    go = partial(prepare, [path], tmp_path / "out", tokenizer, max_rejects=1, piece_bytes=100_000)
    with pytest.raises(UserError, match="a worker process was killed, perhaps because memory ran out"):
        go(workers=2, progress=kill)
    assert go(workers=2).documents == 29_400
