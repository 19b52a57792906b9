"""Token files of other tools: nanoGPT's and llm.c's are read, others are told with what they are and what to do."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from internevo.files.errors import UserError
from internevo.text.corpus import input_files
from internevo.tokens.flat import index_documents
from internevo.tokens.import_internevo import import_internevo
from internevo.tokens.megatron import StoreError
from internevo.tokens.store import TokenStore
from tests.tokens.stores import numbered, write_store
from tests.tokens.test_flat import datatrove_writes, read
from tests.tokens.test_import_internevo import write_bin

EOT = 50_256
DOCUMENTS = [[1, 2, 3], [40_000], list(range(9))]


def nanogpt_writes(path: Path) -> Path:
    """uint16 ids, each document with the end-of-text id after it (nanoGPT, data/openwebtext/prepare.py)."""
    ids = [one for document in DOCUMENTS for one in [*document, EOT]]
    np.array(ids, np.uint16).tofile(path)
    return path


def llm_c_writes(path: Path, magic: int, dtype: type, eot: int) -> Path:
    """A head of 256 int32, then ids, each document with the end-of-text id before it (llm.c, dev/data)."""
    ids = np.array([one for document in DOCUMENTS for one in [eot, *document]], dtype)
    head = np.zeros(256, np.int32)
    head[:3] = magic, {20240520: 1, 20240801: 7}[magic], len(ids)
    path.write_bytes(head.tobytes() + ids.tobytes())
    return path


def test_nanogpts_tokens(tmp_path: Path) -> None:
    path = nanogpt_writes(tmp_path / "train.bin")
    assert index_documents(path, EOT, 2) == 3
    assert read(path) == [[*document, EOT] for document in DOCUMENTS]


@pytest.mark.parametrize(("magic", "dtype", "eot"), [(20240520, np.uint16, EOT), (20240801, np.uint32, 128_000)])
def test_llm_cs_tokens(tmp_path: Path, magic: int, dtype: type, eot: int) -> None:
    """The head is no token, and says the size of one; the id before the first document stands alone."""
    path = llm_c_writes(tmp_path / "fineweb_train_000001.bin", magic, dtype, eot)
    assert index_documents(path, eot, 2) == 4
    first, *others = DOCUMENTS
    assert read(path) == [[eot], [*first, eot], [*others[0], eot], others[1]]
    assert TokenStore(path).dtype == np.dtype(dtype)


def test_a_file_of_llm_cs_that_is_cut_off(tmp_path: Path) -> None:
    path = llm_c_writes(tmp_path / "a.bin", 20240520, np.uint16, EOT)
    os.truncate(path, path.stat().st_size - 2)
    with pytest.raises(StoreError, match=r"a\.bin is torn: its head makes it 1,056 bytes for 16 tokens, it has 1,054"):
        index_documents(path, EOT, 2)


def test_a_file_of_llm_cs_of_another_version(tmp_path: Path) -> None:
    """Read as plain ids, its head would be 512 tokens of the first document."""
    path = llm_c_writes(tmp_path / "a.bin", 20240520, np.uint16, EOT)
    with path.open("r+b") as opened:
        opened.seek(4)
        opened.write((2).to_bytes(4, "little"))
    with pytest.raises(StoreError, match=r"a\.bin is a file of llm\.c's of version 2; version 1 is read"):
        index_documents(path, EOT, 2)


def litdata(folder: Path) -> Path:
    folder.mkdir()
    (folder / "index.json").write_text(json.dumps({"chunks": [{"filename": "chunk-0-0.bin"}], "config": {}}))
    (folder / "chunk-0-0.bin").write_bytes(bytes(99))
    return folder


def mosaic(folder: Path) -> Path:
    folder.mkdir()
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": [{"format": "mds"}]}))
    (folder / "shard.00000.mds").write_bytes(bytes(99))
    return folder


def file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def internevo_bin(folder: Path) -> Path:
    return write_bin(folder / "a.bin", [[1, 2]])


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "litdata": (
        lambda f: litdata(f / "web"),
        "holds litdata's chunks, which are not read. Write its documents as lines",
    ),
    "MosaicML": (lambda f: mosaic(f / "web"), "holds shards of MosaicML's streaming, which are not read"),
    "nanoGPT, not indexed": (lambda f: nanogpt_writes(f / "train.bin"), "`internevo data index"),
    "nanoGPT, as if a pair": (
        lambda f: nanogpt_writes(f / "train.bin").with_suffix(""),
        "train.bin has no index: if it is a plain line of ids, as nanoGPT and llm.c write them, `internevo data index",
    ),
    "nanoGPT, its folder": (
        lambda f: nanogpt_writes(f / "train.bin").parent,
        "train.bin --eos ID` finds its documents",
    ),
    "a file of a pair": (
        lambda f: [write_store(f / "web", numbered([3])), f / "web.bin"][1],
        "web.bin is one file of a pair; name them without the ending:",
    ),
    "the index of a pair": (
        lambda f: [write_store(f / "web", numbered([3])), f / "web.idx"][1],
        "is one file of a pair",
    ),
    "InternEvo's lines": (internevo_bin, "but InternEvo's JSON lines of ids: `internevo data import` makes a store of"),
    "InternEvo's lines, as if a pair": (
        lambda f: internevo_bin(f).with_suffix(""),
        "a.bin is InternEvo's JSON lines of ids: `internevo data import`",
    ),
    "a .ds of text": (
        lambda f: file(f / "a.ds", b"one\ntwo\n"),
        "no file of token ids, but text: `internevo data prep",
    ),
    "a .ds of parquet": (lambda f: file(f / "a.ds", b"PAR1" + bytes(9)), "no file of token ids, but a parquet file"),
    "a packed .ds": (lambda f: file(f / "a.ds", gzip.compress(bytes(99))), "no file of token ids, but a .gz archive"),
    "a parquet file, as if a pair": (lambda f: file(f / "a.parquet", b"PAR1" + bytes(9)), "is a parquet file"),
    "a chunk of litdata's": (lambda f: litdata(f / "web") / "chunk-0-0.bin", "holds litdata's chunks"),
    "a .ds of torch": (lambda f: file(f / "a.ds", b"PK\x03\x04"), "but a .zip archive or a file of torch.save"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_read_is_told_by_its_name(case: str, tmp_path: Path) -> None:
    make, message = WRONG[case]
    with pytest.raises(UserError) as caught:
        TokenStore.open_source(make(tmp_path))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ((20240326).to_bytes(4, "little"), "llm.c's file of a model"),
        (b"GGUF", "a GGUF file"),
        (b"SQLite format 3\x00", "an SQLite database"),
        (b"\xff\xff\xff\xff\x10\x00\x00\x00", "an Arrow stream"),
        (b"a.txt".ljust(257, b"\x00") + b"ustar", "a .tar archive"),
    ],
)
def test_other_files_get_no_index(content: bytes, kind: str, tmp_path: Path) -> None:
    """Each could be read as a line of ids with many documents."""
    path = file(tmp_path / "a.bin", content + bytes(1000))
    with pytest.raises(StoreError, match=f"no file of token ids, but {kind}"):
        index_documents(path, 0, 2)
    with pytest.raises(StoreError, match="holds litdata's chunks"):
        index_documents(litdata(tmp_path / "web") / "chunk-0-0.bin", 0, 2)


def test_files_of_ids_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds litdata's chunks"):
        input_files(litdata(tmp_path / "web"))
    with pytest.raises(UserError, match=r"train\.bin is not text, but a file of token ids by its name"):
        input_files(nanogpt_writes(tmp_path / "train.bin"))
    with pytest.raises(UserError, match=r"a\.ds is not text"):
        input_files(datatrove_writes(tmp_path, "a.ds", [[1]], 2))


def test_ids_are_no_json_lines(tmp_path: Path) -> None:
    path = nanogpt_writes(tmp_path / "train.bin")
    with pytest.raises(UserError, match=r"train\.bin holds no JSON lines, but bytes\. If they are plain ids"):
        import_internevo([path], tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["train.bin"]
    with pytest.raises(UserError, match="but InternEvo's JSON lines of ids"):
        index_documents(internevo_bin(tmp_path), 2, 2)
