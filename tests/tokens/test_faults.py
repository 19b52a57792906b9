"""Everything that may be wrong with text and with token stores: each is told clearly, or set aside and counted.

More of it is where it belongs: a full disk, changed inputs, two at once and killed workers in test_prepare_resumed;
damage of every byte of an index in test_store; torn archives in test_corpus; InternEvo's files in
test_import_internevo; object storage in test_remote; ids that the model does not have, stores of two tokenizers and
what a run says before it begins in tests/train/test_stores.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from internevo.config.schema import DataConfig, ModelConfig, SourceConfig, StageConfig, TrainConfig
from internevo.data.check_stores import store_problems
from internevo.data.loader import Loader
from internevo.data.mixing import Plan
from internevo.files.errors import UserError
from internevo.text.corpus import input_files
from internevo.tokens.prepare import prepare
from internevo.tokens.store import TokenStore
from internevo.tokens.tokenizer import load_tokenizer
from tests.tokens.stores import numbered, read_by_hand, write_store
from tests.tokens.test_flat import datatrove_writes
from tests.tokens.test_prepare import documents, tokenizer

__all__ = ["tokenizer"]  # a fixture


def problems(path: Path) -> list[str]:
    """What a run on this store says before it begins."""
    return store_problems([one_step(2**16, SourceConfig(str(path)))])


def one_step(vocab: int, *sources: SourceConfig) -> StageConfig:
    """A stage of one step on these sources."""
    data, train = DataConfig(sources=list(sources)), TrainConfig(seq_len=8, batch_tokens=8, steps=1)
    return StageConfig(model=ModelConfig(vocab=vocab), data=data, train=train)


def pair(folder: Path) -> Path:
    """A prepared folder."""
    write_store(folder / "train", numbered([4, 2, 9]))
    write_store(folder / "heldout", numbered([3]))
    (folder / "manifest.json").write_text("{}")
    assert problems(folder) == []
    return folder


def shards(folder: Path) -> Path:
    for number in range(3):
        write_store(folder / f"train-{number:05}-of-00003", numbered([4, 2]))
    assert problems(folder) == []
    return folder


def flat(folder: Path) -> Path:
    folder.mkdir()
    datatrove_writes(folder, "a.ds", [[1, 2, 3], [4]], 2)
    assert problems(folder) == []
    return folder


def cut_off(file: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / file, size)


def removed(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def written(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content)


def patched(file: str, offset: int, content: bytes) -> Callable[[Path], None]:
    def patch(folder: Path) -> None:
        data = bytearray((folder / file).read_bytes())
        data[offset : offset + len(content)] = content
        (folder / file).write_bytes(data)

    return patch


def other_dtype(folder: Path) -> None:
    for file in folder.glob("train-00001*"):
        file.unlink()
    write_store(folder / "train-00001-of-00003", numbered([4]), np.uint16)


def saved(folder: Path, array: np.ndarray, cut: int = 0) -> None:
    for file in folder.iterdir():
        file.unlink()
    np.save(folder / "a.npy", array, allow_pickle=True)
    if cut:
        os.truncate(folder / "a.npy", (folder / "a.npy").stat().st_size - cut)
    np.array([4], "<u8").tofile(folder / "a.npy.index")


def emptied(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def without_tokens(folder: Path) -> None:
    emptied(folder)
    write_store(folder / "train", [])


def a_folder(folder: Path) -> None:
    (folder / "train.bin").unlink()
    (folder / "train.bin").mkdir()


STORES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], None], str]] = {
    "data that is cut off": (pair, cut_off("train.bin", 30), "train.bin is torn"),
    "an index that is cut off": (pair, cut_off("train.idx", 60), "train.idx is torn"),
    "an index of nothing": (pair, cut_off("train.idx", 0), "train.idx is not the index of a token store"),
    "another magic": (pair, patched("train.idx", 0, b"MMIDIDY"), "train.idx is not the index of a token store"),
    "another version": (pair, patched("train.idx", 9, b"\x07"), "train.idx has version 7"),
    "an unknown dtype": (pair, patched("train.idx", 17, b"\x63"), "dtype code 99"),
    "an index of more documents": (pair, patched("train.idx", 18, struct.pack("<Q", 9)), "train.idx is torn"),
    "an index that disagrees": (
        pair,
        patched("train.idx", -8, struct.pack("<q", 2)),
        "its documents end at sequence 2",
    ),
    "no data": (pair, removed("train.bin"), "train.bin does not exist"),
    "no index": (pair, removed("train.idx"), "train.idx does not exist"),
    "a folder for data": (pair, a_folder, "train.bin does not exist"),
    "held-out data that is cut off": (pair, cut_off("heldout.bin", 4), "heldout.bin is torn"),
    "a manifest that is cut off": (pair, written("manifest.json", b'{"masked": tr'), "manifest.json is torn"),
    "an empty folder": (pair, emptied, "train.idx does not exist"),
    "no tokens": (pair, without_tokens, "holds no tokens"),
    "a missing shard": (shards, removed("train-00001-of-00003.idx"), "train-00001-of-00003.idx does not exist, but"),
    "a shard without data": (shards, removed("train-00002-of-00003.bin"), "train-00002-of-00003.bin does not exist"),
    "shards of two stores": (
        shards,
        lambda folder: shutil.copy(folder / "train-00000-of-00003.idx", folder / "train-00000-of-00009.idx") and None,
        "shards of several stores stand beside each other",
    ),
    "shards of two dtypes": (shards, other_dtype, "its files are of several dtypes"),
    "flat without index": (flat, removed("a.ds.index"), "has no index of its documents"),
    "a flat index that is cut off": (flat, cut_off("a.ds.index", 9), "a.ds.index is torn"),
    "a flat index that disagrees": (flat, cut_off("a.ds", 6), "and its index disagree"),
    "flat data of half a token": (flat, cut_off("a.ds", 7), "a.ds is torn"),
    "metadata of another tool": (flat, written("a.ds.metadata", b"gpt2"), "names no size of a token"),
    "an array of numbers that are no ids": (flat, partial(saved, array=np.ones(4)), "is an array float64"),
    "an array of objects": (flat, partial(saved, array=np.array([{}] * 4)), "is torn, or no array of numbers"),
    "an array that is cut off": (flat, partial(saved, array=np.arange(4), cut=8), "is torn, or no array of numbers"),
}


@pytest.mark.parametrize("case", STORES)
def test_a_store_that_cannot_be_used_is_told_before_a_run_begins(tmp_path: Path, case: str) -> None:
    make, damage, message = STORES[case]
    folder = make(tmp_path / "store")
    damage(folder)
    (told,) = problems(folder)
    assert told.startswith(f"{folder}: ")
    assert message in told


def test_all_stores_are_told_of_at_once(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        pair(tmp_path / name)
    (tmp_path / "a" / "train.bin").unlink()
    (tmp_path / "c" / "train.idx").unlink()
    stage = one_step(99, *(SourceConfig(str(tmp_path / name)) for name in ("a", "b", "c", "c")))
    assert [one.partition(": ")[0] for one in store_problems([stage, stage])] == [f"{tmp_path}/a", f"{tmp_path}/c"]


def made(tmp_path: Path, tokenizer: Path, *files: Path, **options: object) -> tuple[list[str], list[dict[str, str]]]:
    """The documents as text, and the rejects."""
    prepare(list(files), tmp_path / "out", tokenizer, max_rejects=1, **options)  # type: ignore[arg-type]
    loaded = load_tokenizer(tokenizer)
    texts = [loaded.decode(ids[1:-1]) for ids in documents(tmp_path / "out")]
    return texts, [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]


LINES = {
    "cut off": (b'{"text": "half', "not JSON"),
    "a bare word": (b"text", "not JSON"),
    "a list": (b'["text"]', "no text under 'text'"),
    "a number for text": (b'{"text": 5}', "no text under 'text'"),
    "null for text": (b'{"text": null}', "no text under 'text'"),
    "another key": (b'{"body": "x"}', "no text under 'text'"),
    "not UTF-8": (b'{"text": "caf\xe9"}', "not JSON"),
    "UTF-8 that is cut off": (b'{"text": "\xe4\xb8"}', "not JSON"),
    "UTF-16": ('{"text": "x"}'.encode("utf-16"), "not JSON"),
    "half of a surrogate pair": (b'{"text": "\\ud83d"}', "holds half of a surrogate pair"),
    "a bare NUL": (b'{"text": "a\x00b"}', "not JSON"),
    "nested without end": (b'{"text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "not JSON"),
    "nested objects without end": (b'{"a":' * 100_000, "not JSON"),
    "two objects": (b'{"text": "x"}{"text": "y"}', "not JSON"),
}


@pytest.mark.parametrize("case", LINES)
@pytest.mark.parametrize("packed", [False, True])
def test_a_line_that_cannot_be_used_is_set_aside(tmp_path: Path, tokenizer: Path, case: str, packed: bool) -> None:
    line, reason = LINES[case]
    content = b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n'
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    path.write_bytes(gzip.compress(content) if packed else content)
    texts, rejects = made(tmp_path, tokenizer, path)
    assert texts == ["before", "after"]
    (kept,) = rejects
    assert kept["where"] == f"{path}:2"
    assert reason in kept["reason"]
    assert kept["raw"].encode(errors="surrogateescape") == line + b"\n"  # not a byte of it is lost


def test_text_that_is_strange_but_good(tmp_path: Path, tokenizer: Path) -> None:
    texts = [
        "a\x00b",
        "\x01\x7f\x85",
        "\ufeffx",
        "�",
        "e\u0301",
        "\U0010ffff",
        "\ud83d\ude42".encode("utf-16", "surrogatepass").decode("utf-16"),
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(json.dumps({"text": one}).encode() + b"\r\n" for one in texts))
    assert made(tmp_path, tokenizer, path) == (texts, [])


def test_a_line_of_50_mb(tmp_path: Path, tokenizer: Path) -> None:
    """One that holds little text, and one that is broken: both are read, the second is set aside whole."""
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"html": "' + b"x" * 50_000_000 + b'", "text": "small"}\n')
        file.write(b'{"html": "' + b"y" * 50_000_000 + b'\n{"text": "last"}\n')
    texts, rejects = made(tmp_path, tokenizer, path)
    assert texts == ["small", "last"]
    assert (rejects[0]["where"], len(rejects[0]["raw"])) == (f"{path}:2", 50_000_011)


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE, which encodes fast."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("bpe")
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet)
    fast.decoder = decoders.ByteLevel()
    fast.train_from_iterator(["a b c"], trainer)
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    return folder


@pytest.mark.slow
def test_a_document_of_10_million_tokens(tmp_path: Path, byte_pairs: Path) -> None:
    """Prepared, packed and loaded: every token once an epoch, beside a small one, in rows of either packing."""
    letters = np.random.default_rng(0).choice(np.frombuffer(b"abcdefgh       ", np.uint8), 11_000_000)
    text = letters.tobytes().decode()
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": "small"}) + "\n")
    manifest = prepare([path], tmp_path / "out", byte_pairs, workers=2)
    store = TokenStore.open_source(tmp_path / "out")
    longest = int(store.lengths(np.arange(2)).max())
    assert longest > 10_000_000
    assert manifest.tokens == store.tokens
    assert load_tokenizer(byte_pairs).decode(store.read(0)[1:-1].tolist()) == text
    counts = np.bincount(np.asarray(store.slice(0, store.tokens)), minlength=300)
    for packing in ("best_fit", "concat"):
        seen, seq_len = np.zeros(300, np.int64), 8192
        plan = Plan.constant([SourceConfig(str(tmp_path / "out"))], seq_len=seq_len, rows=1, packing=packing)
        with Loader(plan, seed=1) as loader:
            for _ in range(-(-store.tokens // seq_len)):
                batch = loader.next()
                seen += np.bincount(batch.tokens[0, : batch.real_tokens[0]], minlength=300)
                assert batch.label_count >= batch.real_tokens[0] - 2
        assert np.array_equal(seen, counts)


def test_empty_documents_are_counted(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, content in (
        ("a.txt", b""),
        ("b.txt", b" \n\t "),
        ("c.jsonl", b""),
        ("d.jsonl", b"\n\n"),
        ("e.txt", b"x"),
    ):
        (tmp_path / "in" / name).write_bytes(content)
    manifest = prepare([tmp_path / "in"], tmp_path / "out", tokenizer)
    assert (manifest.documents, manifest.empty, manifest.rejected) == (1, 2, 0)


def torn(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-40])
    return path


def packed(tmp_path: Path) -> Path:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 9000))
    return tmp_path / "a.jsonl.gz"


def table(tmp_path: Path) -> Path:
    parquet.write_table(pyarrow.table({"body": ["x"] * 50}), tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


def of_nothing(tmp_path: Path) -> Path:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "image.png").touch()
    return tmp_path / "in"


def link_to_nowhere(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").symlink_to(tmp_path / "gone.txt")
    return tmp_path / "in"


def pipe(tmp_path: Path) -> Path:
    """Nobody writes into it: reading would wait for ever."""
    os.mkfifo(tmp_path / "a.jsonl")
    return tmp_path / "a.jsonl"


INPUTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a torn archive": (lambda folder: torn(packed(folder)), "a.jsonl.gz is damaged after line"),
    "a table without the column": (table, "a.parquet has no column 'text'; it has body"),
    "a torn table": (lambda folder: torn(table(folder)), "a.parquet is not a parquet file"),
    "a folder without text": (of_nothing, "in holds no text. Known endings are"),
    "a link to nowhere": (link_to_nowhere, "a.txt is no file, or a link to nowhere"),
    "a pipe": (pipe, "a.jsonl is no file"),
    "a URL": (lambda folder: Path("s3://bucket/text"), "s3:/bucket/text is in object storage, from which only token"),
    "nothing": (lambda folder: folder / "none.jsonl", "none.jsonl does not exist"),
}


@pytest.mark.parametrize("case", INPUTS)
@pytest.mark.parametrize("workers", [1, 2])
def test_an_input_that_cannot_be_read_stops_the_job(tmp_path: Path, tokenizer: Path, case: str, workers: int) -> None:
    """And leaves nothing behind: what may be a large part of the corpus is not one reject among others."""
    make, message = INPUTS[case]
    path = make(tmp_path)
    with pytest.raises(UserError) as caught:
        prepare([path], tmp_path / "out", tokenizer, max_rejects=1, workers=workers)
    assert message in str(caught.value)
    assert not list(tmp_path.glob("out*"))


def test_a_file_that_may_not_be_read(nobody: Path) -> None:
    (nobody / "a.txt").write_text("x")
    (nobody / "a.txt").chmod(0)
    with pytest.raises(UserError, match=r"a\.txt may not be read by this user"):
        input_files(nobody)


def test_a_file_that_goes_away_while_it_is_read(tmp_path: Path, tokenizer: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "x"}\n' * 100)
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    go = partial(prepare, files, tmp_path / "out", tokenizer, piece_bytes=500)
    with pytest.raises(UserError, match=r"b\.jsonl: No such file or directory\. Fix it"):
        go(progress=lambda done: files[1].unlink(missing_ok=True))
    assert not (tmp_path / "out").exists()
    files[1].write_text('{"text": "x"}\n' * 100)
    with pytest.raises(UserError, match=r"b\.jsonl came, went or changed"):
        go()


def test_a_file_that_grows_or_goes_when_it_has_been_read(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "a.jsonl"
    for number, change in enumerate((lambda: path.unlink(), lambda: path.write_text('{"text": "y"}\n' * 3))):
        path.write_text('{"text": "x"}\n')
        with pytest.raises(UserError, match=r"a\.jsonl was changed while it was read"):
            prepare([path], tmp_path / f"out{number}", tokenizer, progress=lambda done, change=change: change())
        assert not (tmp_path / f"out{number}").exists()


def test_a_file_named_twice_has_its_own_lines_each_time(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\nbroken\n' * 30)
    _, rejects = made(tmp_path, tokenizer, path, path, piece_bytes=200)
    assert [one["where"] for one in rejects] == [f"{path}:{number}" for number in range(2, 61, 2)] * 2


def test_all_that_is_left_is_held_out_or_bad(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{"text": ""}\nno\n')
    with pytest.raises(UserError, match="no document is left to train on: 1 held out, 1 empty, 1 unreadable"):
        prepare([], tmp_path / "out", tokenizer, held_out_inputs=[path], max_rejects=1)


def test_a_store_written_again_is_refused_at_once(tmp_path: Path, tokenizer: Path) -> None:
    pair(tmp_path / "out")
    before = read_by_hand(tmp_path / "out" / "train")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="out exists already; it is not overwritten"):
        prepare([tmp_path / "a.txt"], tmp_path / "out", tokenizer)
    assert read_by_hand(tmp_path / "out" / "train") == before
