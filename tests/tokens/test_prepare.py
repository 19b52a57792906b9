"""Text to token store: frames, held-out documents, workers, rejects, and nothing overwritten or half done."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from internevo.files.errors import UserError
from internevo.tokens.build import Manifest
from internevo.tokens.inspect import describe, document_parts, show_document
from internevo.tokens.megatron import StoreError
from internevo.tokens.prepare import prepare
from internevo.tokens.store import TokenStore
from internevo.tokens.tokenizer import load_tokenizer
from internevo.tokens.train_tokenizer import train_tokenizer
from tests.tokens.test_tokenizer import byte_level

PACKAGE = Path(__file__).parents[2] / "internevo"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tokenizer") / "small.model"
    return train_tokenizer((path.read_text() for path in sorted(PACKAGE.rglob("*.py"))), output, 800)


def lines(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def documents(folder: Path, name: str = "train") -> list[list[int]]:
    store = TokenStore(folder / name)
    return [store.read(number).tolist() for number in range(len(store))]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_documents_are_framed_and_in_order(tmp_path: Path, tokenizer: Path) -> None:
    texts = ["def f(): pass", "second document", "第三 🙂"]
    manifest = prepare([lines(tmp_path / "a.jsonl", *texts)], tmp_path / "out", tokenizer)
    loaded = load_tokenizer(tokenizer)
    assert documents(tmp_path / "out") == [[1, *loaded.encode(text), 2] for text in texts]
    assert (manifest.documents, manifest.tokens) == (3, sum(map(len, documents(tmp_path / "out"))))
    assert manifest.characters == sum(map(len, texts))
    store = TokenStore.open_source(tmp_path / "out")
    assert store.dtype == np.uint16
    assert show_document(document_parts(store, 0, loaded)) == "<BOS>def f(): pass<EOS>"


def test_the_manifest_tells_what_it_was_made_from(tmp_path: Path, tokenizer: Path) -> None:
    made = prepare([lines(tmp_path / "a.jsonl", "text")], tmp_path / "out", tokenizer)
    written = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert Manifest(**written) == made
    assert written["tokenizer_fingerprint"] == load_tokenizer(tokenizer).fingerprint
    assert set(written["sha256"]) == {"train.bin", "train.idx", "rejects.jsonl"}
    for name, sha in written["sha256"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == sha
    assert describe(tmp_path / "out").manifest == written


def test_the_number_of_workers_changes_nothing(tmp_path: Path, tokenizer: Path) -> None:
    for workers in (1, 2):
        prepare([PACKAGE], tmp_path / str(workers), tokenizer, held_out=0.3, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_what_is_held_out_depends_on_the_text_alone(tmp_path: Path, tokenizer: Path) -> None:
    texts = [f"document number {number}" for number in range(400)]
    prepare([lines(tmp_path / "a.jsonl", *texts)], tmp_path / "a", tokenizer, held_out=0.2)
    some = lines(tmp_path / "b.jsonl", *texts[::-2])
    prepare([some], tmp_path / "b", tokenizer, held_out=0.2)
    first, second = ({tuple(one) for one in documents(tmp_path / name, "heldout")} for name in "ab")
    assert 50 < len(first) < 110
    assert second == first & {(1, *load_tokenizer(tokenizer).encode(text), 2) for text in texts[::-2]}
    assert len(documents(tmp_path / "a")) + len(first) == 400


def test_inputs_that_are_held_out_whole(tmp_path: Path, tokenizer: Path) -> None:
    train, held = lines(tmp_path / "a.jsonl", "one", "two"), lines(tmp_path / "b.jsonl", "three")
    manifest = prepare([train], tmp_path / "out", tokenizer, held_out_inputs=[held])
    assert (manifest.documents, manifest.heldout_documents) == (2, 1)
    assert documents(tmp_path / "out", "heldout") == [[1, *load_tokenizer(tokenizer).encode("three"), 2]]


def test_empty_documents_and_rejects_are_counted_and_kept_aside(tmp_path: Path, tokenizer: Path) -> None:
    path = lines(tmp_path / "a.jsonl", "text", "", "  \n")
    path.write_bytes(path.read_bytes() + b'not json\n\n{"text": "caf\xe9"}\n' + b"[" * 100_000 + b"\n")
    manifest = prepare([path], tmp_path / "out", tokenizer)
    assert (manifest.documents, manifest.empty, manifest.rejected) == (1, 2, 3)
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [one["where"] for one in rejects] == [f"{path}:{number}" for number in (4, 6, 7)]
    kept = [one["raw"].encode(errors="surrogateescape") for one in rejects]
    assert kept == [path.read_bytes().splitlines(keepends=True)[number - 1] for number in (4, 6, 7)]
    assert ["not JSON" in one["reason"] for one in rejects] == [True] * 3


def test_what_is_left_out_is_in_the_manifest_and_said(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.txt", *(f"{number}.csv" for number in range(3)), "x.jsonl.xz"):
        (tmp_path / "in" / name).write_text("text")
    command = [sys.executable, "-m", "internevo", "data", "prepare", tmp_path / "in", "--tokenizer", tokenizer]
    done = subprocess.run([*command, "--out", tmp_path / "out"], capture_output=True, text=True, timeout=60, check=True)
    assert "left out, as they are of kinds that are not read: 3 .csv, 1 .jsonl.xz" in done.stdout
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["left_out"] == {".csv": 3, ".jsonl.xz": 1}


def test_control_like_tokens_that_text_spells_are_named(tmp_path: Path) -> None:
    """What a tokenizer's files call ordinary is vocabulary; what they call special is never made of text."""
    from internevo.cli.verbs import app

    byte_level(tmp_path, {"eos_token": "<end>"}, {"eos_token": "<end>"})
    definition = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    ordinary = {**definition["added_tokens"][0], "id": 257, "content": "<think>", "special": False}
    definition["added_tokens"].append(ordinary)
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    inputs = lines(tmp_path / "a.jsonl", "<think><end>")
    command = ["data", "prepare", str(inputs), "--tokenizer", str(tmp_path), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--workers", "1"])
    assert "note: text that spells <think> becomes" in done.output
    document = documents(tmp_path / "out")[0]
    assert (document[1], document.count(256)) == (257, 2)  # 256 at the document's ends alone
    assert load_tokenizer(tmp_path).decode(document) == "<think><end>"


def test_too_many_rejects_stop_it_and_more_may_be_allowed(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' * 1500 + '{"body": "bad"}\n' * 100)
    with pytest.raises(UserError, match=r"100 of the first 1,600 documents .*a\.jsonl:1600: no text under 'text'"):
        prepare([path], tmp_path / "out", tokenizer)
    assert not (tmp_path / "out").exists()
    assert prepare([path], tmp_path / "out", tokenizer, max_rejects=0.1).rejected == 100
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.jsonl", "out"]


def test_a_wrong_key_leaves_nothing_behind(tmp_path: Path, tokenizer: Path) -> None:
    path = lines(tmp_path / "a.jsonl", *["text"] * 20)
    with pytest.raises(UserError, match="20 of the first 20 documents cannot be used"):
        prepare([path], tmp_path / "out", tokenizer, text_key="content")
    assert [one.name for one in tmp_path.iterdir()] == ["a.jsonl"]


def test_nothing_is_overwritten(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(UserError, match="exists already; it is not overwritten"):
        prepare([lines(tmp_path / "a.jsonl", "text")], tmp_path / "out", tokenizer)
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("texts", "held_out", "message"),
    [([], 0.0, "holds no documents"), (["", " "], 0.0, "2 empty"), (["one"], 1.0, "1 held out")],
)
def test_nothing_to_train_on_is_said(
    tmp_path: Path, tokenizer: Path, texts: list[str], held_out: float, message: str
) -> None:
    with pytest.raises(UserError, match=f"no document is left to train on: .*{message}"):
        prepare([lines(tmp_path / "a.jsonl", *texts)], tmp_path / "out", tokenizer, held_out=held_out)
    assert not (tmp_path / "out").exists()


def test_inspect(tmp_path: Path, tokenizer: Path) -> None:
    prepare([PACKAGE], tmp_path / "out", tokenizer, held_out=0.3)
    summary = describe(tmp_path / "out")
    lengths = [len(one) for one in documents(tmp_path / "out")]
    assert (summary.documents, summary.tokens) == (len(lengths), sum(lengths))
    assert (summary.lengths["least"], summary.lengths["most"]) == (min(lengths), max(lengths))
    assert summary.heldout_documents == len(documents(tmp_path / "out", "heldout"))
    bare = describe(tmp_path / "out" / "train")
    assert (bare.documents, bare.heldout_documents, bare.manifest) == (len(lengths), 0, summary.manifest)
    with pytest.raises(StoreError, match="does not exist"):
        describe(tmp_path / "none")
    shown = subprocess.run(
        [sys.executable, "-m", "internevo", "data", "inspect", tmp_path / "out", "--tokenizer", tokenizer],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert f"{sum(lengths):,}" in shown
    assert "<BOS>" in shown
