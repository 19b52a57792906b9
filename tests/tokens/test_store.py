"""The token store against an independent reader and writer of Megatron's format, and against damage."""

from __future__ import annotations

import os
import resource
import struct
import tempfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.tokens.megatron import StoreError
from internevo.tokens.store import TokenStore
from internevo.tokens.store_writer import TokenStoreWriter, token_dtype
from tests.tokens.stores import CODES, HEADER, numbered, read_by_hand, write_by_hand, write_store

IDS = {1: (0, 255), 2: (-128, 127), 3: (-(2**15), 2**15 - 1), 4: (0, 2**31 - 1), 5: (0, 2**62), 8: (0, 2**16 - 1)}


def assert_holds(store: TokenStore, documents: list[list[int]]) -> None:
    assert len(store) == len(documents)
    assert store.tokens == len(store.slice(0, store.tokens)) == sum(map(len, documents))
    numbers = np.arange(len(documents))[::-1]
    assert store.lengths(numbers).tolist() == [len(documents[number]) for number in numbers]
    assert store.lengths(numbers).dtype == store.starts(numbers).dtype == np.int64
    for number, document in enumerate(documents):
        assert store.read(number).tolist() == document
        start = int(store.starts(np.array([number]))[0])
        assert store.slice(start, start + len(document)).tolist() == document


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(sorted(CODES)))
def test_what_is_written_can_be_read_by_others(data: st.DataObject, code: int) -> None:
    ids = st.lists(st.integers(*IDS[code]), min_size=1, max_size=9)
    documents = data.draw(st.lists(ids, min_size=1, max_size=12))
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "train"
        store = write_store(prefix, [np.array(document) for document in documents], np.dtype(CODES[code]).type)
        assert read_by_hand(prefix) == [[document] for document in documents]
        assert store.dtype == np.dtype(CODES[code])
        assert_holds(store, documents)
        assert sorted(os.listdir(folder)) == ["train.bin", "train.idx"]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(sorted(CODES)))
def test_what_others_write_can_be_read(data: st.DataObject, code: int) -> None:
    """Documents of several sequences, of one, of empty ones, of none: Megatron's tools write all of them."""
    sequence = st.lists(st.integers(*IDS[code]), max_size=5)
    documents = data.draw(st.lists(st.lists(sequence, max_size=3), max_size=8))
    with tempfile.TemporaryDirectory() as folder:
        write_by_hand(Path(folder) / "other", documents, code)
        assert_holds(
            TokenStore(Path(folder) / "other"), [list(chain.from_iterable(document)) for document in documents]
        )


def test_empty_documents_do_not_make_several_sequences_look_like_one_each(tmp_path: Path) -> None:
    # as many borders as for one sequence a document
    write_by_hand(tmp_path / "other", [[], [[1, 2], [3]], [], [[4], [5, 6]]])
    assert_holds(TokenStore(tmp_path / "other"), [[], [1, 2, 3], [], [4, 5, 6]])


def test_megatron_reads_and_writes_the_same_format(tmp_path: Path) -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed")
    documents = numbered([3, 1, 7, 200])
    for dtype in (np.uint16, np.int32):
        prefix = tmp_path / np.dtype(dtype).name
        write_store(prefix, documents, dtype)
        theirs = indexed.IndexedDataset(str(prefix))
        assert len(theirs) == len(documents)
        assert theirs.document_indices.tolist() == [0, 1, 2, 3, 4]
        for number, document in enumerate(documents):
            assert theirs[number].dtype == dtype
            assert theirs[number].tolist() == document.tolist()
    builder = indexed.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    builder.end_document()
    for lengths in ([3, 2], [], [4, 1, 1]):
        builder.add_document(torch.arange(sum(lengths)), lengths)
    builder.finalize(str(tmp_path / "theirs.idx"))
    assert_holds(TokenStore(tmp_path / "theirs"), [[], [0, 1, 2, 3, 4], [], [0, 1, 2, 3, 4, 5]])


def test_token_dtype_is_the_smallest_that_holds_the_vocabulary() -> None:
    assert [token_dtype(size) for size in (1, 2**16, 2**16 + 1, 92_544)] == [np.uint16, np.uint16, np.int32, np.int32]
    with tempfile.TemporaryDirectory() as folder:
        highest = write_store(Path(folder) / "a", [np.array([0, 2**16 - 1])], np.uint16)
        assert highest.read(0).tolist() == [0, 2**16 - 1]


def test_opening_a_billion_documents_touches_a_few_pages(tmp_path: Path) -> None:
    count, tokens = 10**9, 10**11
    index = tmp_path / "huge.idx"
    with index.open("wb") as file:  # everything that is not written is a hole
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 4, count, count + 1))
        file.seek(HEADER + 4 * (count - 1))
        file.write(struct.pack("<i", 5))
        file.seek(HEADER + 12 * count - 8)
        file.write(struct.pack("<q", 4 * (tokens - 5)))
        file.seek(HEADER + 20 * count - 8)
        file.write(struct.pack("<qq", count - 1, count))
    (tmp_path / "huge.bin").touch()
    os.truncate(tmp_path / "huge.bin", 4 * tokens)

    def faults() -> int:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_minflt + usage.ru_majflt

    before = faults()
    store = TokenStore(tmp_path / "huge")
    last = store.read(count - 1)
    touched = faults() - before
    assert (len(store), store.tokens, len(last)) == (count, tokens, 5)
    # its index alone has five million pages, and ten thousand even if memory came in pages of 2 MiB
    assert touched < 1000


def damaged(tmp_path: Path) -> Path:
    write_store(tmp_path / "train", numbered([4, 2, 9]))
    return tmp_path / "train.idx"


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_a_missing_file_is_named(tmp_path: Path, ending: str) -> None:
    damaged(tmp_path).with_suffix(ending).unlink()
    with pytest.raises(StoreError, match=rf"train\{ending} does not exist"):
        TokenStore(tmp_path / "train")


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_every_truncation_is_noticed(tmp_path: Path, ending: str) -> None:
    path = damaged(tmp_path).with_suffix(ending)
    for size in reversed(range(path.stat().st_size)):
        os.truncate(path, size)
        with pytest.raises(StoreError, match=rf"train\{ending} is (torn|not the index)"):
            TokenStore(tmp_path / "train")


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"X", "is not the index"),
        (9, b"\x02", "version 2"),
        (17, b"\x63", "dtype code 99"),
        (17, b"\x06", "dtype code 6"),  # Megatron's float64
        (18, struct.pack("<Q", 2**60), "is torn"),
        (26, struct.pack("<Q", 0), "is torn"),
        (26, struct.pack("<Q", 3), "is torn: its documents end at sequence 2 of 3"),
        (-8, struct.pack("<q", 0), "is torn: its documents end at sequence 0 of 3"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, offset: int, value: bytes, message: str) -> None:
    path = damaged(tmp_path)
    content = bytearray(path.read_bytes())
    offset %= len(content)
    content[offset : offset + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(StoreError, match=rf"train\.idx.*{message}"):
        TokenStore(tmp_path / "train")


@pytest.mark.parametrize(("pointer", "message"), [(10**9, "outside"), (-8, "outside"), (4 * 8, "ends before")])
def test_pointers_that_cannot_be_right_are_noticed_when_they_are_used(
    tmp_path: Path, pointer: int, message: str
) -> None:
    path = damaged(tmp_path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<q", content, HEADER + 3 * 4 + 8, pointer)
    path.write_bytes(content)
    store = TokenStore(tmp_path / "train")
    with pytest.raises(StoreError, match=rf"train\.idx is damaged: document 1 .*{message}"):
        store.lengths(np.arange(3))


def test_more_data_than_the_index_knows_is_left_alone(tmp_path: Path) -> None:
    damaged(tmp_path)
    with (tmp_path / "train.bin").open("ab") as file:
        file.write(b"abcde")  # not even a whole token
    store = TokenStore(tmp_path / "train")
    assert store.tokens == len(store.slice(0, store.tokens)) == 15
    assert store.read(2).tolist() == list(range(7, 16))


def test_the_writer_refuses_what_cannot_be_stored(tmp_path: Path) -> None:
    with TokenStoreWriter(tmp_path / "train", np.uint16) as writer:
        writer.append(np.array([5]))
        with pytest.raises(StoreError, match="without tokens"):
            writer.append(np.array([], dtype=np.int64))
        for ids in ([1, 2**16], [-1]):
            with pytest.raises(StoreError, match="do not fit uint16"):
                writer.append(np.array(ids))
    assert read_by_hand(tmp_path / "train") == [[[5]]]


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_a_store_is_never_overwritten(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"train{ending}").write_bytes(b"precious")
    with pytest.raises(StoreError, match=rf"train\{ending} exists already"):
        TokenStoreWriter(tmp_path / "train", np.uint16)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(f"train{ending}", b"precious")]


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="do not fit uint16"):
        write_store(tmp_path / "train", [np.array([1, 2, 3]), np.array([-1])], np.uint16)
    assert not list(tmp_path.iterdir())


def test_no_file_has_its_name_before_the_end(tmp_path: Path) -> None:
    with TokenStoreWriter(tmp_path / "train", np.uint16) as writer:
        writer.append(np.array([1, 2, 3]))
        assert not {"train.bin", "train.idx"} & {path.name for path in tmp_path.iterdir()}


def test_a_store_without_documents_can_be_opened(tmp_path: Path) -> None:
    store = write_store(tmp_path / "train", [])
    assert_holds(store, [])


def test_sources_and_held_out_documents(tmp_path: Path) -> None:
    write_store(tmp_path / "folder" / "train", numbered([2]))
    assert TokenStore.open_source(tmp_path / "folder").tokens == 2
    assert TokenStore.open_source(tmp_path / "folder" / "train").tokens == 2
    assert TokenStore.open_heldout(tmp_path / "folder") is None
    write_store(tmp_path / "folder" / "heldout", numbered([3]))
    heldout = TokenStore.open_heldout(tmp_path / "folder")
    assert heldout is not None
    assert heldout.tokens == 3
