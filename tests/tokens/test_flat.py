"""Flat files: what datatrove writes, what OLMo has, and everything that may be wrong with them."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.tokens.flat import index_documents
from internevo.tokens.megatron import StoreError
from internevo.tokens.store import TokenStore

EOS = 7


def datatrove_writes(folder: Path, name: str, documents: list[list[int]], token_size: int) -> Path:
    from datatrove.pipeline.tokens.tokenizer import TokenizedFile

    file = TokenizedFile(str(folder), name, save_final_metadata=True, token_size=token_size)
    for document in documents:
        file.write(document, None)
    file.close()
    return folder / name


def read(path: Path) -> list[list[int]]:
    store = TokenStore.open_source(path)
    assert store.tokens == sum(map(int, store.lengths(np.arange(len(store)))))
    return [store.read(number).tolist() for number in range(len(store))]


@pytest.mark.parametrize("token_size", [2, 4])
@pytest.mark.parametrize("metadata", [True, False])
def test_what_datatrove_writes(tmp_path: Path, token_size: int, metadata: bool) -> None:
    documents = [[1, 2, 3], [65_535], list(range(50_000))]
    path = datatrove_writes(tmp_path, "a.ds", documents, token_size)
    if not metadata:
        path.with_name("a.ds.metadata").unlink()
    assert read(path) == documents


def test_megatron_pairs_that_datatrove_writes(tmp_path: Path) -> None:
    from datatrove.pipeline.tokens.megatron_tokenizer import MegatronTokenizedFile

    documents = [[1, 2, 3], [90_000], [5]]
    file = MegatronTokenizedFile(str(tmp_path), "a", token_size=4)
    for document in documents:
        file.write(document)
    file.close()
    assert read(tmp_path / "a") == documents


def test_a_folder_of_files(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        datatrove_writes(tmp_path, f"00{number}.ds", [[number] * 3, [number]], 2)
    assert read(tmp_path) == [[n] * length for n in range(3) for length in (3, 1)]
    store = TokenStore.open_source(tmp_path)
    assert store.starts(np.array([0, 1, 2, 5, 6])).tolist() == [0, 3, 4, 11, 12]
    datatrove_writes(tmp_path, "003.ds", [[1]], 4)
    with pytest.raises(StoreError, match="its files are of several dtypes"):
        TokenStore.open_source(tmp_path)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(8, 60_000), max_size=9), min_size=1, max_size=9),
    st.lists(st.integers(8, 60_000), max_size=5),
    st.sampled_from([2, 4]),
    st.booleans(),
    st.integers(1, 12),
)
def test_documents_are_found_by_their_end(
    tmp_path_factory: pytest.TempPathFactory,
    inner: list[list[int]],
    last: list[int],
    token_bytes: int,
    saved: bool,
    chunk: int,
) -> None:
    """In raw files as OLMo writes them and in those that numpy saves, wherever the file is cut for reading."""
    documents = [[*document, EOS] for document in inner] + ([last] if last else [])
    path = tmp_path_factory.mktemp("flat") / "part.npy"
    ids = np.array(list(chain.from_iterable(documents)), np.uint16 if token_bytes == 2 else np.uint32)
    np.save(path, ids) if saved else ids.tofile(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("internevo.tokens.flat._CHUNK", chunk)
        assert index_documents(path, EOS, token_bytes) == len(documents)
    assert read(path) == documents


def flat(tmp_path: Path) -> Path:
    return datatrove_writes(tmp_path, "a.ds", [[1, 2, 3], [4]], 2)


def test_without_an_index(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.array([1, EOS], np.uint16).tofile(path)
    with pytest.raises(StoreError, match=r"a\.npy has no index of its documents. `internevo data index .*a\.npy --eos"):
        TokenStore.open_source(path)
    with pytest.raises(StoreError, match=r"b\.npy does not exist"):
        TokenStore.open_source(tmp_path / "b.npy")


@pytest.mark.parametrize(
    ("ending", "size", "message"),
    [
        ("", 6, "and its index disagree: 3 tokens, of which documents end at 4"),
        ("", 7, "is torn: 7 bytes are no whole number of 2-byte tokens"),
        (".index", 8, "and its index disagree: 4 tokens, of which documents end at 3"),
        (".index", 9, "is torn: 9 bytes are no whole number of uint64"),
        (".metadata", 3, "names no size of a token"),
    ],
)
def test_torn_files(tmp_path: Path, ending: str, size: int, message: str) -> None:
    path = flat(tmp_path)
    os.truncate(path.with_name(path.name + ending), size)
    with pytest.raises(StoreError, match=message):
        TokenStore.open_source(path)


@pytest.mark.parametrize(("ends", "message"), [([900, 4], "begins outside"), ([3, 2, 4], "document 1 ends before")])
def test_an_index_that_cannot_be_right(tmp_path: Path, ends: list[int], message: str) -> None:
    path = flat(tmp_path)
    np.array(ends, "<u8").tofile(path.with_name("a.ds.index"))
    store = TokenStore.open_source(path)
    with pytest.raises(StoreError, match=rf"a\.ds\.index is damaged: .*{message}"):
        store.lengths(np.arange(len(store)))


def test_what_cannot_be_indexed(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.array([1, 2, 3], np.uint16).tofile(path)
    with pytest.raises(StoreError, match="the id 7 never comes in 3 tokens of 2 bytes"):
        index_documents(path, EOS, 2)
    assert [one.name for one in tmp_path.iterdir()] == ["a.npy"]
    with pytest.raises(StoreError, match="6 bytes are no whole number of 4-byte tokens"):
        index_documents(path, EOS, 4)
    with pytest.raises(StoreError, match="tokens of 3 bytes are not read; a token has 2 or 4"):
        index_documents(path, 3, 3)
    index_documents(path, 3, 2)
    with pytest.raises(StoreError, match=r"a\.npy\.index exists already"):
        index_documents(path, 3, 2)
    np.save(tmp_path / "b.npy", np.zeros((2, 2)))
    with pytest.raises(StoreError, match="an array float64 of 2 dimensions, not a line of token ids"):
        index_documents(tmp_path / "b.npy", 0, 2)
    (tmp_path / "c.npy").touch()
    with pytest.raises(StoreError, match="holds no tokens"):
        index_documents(tmp_path / "c.npy", 0, 2)
