"""The loader over epochs, stages and restarts: what a run trains on, token by token."""

from __future__ import annotations

import json
import struct
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.config.schema import SourceConfig
from internevo.data.batch import DIGEST_DIGITS, IGNORE, Batch, combine_digests, digest
from internevo.data.loader import Cursor, Loader, evaluation_batches
from internevo.data.mixing import Plan
from internevo.data.source_stream import SourceCursor, SourceStream
from internevo.tokens.megatron import StoreError
from tests.tokens.stores import HEADER, numbered, write_store


def tokens_of(stream: SourceStream, rows: int) -> list[int]:
    """The ids of the next rows; in a store of `numbered` documents an id is a place."""
    ids: list[int] = []
    for _ in range(rows):
        row = stream.next_row()
        for first, length in zip(row.first.tolist(), row.length.tolist(), strict=True):
            ids += stream.store.slice(first, first + length).tolist()
    return ids


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=50),
    st.lists(st.tuples(st.sampled_from(["concat", "best_fit"]), st.integers(2, 20), st.integers(0, 9)), max_size=5),
    st.integers(1, 20),
)
def test_each_token_once_an_epoch_whatever_stages_do(
    lengths: list[int], stages: list[tuple[str, int, int]], block: int
) -> None:
    """Row length and packer change in the middle of blocks; the cursor goes through JSON at every change."""
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder) / "train", numbered(lengths))
        cursor, seen = SourceCursor(), []
        for packing, seq_len, rows in [*stages, ("concat", 16, 10**9)]:
            place = SourceCursor.from_json(cursor.to_json())
            stream = SourceStream("web", store, packing, seq_len, 7, place, block_size=block)
            for _ in range(rows):
                if stream.cursor.tokens >= 2 * store.tokens:
                    break
                seen += tokens_of(stream, 1)
            cursor = stream.cursor
    first, second = seen[: store.tokens], seen[store.tokens :]
    assert Counter(first) == Counter(range(1, store.tokens + 1))
    assert Counter(second) == Counter(range(1, store.tokens + 1))
    assert cursor.tokens == 2 * store.tokens


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(1, 40))
def test_a_stream_goes_on_from_its_cursor(before: int, after: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder) / "train", numbered([3, 30, 1, 9, 12, 2, 7] * 3))
        unbroken = SourceStream("web", store, "best_fit", 16, 7, block_size=8)
        tokens_of(unbroken, before)
        again = SourceStream("web", store, "best_fit", 16, 7, unbroken.cursor, block_size=8)
        assert tokens_of(again, after) == tokens_of(unbroken, after)


def test_epochs_differ_and_so_do_seeds_and_names(tmp_path: Path) -> None:
    store = write_store(tmp_path / "train", numbered([16] * 64))
    first, second = (tokens_of(SourceStream("web", store, "concat", 16, 7, SourceCursor(block=b)), 64) for b in (0, 1))
    orders = [first, second]
    for name, seed in (("web", 8), ("code", 7)):
        orders.append(tokens_of(SourceStream(name, store, "concat", 16, seed), 64))
    assert len({tuple(order) for order in orders}) == 4
    assert len({tuple(sorted(order)) for order in orders}) == 1


def two_sources(folder: Path) -> list[SourceConfig]:
    rng = np.random.default_rng(3)
    for name in ("web", "code"):
        if not (folder / name).exists():
            write_store(folder / name / "train", numbered(rng.integers(1, 90, 40).tolist()))
    return [SourceConfig(str(folder / "web"), 0.7), SourceConfig(str(folder / "code"), 0.3)]


def loader(folder: Path, cursor: Cursor | None = None, seq_len: int = 32, packing: str = "best_fit") -> Loader:
    return Loader(Plan.constant(two_sources(folder), seq_len=seq_len, rows=5, packing=packing), seed=1, cursor=cursor)


def same(one: Batch, other: Batch) -> bool:
    arrays = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("tokens", "labels", "positions"))
    return arrays and (one.lengths, one.sources) == (other.lengths, other.sources)


@pytest.mark.parametrize("stop", [0, 1, 7, 30])
def test_a_resumed_loader_gives_the_same_batches(tmp_path: Path, stop: int) -> None:
    with loader(tmp_path) as unbroken:
        for _ in range(stop):
            unbroken.next()
        saved = json.loads(json.dumps(unbroken.cursor.to_json()))
        with loader(tmp_path, Cursor.from_json(saved)) as again:
            for _ in range(20):
                assert same(again.next(), unbroken.next())


def test_sources_keep_their_place_while_a_stage_does_not_use_them(tmp_path: Path) -> None:
    with loader(tmp_path) as first:
        for _ in range(3):
            first.next()
        cursor = first.cursor.next_stage()
    only_web = two_sources(tmp_path)[:1]
    with Loader(Plan.constant(only_web, seq_len=32, rows=2, packing="concat"), seed=1, cursor=cursor) as second:
        for _ in range(3):
            batch = second.next()
            assert set(batch.sources) == {"web"}
        assert second.cursor.sources["code"] == cursor.sources["code"]
        assert second.cursor.sources["web"].tokens > cursor.sources["web"].tokens
        assert second.cursor.sources["web"].share_tokens < second.cursor.sources["web"].tokens


def test_shares_of_a_stage(tmp_path: Path) -> None:
    drawn: Counter[str] = Counter()
    with loader(tmp_path) as batches:
        for _ in range(60):
            batch = batches.next()
            for source, real in zip(batch.sources, batch.real_tokens, strict=True):
                drawn[source] += real
            assert abs(drawn["web"] - 0.7 * drawn.total()) <= 2 * 32


def test_the_order_of_a_run_never_changes(tmp_path: Path) -> None:
    """Digests of the first steps, frozen: a run must resume on the same data under a later version of the code."""
    for packing, frozen in FROZEN.items():
        with loader(tmp_path, packing=packing) as batches:
            assert [digest(batches.next()) for _ in range(2)] == frozen


FROZEN = {
    "best_fit": ["81230687a69d53f4fd261182", "bacf54bfd8d3a3f16b50d427"],
    "concat": ["cfde1566d92d358cbb90d7df", "2ab091e00292b0cf2272867c"],
}


def small_batch() -> Batch:
    """Two rows: documents of 2 and 4 tokens, the second cut; and of 3 tokens, with padding."""
    tokens = np.array([[5, 6, 7, 8, 9, 4], [1, 2, 3, 0, 0, 0]])
    labels = np.array([[6, IGNORE, 8, 9, 4, 2], [2, 3, IGNORE, IGNORE, IGNORE, IGNORE]])
    positions = np.array([[0, 1, 0, 1, 2, 3], [0, 1, 2, 0, 1, 2]])
    return Batch(tokens, labels, positions, ((2, 4), (3, 3)), (6, 3), ("web", "code"), 7, slice(0, 2))


def changed(numbers: np.ndarray, row: int, place: int, value: int) -> np.ndarray:
    numbers = numbers.copy()
    numbers[row, place] = value
    return numbers


def test_a_digest_covers_all_that_decides_the_gradient() -> None:
    batch = small_batch()
    tokens, labels, positions = batch.tokens, batch.labels, batch.positions
    others = {
        "an id": replace(batch, tokens=changed(tokens, 1, 2, 4)),
        "an id of padding": replace(batch, tokens=changed(tokens, 1, 5, 1)),
        "a label": replace(batch, labels=changed(labels, 0, 0, 7)),
        "a label that is masked": replace(batch, labels=changed(labels, 0, 0, IGNORE)),
        "a label where none was": replace(batch, labels=changed(labels, 0, 1, 7)),
        "a position": replace(batch, positions=changed(positions, 0, 5, 4)),
        "a border": replace(batch, lengths=((6,), (3, 3))),
        "a border elsewhere": replace(batch, lengths=((3, 3), (3, 3))),
        "how many labels": replace(batch, label_count=8),
        "the order of rows": replace(
            batch, tokens=tokens[::-1], labels=labels[::-1], positions=positions[::-1], lengths=batch.lengths[::-1]
        ),
        "rows of another length": replace(
            batch,
            tokens=tokens.reshape(4, 3),
            labels=labels.reshape(4, 3),
            positions=positions.reshape(4, 3),
            lengths=((2, 1), (3,), (3,), (3,)),
            rows=slice(0, 4),
        ),
    }
    found = {name: digest(other) for name, other in {"itself": batch, **others}.items()}
    assert len(set(found.values())) == len(found), found
    assert {len(one) for one in found.values()} == {DIGEST_DIGITS}


def test_digests_can_be_made_together_and_do_not_depend_on_dtypes() -> None:
    batch = small_batch()
    parts = [
        replace(batch, tokens=batch.tokens[i], labels=batch.labels[i], positions=batch.positions[i], rows=i)
        for i in (slice(0, 1), slice(1, 2))
    ]
    assert digest(batch) == combine_digests([part.row_digests for part in parts], batch.label_count)
    assert digest(batch) == digest(replace(batch, tokens=batch.tokens.astype(np.uint16)))


def test_evaluation_takes_the_first_documents_whole(tmp_path: Path) -> None:
    store = write_store(tmp_path / "heldout", numbered([5, 9, 20, 7, 100]))
    batches = list(evaluation_batches("web", store, 16, 2, 41))
    ids = [int(i) for batch in batches for i in batch.tokens.ravel() if i]
    assert sorted(ids) == list(range(1, 42))  # 5 + 9 + 20 + 7 = 41
    assert all(len(batch.tokens) <= 2 for batch in batches)
    labels = sum(int((batch.labels != IGNORE).sum()) for batch in batches)
    assert labels == 41 - 4
    (batch,) = evaluation_batches("web", store, 16, 2, 3)  # less than one document: its beginning
    assert batch.tokens[0, :3].tolist() == [1, 2, 3]
    assert batch.real_tokens == (3,)


def test_an_empty_store_is_named(tmp_path: Path) -> None:
    write_store(tmp_path / "web" / "train", [])
    with pytest.raises(StoreError, match=r"source web: .*web holds no tokens"):
        Loader(Plan.constant([SourceConfig(str(tmp_path / "web"))], seq_len=8, rows=1, packing="concat"), seed=1)


def test_damage_that_shows_only_later_reaches_the_caller(tmp_path: Path) -> None:
    """The thread that makes batches meets it, and the training loop hears of it."""
    sources = two_sources(tmp_path)
    path = tmp_path / "web" / "train.idx"
    index = bytearray(path.read_bytes())
    struct.pack_into("<q", index, HEADER + 40 * 4 + 8 * 20, -8)
    path.write_bytes(index)
    with Loader(Plan.constant(sources, seq_len=32, rows=1, packing="concat", block_size=4), seed=1) as batches:
        batches.next()  # the first block has nothing of document 20
        with pytest.raises(StoreError, match="is damaged"):
            _ = [batches.next() for _ in range(40)]
