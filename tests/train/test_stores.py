"""Runs on every kind of token store, from the config to the last step, and stores that stop a run before it begins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from internevo.config.load import load_config
from internevo.config.read import ConfigError
from internevo.data.check_stores import check_stores, store_problems, tokenizer_problems
from internevo.files.errors import UserError
from internevo.tokens.import_internevo import import_internevo
from internevo.tokens.store import TokenStore
from internevo.tokens.store_writer import TokenStoreWriter
from internevo.train.run import train
from tests.tokens.test_flat import datatrove_writes
from tests.tokens.test_import_internevo import write_bin
from tests.train.runs import finish, start, steps, write_config, write_store

STAGE = {"stages": [{"name": "base", "train": {"steps": 3}}]}


def config(folder: Path, path: Path, **changes: Any) -> Path:
    """A run of three steps on one store."""
    data = {"sources": [{"path": str(path), "name": "web"}], "eval_tokens": 0, **changes.pop("data", {})}
    return write_config(folder, data=data, **{**STAGE, **changes})


def digests(file: Path) -> list[str]:
    assert train(load_config(file), ["test"]) is None
    return [line["digest"] for line in steps(file.parent / "runs" / "run")]


@pytest.mark.slow
def test_the_same_documents_in_every_kind_of_store(tmp_path: Path) -> None:
    """Sharded, in a `.ds`, in a folder of them, indexed `.npy`, imported: the same steps as from one pair."""
    whole = TokenStore.open_source(write_store(tmp_path / "whole", 300, 0))
    documents = [whole.read(number).tolist() for number in range(len(whole))]
    for number, part in enumerate((documents[:100], documents[100:110], documents[110:])):
        with TokenStoreWriter(tmp_path / f"pair-{number:05}-of-00003", np.uint16) as writer:
            for document in part:
                writer.append(np.array(document))
        (tmp_path / "flat").mkdir(exist_ok=True)
        datatrove_writes(tmp_path / "flat", f"{number}.ds", part, 2)
    (tmp_path / "sharded").mkdir()
    for file in tmp_path.glob("pair-*"):
        shutil.copy(file, tmp_path / "sharded" / file.name.replace("pair", "train"))
    datatrove_writes(tmp_path, "one.ds", documents, 2)
    np.save(tmp_path / "one.npy", np.fromfile(tmp_path / "one.ds", "<u2"))
    shutil.copy(tmp_path / "one.ds.index", tmp_path / "one.npy.index")
    import_internevo([write_bin(tmp_path / "a.bin", documents)], tmp_path / "imported")
    found = {}
    for name in ("whole", "whole/train", "pair", "sharded", "one.ds", "one.npy", "flat", "imported"):
        folder = tmp_path / "of" / name.replace("/", "-")
        folder.mkdir(parents=True)
        found[name] = digests(config(folder, tmp_path / name))
    assert len(set(map(tuple, found.values()))) == 1, found


def test_masked_tokens_train(tmp_path: Path) -> None:
    """Half of the labels are left out of the loss, which is another step of the same documents."""
    rng = np.random.default_rng(1)
    documents = [rng.integers(3, 500, 60).tolist() for _ in range(100)]
    masked = [[-one if place < 30 else one for place, one in enumerate(document)] for document in documents]
    lines = []
    for name, content in (("plain", documents), ("masked", masked)):
        folder = tmp_path / name
        folder.mkdir()
        import_internevo([write_bin(folder / "a.bin", content)], folder / "store")
        lines.append((digests(config(folder, folder / "store")), steps(folder / "runs" / "run")))
    (plain, first), (other, second) = lines
    assert len(plain) == len(other)
    assert not set(plain) & set(other)  # a digest covers labels
    assert [one["sources"] for one in first] == [one["sources"] for one in second]
    assert [one["loss"] for one in first] != [one["loss"] for one in second]


def refused(file: Path, message: str) -> None:
    """By `internevo config` and by `internevo train`, with one message, before anything is made."""
    for verb in ("config", "train"):
        process = start(verb, file)
        said = " ".join(finish(process).split())
        assert process.returncode == 2, said
        assert message in said
        assert "Traceback" not in said
    assert not list(file.parent.glob("runs/*/checkpoints"))
    assert not list(file.parent.glob("runs/*/config.yaml"))


def test_a_missing_shard_stops_it_before_it_begins(tmp_path: Path) -> None:
    write_store(tmp_path / "store", 20, 0)
    for ending in (".bin", ".idx"):
        (tmp_path / "store" / f"train{ending}").rename(tmp_path / "store" / f"train-00001-of-00002{ending}")
    refused(config(tmp_path, tmp_path / "store"), "train-00000-of-00002.idx does not exist, but other shards of its")


def test_held_out_documents_are_looked_at_too(tmp_path: Path) -> None:
    write_store(tmp_path / "store", 20, 0)
    (tmp_path / "store" / "heldout.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot be trained on:\n  .*store: .*heldout\.bin is torn"):
        train(load_config(config(tmp_path, tmp_path / "store")), ["test"])


def test_nothing_at_the_path(tmp_path: Path) -> None:
    (tmp_path / "web-notes").mkdir()
    (tmp_path / "[x]").mkdir()
    for name in ("web", "none/web", "[x]/web", "web.ds"):
        with pytest.raises(ConfigError, match=r"data\.sources\[0\]\.path: there is no token store at"):
            load_config(config(tmp_path, tmp_path / name))


def test_a_folder_without_a_store(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with pytest.raises(UserError, match=r"store/train\.idx does not exist"):
        check_stores(load_config(config(tmp_path, tmp_path / "store")).stages)


def with_manifest(folder: Path, seed: int, **said: Any) -> str:
    write_store(folder, 20, seed)
    (folder / "manifest.json").write_text(json.dumps(said))
    return str(folder)


def test_stores_of_two_tokenizers(tmp_path: Path) -> None:
    paths = [
        with_manifest(tmp_path / "a", 0, tokenizer="old.model", tokenizer_fingerprint="0f"),
        with_manifest(tmp_path / "b", 1, tokenizer="new.model", tokenizer_fingerprint="1e"),
        str(write_store(tmp_path / "c", 20, 2)),  # nobody knows
    ]
    file = config(tmp_path, Path(paths[0]), data={"sources": [{"path": path} for path in paths]})
    with pytest.raises(UserError) as caught:
        train(load_config(file), ["test"])
    assert "one id means several things: " in str(caught.value)
    assert f"{paths[0]} with old.model (0f), {paths[1]} with new.model (1e)" in str(caught.value)
    file = config(tmp_path, Path(paths[0]), tokenizer=str(tmp_path / "other.model"))
    (tmp_path / "other.model").write_text("other")
    with pytest.raises(
        UserError, match=rf"{paths[0]} with old.model \(0f\), stage base with .*other.model \(\w{{16}}\)"
    ):
        train(load_config(file), ["test"])
    assert not tokenizer_problems({"a": {"tokenizer_fingerprint": "1"}, "b": {}, "c": {"tokenizer_fingerprint": "1"}})


def test_a_store_of_more_pieces_than_the_model_has(tmp_path: Path) -> None:
    path = with_manifest(tmp_path / "a", 0, tokenizer="t/large.model", vocab_size=513)
    stages = load_config(config(tmp_path, Path(path))).stages
    assert store_problems(stages) == [f"{path}: was made with large.model of 513 pieces, but model.vocab is 512"]
    with_manifest(tmp_path / "b", 0, vocab_size=512)
    assert not store_problems(load_config(config(tmp_path, tmp_path / "b")).stages)


def test_negative_ids_that_no_manifest_explains(tmp_path: Path) -> None:
    import_internevo([write_bin(tmp_path / "a.bin", [[5, -6, 7] * 20] * 60)], tmp_path / "store")
    (tmp_path / "store" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"holds token id -6 .*only where the manifest\.json beside them says"):
        train(load_config(config(tmp_path, tmp_path / "store")), ["test"])


def test_ids_past_the_vocabulary(tmp_path: Path) -> None:
    import_internevo([write_bin(tmp_path / "a.bin", [[5, 512, 7] * 20] * 60)], tmp_path / "store")
    with pytest.raises(UserError, match=r"the data holds token id 512, but model\.vocab is 512"):
        train(load_config(config(tmp_path, tmp_path / "store")), ["test"])
