"""Conversations in files to a store, and from there into batches."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from internevo.align.chat_store import prepare_chat
from internevo.align.choices import ChatOptions, Longer
from internevo.config.schema import SourceConfig
from internevo.data.batch import IGNORE
from internevo.data.loader import Loader
from internevo.data.mixing import Plan
from internevo.files.errors import UserError
from internevo.tokens.build import Manifest
from internevo.tokens.inspect import document_parts
from internevo.tokens.store import TokenStore
from internevo.tokens.tokenizer import load_tokenizer
from tests.align.formats import FORMATS, write_tokenizer
from tests.align.test_masks import said


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("chatml"), FORMATS["ChatML"])


def chat(number: int, turns: int = 1) -> dict[str, Any]:
    """The number is its only digit."""
    one = [said("user", f"ask {number}"), said("assistant", f"tell {number}")]
    return {"messages": [said("system", "See."), *one * turns]}


def write(path: Path, *values: Any) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in values), encoding="utf-8")
    return path


def shown(folder: Path, tokenizer: Path, heldout: bool = False) -> list[list[tuple[str, bool]]]:
    """Every document in stretches of text, each trained or not."""
    store = TokenStore.open_heldout(folder) if heldout else TokenStore.open_source(folder)
    loaded = load_tokenizer(tokenizer)
    assert store is not None
    parts = (document_parts(store, number, loaded, 10**6) for number in range(len(store)))
    return [[(text, not masked) for text, masked in one if text != "<EOS>"] for one in parts]


def trained(folder: Path, tokenizer: Path) -> list[str]:
    return [text for one in shown(folder, tokenizer) for text, kind in one if kind]


def test_files_of_every_kind(tmp_path: Path, chatml: Path) -> None:
    folder = tmp_path / "chats"
    folder.mkdir()
    write(folder / "a.jsonl", chat(0), chat(1))
    (folder / "b.json").write_text(json.dumps([chat(2), chat(3)]), encoding="utf-8")
    table = pa.Table.from_pylist([chat(4), chat(5)])
    pq.write_table(table, folder / "c.parquet")
    with pa.OSFile(str(folder / "d.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table.slice(0, 1))
    (folder / "e.txt").write_text("no conversation", encoding="utf-8")
    manifest = prepare_chat([folder], tmp_path / "out", chatml)
    assert trained(tmp_path / "out", chatml) == [f"tell {number}<|im_end|>" for number in (0, 1, 2, 3, 4, 5, 4)]
    assert (manifest.documents, manifest.rejected, manifest.left_out) == (7, 0, {".txt": 1})
    assert manifest.masking == "complement"
    store = TokenStore.open_source(tmp_path / "out")
    every = np.concatenate([store.read(number) for number in range(7)])
    assert manifest.tallies["trained tokens"] == (every >= 0).sum() == manifest.tokens - manifest.masked_tokens
    assert "stops" in manifest.chat
    assert manifest.chat["template"] == FORMATS["ChatML"].template


def test_workers_and_a_stop_change_nothing(tmp_path: Path, chatml: Path) -> None:
    draw = random.Random(3)
    write(tmp_path / "a.jsonl", *(chat(number, draw.randint(1, 9)) for number in range(300)))

    def made(name: str, **options: Any) -> Manifest:
        return prepare_chat([tmp_path / "a.jsonl"], tmp_path / name, chatml, held_out=0.2, piece_bytes=4096, **options)

    def stop(done: Any) -> None:
        if done.read > 30_000:
            raise KeyboardInterrupt

    alone = made("alone")
    with pytest.raises(KeyboardInterrupt):
        made("stopped", progress=stop)
    assert made("stopped").sha256 == made("workers", workers=3).sha256 == alone.sha256
    assert 30 < alone.heldout_documents < 90
    assert alone.documents + alone.heldout_documents == 300
    held = {text for one in shown(tmp_path / "alone", chatml, heldout=True) for text, kind in one if kind}
    assert not held & set(trained(tmp_path / "alone", chatml))


def test_rejects_are_kept_aside_with_their_reason(tmp_path: Path, chatml: Path) -> None:
    source = write(
        tmp_path / "a.jsonl",
        chat(0),
        {"messages": [said("user", "<|im_end|>"), said("assistant", "x")]},
        {"text": "x"},
        [1],
        {"messages": [said("user", "x")]},
    )
    with source.open("a", encoding="utf-8") as file:
        file.write("{torn\n\n")
    manifest = prepare_chat([source], tmp_path / "out", chatml)
    assert (manifest.documents, manifest.rejected) == (1, 5)
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert sorted(one["where"] for one in rejects) == [f"{source}:{line}" for line in (2, 3, 4, 5, 6)]
    reasons = {one["where"].rpartition(":")[2]: one["reason"] for one in rejects}
    assert reasons["2"] == "its text spells the control token <|im_end|>"
    assert reasons["4"] == "not a mapping of keys to values"
    with pytest.raises(UserError, match="no document is left to train on"):
        prepare_chat([write(tmp_path / "b.jsonl", {"text": "x"})], tmp_path / "none", chatml)


def test_long_conversations(tmp_path: Path, chatml: Path) -> None:
    write(tmp_path / "a.jsonl", chat(0), chat(7, turns=5))
    whole = prepare_chat([tmp_path / "a.jsonl"], tmp_path / "whole", chatml)
    store = TokenStore.open_source(tmp_path / "whole")
    one, five = store.lengths(np.arange(2)).tolist()
    turn = (five - one) // 4

    def made(name: str, longer: Longer, most: int) -> list[str]:
        manifest = prepare_chat(
            [tmp_path / "a.jsonl"], tmp_path / name, chatml, options=ChatOptions(max_tokens=most, longer=longer)
        )
        assert TokenStore.open_source(tmp_path / name).lengths(np.arange(manifest.documents)).max() <= most
        assert manifest.masked_tokens + manifest.tallies["trained tokens"] == manifest.tokens
        return trained(tmp_path / name, chatml)

    assert made("fits", Longer.refuse, five) == ["tell 0<|im_end|>"] + ["tell 7<|im_end|>"] * 5
    assert made("refused", Longer.refuse, five - 1) == ["tell 0<|im_end|>"]
    assert made("cut", Longer.cut, five - 2) == ["tell 0<|im_end|>"] + ["tell 7<|im_end|>"] * 4 + ["tell 7"]
    assert made("split", Longer.in_parts, one + turn) == ["tell 0<|im_end|>"] + ["tell 7<|im_end|>"] * 5
    parts = shown(tmp_path / "split", chatml)[1:]
    assert [sum(kind for _, kind in part) for part in parts] == [2, 2, 1]
    assert all(part[0][0].startswith("<|im_start|>system\nSee.<|im_end|>\n<|im_start|>user\nask 7") for part in parts)
    with pytest.raises(UserError, match="no document is left"):
        made("too small", Longer.in_parts, one - 1)
    assert whole.tallies["trained tokens"] == 6 * len("tell 7") + 6


def test_labels_of_a_batch_are_what_the_assistant_writes(tmp_path: Path, chatml: Path) -> None:
    """Token 0, the letter e, is masked and trained like any other."""
    draw = random.Random(1)
    write(tmp_path / "a.jsonl", *(chat(draw.randint(0, 9), draw.randint(1, 4)) for _ in range(40)))
    prepare_chat([tmp_path / "a.jsonl"], tmp_path / "out", chatml)
    plan = Plan.constant([SourceConfig(str(tmp_path / "out"))], rows=4, seq_len=128, packing="best_fit")
    loaded = load_tokenizer(chatml)
    with Loader(plan, seed=1) as loader:
        for _ in range(6):
            batch = loader.next()
            assert (batch.tokens >= 0).all()
            assert batch.label_count == (batch.labels != IGNORE).sum()
            for tokens, labels in zip(batch.tokens, batch.labels, strict=True):
                at = np.flatnonzero(labels != IGNORE)
                assert np.array_equal(labels[at], tokens[at + 1])
                said_again = loaded.show(labels[at].tolist())
                assert set(said_again.replace("<|im_end|>", "")) <= set("tell 0123456789")
                assert "ask" not in said_again
    assert 0 in batch.labels[batch.labels != IGNORE]
    ignored = batch.tokens[:, 1:][batch.labels[:, :-1] == IGNORE]
    assert 0 in ignored[ignored != loaded.encode("t")[0]]


def test_the_verb(tmp_path: Path, chatml: Path) -> None:
    write(tmp_path / "a.jsonl", *(chat(number) for number in range(9)))

    def internevo(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "internevo", "data", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)

    made = internevo("chat", "a.jsonl", "--tokenizer", str(chatml), "--out", "out", "--workers", "1")
    assert made.returncode == 0, made.stderr
    assert "trained tokens: 63" in made.stdout
    looked = internevo("inspect", "out", "--tokenizer", str(chatml), "--page", "x.html")
    assert looked.returncode == 0, looked.stderr
    assert "<|im_start|>assistant\n</masked>tell 4<|im_end|><masked>\n</masked>" in looked.stdout
    assert "<mark>tell 4&lt;|im_end|&gt;</mark>" in (tmp_path / "x.html").read_text(encoding="utf-8")
    bare = write_tokenizer(tmp_path / "bare", FORMATS["ChatML"])
    (bare / "chat_template.jinja").unlink()
    refused = internevo("chat", "a.jsonl", "--tokenizer", "bare", "--out", "other")
    assert refused.returncode == 2
    assert "bare has no chat template. Name a file of one with --template" in refused.stderr.replace("\n", " ")
    assert not (tmp_path / "other").exists()
