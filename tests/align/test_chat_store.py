"""Conversations in files to a store, and from there into batches."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

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
    with pytest.raises(UserError, match=r"no document is left to train on: 1 unreadable\. The last one: .*has none of"):
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


def length(tokenizer: Path, text: str) -> int:
    """In tokens, with control tokens as such."""
    return len(Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode(text).ids)


def split(tmp_path: Path, tokenizer: Path, most: int, messages: list[dict[str, Any]]) -> list[str]:
    """The whole text of each part."""
    options = ChatOptions(max_tokens=most, longer=Longer.in_parts)
    prepare_chat([write(tmp_path / "s.jsonl", {"messages": messages})], tmp_path / "split", tokenizer, options=options)
    return ["".join(text for text, _ in one) for one in shown(tmp_path / "split", tokenizer)]


def test_a_split_loses_and_moves_nothing(tmp_path: Path, chatml: Path) -> None:
    """What is said before the first question stays, system messages stand where they stood, those in front in each."""
    head = [said("system", "First."), said("system", "Second.")]
    rest = [
        said("assistant", "Welcome"),
        said("user", "ask 1"),
        said("assistant", "tell 1"),
        said("system", "Third."),
        said("user", "ask 2"),
        said("tool", "found"),
        said("assistant", "tell 2"),
    ]

    def text(messages: list[dict[str, Any]]) -> str:
        return "".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages)

    most = length(chatml, text([*head, *rest[3:]]))
    assert split(tmp_path, chatml, most, head + rest) == [text(head + rest[:3]), text(head + rest[3:])]


def test_a_split_takes_as_many_turns_as_fit(tmp_path: Path, chatml: Path) -> None:
    draw = random.Random(5)
    turns = [[said("user", f"ask {n}"), said("assistant", "e" * draw.randint(1, 60))] for n in range(40)]

    def size(some: list[list[dict[str, Any]]]) -> int:
        said_by_them = [one for turn in some for one in turn]
        text = "".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in said_by_them)
        return length(chatml, text)

    parts: list[list[list[dict[str, Any]]]] = [[]]
    for turn in turns:
        if size([*parts[-1], turn]) > 500:
            parts.append([])
        parts[-1].append(turn)
    found = split(tmp_path, chatml, 500, [one for turn in turns for one in turn])
    assert [one.count("ask ") for one in found] == [len(some) for some in parts]


def test_what_is_counted(tmp_path: Path, chatml: Path) -> None:
    thought = {**said("assistant", "Yes"), "reasoning_content": "Why not"}
    called = {**said("assistant", ""), "tool_calls": [{"name": "f", "arguments": {"x": "y"}}]}
    template = FORMATS["ChatML"].template.replace(
        "message['content'] +",
        "message['content'] + (message.tool_calls[0].function | tojson if message.tool_calls else '') +",
    )
    (tmp_path / "t.jinja").write_text(template, encoding="utf-8")
    source = write(
        tmp_path / "a.jsonl",
        {"messages": [said("user", "a"), called, said("tool", "c"), thought, said("user", "rest")]},
        {"messages": [said("user", "<|im_end|>"), said("assistant", "x"), said("user", "of a reject")]},
    )

    def tallies(name: str, **options: Any) -> dict[str, int]:
        given = {"template": str(tmp_path / "t.jinja"), "options": ChatOptions(**options)}
        made = prepare_chat([source], tmp_path / name, chatml, **given)
        assert made.tallies["trained tokens"] + made.masked_tokens == made.tokens
        return made.tallies

    calls, all_of_it = '{"name": "f", "arguments": {"x": "y"}}<|im_end|>', "<think>\nWhy not\n</think>\n\nYes<|im_end|>"
    whole = {
        "trained tokens": length(chatml, calls) + length(chatml, all_of_it),
        "trained tokens of messages that call tools": length(chatml, calls),
        "trained tokens of thoughts": len("Why not"),
        "messages after the last answer, left out": 1,
    }
    assert tallies("whole") == whole
    store = TokenStore.open_source(tmp_path / "whole")
    most = int(store.lengths(np.arange(1))[0]) - 2  # all but the end, and the newline after it
    assert tallies("cut", max_tokens=most, longer=Longer.cut) == {
        **whole,
        "trained tokens": whole["trained tokens"] - 1,
        "conversations cut": 1,
    }
    silent = [said("user", "a" * 60), {**said("assistant", "b"), "loss": False}, said("user", "c" * 60)]
    write(source, {"messages": [*silent, said("assistant", "d")]})
    assert tallies("parts", max_tokens=120, longer=Longer.in_parts) == {
        "trained tokens": 2,
        "parts of conversations": 1,
        "parts of conversations of which nothing is trained, left out": 1,
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"messages": ', r"b\.json is not JSON: .*Repair it, or leave it out"),
        ("[" * 100_000, r"b\.json is not JSON: "),
        ('{"a": 1}\n{"a": 2}\n', r"b\.json holds JSON lines, .*Rename it to b\.jsonl"),
        ('{"a": [\n1]}\n{"a": 2}\n', r"b\.json is not JSON: Extra data.* A file with one conversation a line has"),
    ],
)
def test_a_json_file_that_is_none(tmp_path: Path, chatml: Path, text: str, reason: str) -> None:
    """It may hold all the data: no reject."""
    write(tmp_path / "a.jsonl", *(chat(number) for number in range(9)))
    (tmp_path / "b.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=reason):
        prepare_chat([tmp_path / "a.jsonl", tmp_path / "b.json"], tmp_path / "out", chatml, workers=2)


def test_rejects_of_several_files_say_where_they_stood(tmp_path: Path, chatml: Path) -> None:
    bad = {"text": "x"}
    (tmp_path / "a.json").write_text(json.dumps([chat(0), bad, 1]), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps([bad, chat(1)]), encoding="utf-8")
    (tmp_path / "c.json").write_text(json.dumps(bad), encoding="utf-8")
    write(tmp_path / "d.jsonl", chat(2), bad)
    prepare_chat([tmp_path], tmp_path.parent / "outside", chatml)
    rejects = (tmp_path.parent / "outside" / "rejects.jsonl").read_text().splitlines()
    where = [json.loads(line)["where"] for line in rejects]
    assert where == [str(tmp_path / name) for name in ("a.json:2", "a.json:3", "b.json:1", "c.json:1", "d.jsonl:2")]


def test_the_day_is_kept(tmp_path: Path, chatml: Path) -> None:
    """In the manifest, and over midnight."""
    (tmp_path / "t.jinja").write_text("{{ strftime_now('%Y-%m-%d') }}" + FORMATS["ChatML"].template, encoding="utf-8")
    source = write(tmp_path / "a.jsonl", *(chat(number) for number in range(2)))

    def made(day: date, stop: bool = False) -> Manifest:
        def progress(done: Any) -> None:
            if stop:
                raise KeyboardInterrupt

        given = {"template": str(tmp_path / "t.jinja"), "piece_bytes": 200, "workers": 2, "progress": progress}
        return prepare_chat([source], tmp_path / "out", chatml, day=day, **given)

    with pytest.raises(KeyboardInterrupt):
        made(date(2024, 2, 29), stop=True)
    with pytest.raises(UserError, match=r"resumed:\n  chat.day: was 2024-02-29, is 2024-03-01\nGive what"):
        made(date(2024, 3, 1))
    assert made(date(2024, 2, 29)).chat["day"] == "2024-02-29"
    assert {one[0][0][:10] for one in shown(tmp_path / "out", chatml)} == {"2024-02-29"}


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
    assert made.stdout.count("masked") == 1
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
