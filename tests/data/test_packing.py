"""Packing, from pieces of documents to the labels and positions of a batch."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.data.batch import IGNORE, Batch
from internevo.data.loader import PADDING, materialise
from internevo.data.packing import PACKERS, Pieces, pack_best_fit, pack_concat
from internevo.data.source_stream import Row, row_of
from internevo.tokens.store import TokenStore
from tests.tokens.stores import numbered, write_store

lengths = st.lists(st.integers(0, 40), min_size=1, max_size=60)
packers = st.sampled_from(sorted(PACKERS))


def packed(lengths: list[int], seq_len: int, packing: str, folder: Path) -> Batch:
    """All rows of these documents. Token ids say where a token stands in the store; 0 is padding."""
    store = write_store(folder / "train", numbered([n for n in lengths if n]))
    full = np.array([n for n in lengths if n], dtype=np.int64)
    starts = np.cumsum(full) - full
    rows = PACKERS[packing](Pieces.whole(full), seq_len)
    plan: list[tuple[str, TokenStore, Row]] = []
    for number in range(len(rows)):
        row = rows[number]
        plan.append(("web", store, row_of(store, row, np.arange(len(store)), starts, full)))
    return materialise(plan, seq_len)


@settings(max_examples=150, deadline=None)
@given(lengths, st.integers(2, 33), packers)
def test_every_token_once_labels_inside_documents_positions_restart(
    lengths: list[int], seq_len: int, packing: str
) -> None:
    if not any(lengths):
        return
    with tempfile.TemporaryDirectory() as folder:
        batch = packed(lengths, seq_len, packing, Path(folder))
    real = [row[:count] for row, count in zip(batch.tokens, batch.real_tokens, strict=True)]
    assert Counter(np.concatenate(real).tolist()) == Counter(range(1, sum(lengths) + 1))
    ends = set(np.cumsum(lengths).tolist())  # the id of each document's last token
    labelled = 0
    for row in range(len(batch.tokens)):
        assert sum(batch.lengths[row]) == seq_len
        place = 0
        for length in batch.lengths[row]:
            tokens = batch.tokens[row, place : place + length]
            labels = batch.labels[row, place : place + length]
            assert batch.positions[row, place : place + length].tolist() == list(range(length))
            if place >= batch.real_tokens[row]:
                assert set(tokens.tolist()) == {PADDING}
                assert set(labels.tolist()) == {IGNORE}
            else:
                assert (np.diff(tokens) == 1).all()  # a stretch of one document
                assert not ends & set(tokens[:-1].tolist())
                for token, label in zip(tokens.tolist(), labels.tolist(), strict=True):
                    assert label == (IGNORE if token in ends else token + 1)
                    labelled += label != IGNORE
            place += length
    # nothing that could be learned from is lost: every token but each document's first is a label once
    assert labelled == sum(length - 1 for length in lengths if length)


@settings(max_examples=150, deadline=None)
@given(lengths, st.integers(2, 33))
def test_concat_pads_the_last_row_only(lengths: list[int], seq_len: int) -> None:
    rows = pack_concat(Pieces.whole(np.array(lengths)), seq_len)
    filled = [int(rows[number].length.sum()) for number in range(len(rows))]
    assert sum(filled) == sum(lengths)
    assert all(count == seq_len for count in filled[:-1])


@settings(max_examples=150, deadline=None)
@given(lengths, st.integers(2, 33))
def test_best_fit_cuts_only_what_is_longer_than_a_row(lengths: list[int], seq_len: int) -> None:
    rows = pack_best_fit(Pieces.whole(np.array(lengths)), seq_len)
    pieces = Counter(rows.pieces.document.tolist())
    for document, length in enumerate(lengths):
        assert pieces[document] == -(-length // seq_len)
    filled = [int(rows[number].length.sum()) for number in range(len(rows))]
    assert sum(filled) == sum(lengths)
    assert max(filled, default=0) <= seq_len
    # no two rows could have been one: a piece goes into an open row whenever one has room
    assert sum(sorted(filled)[:2]) > seq_len or len(filled) < 2


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """The textbook, without any cleverness."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return rows


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60))
def test_best_fit_is_best_fit_decreasing(lengths: list[int]) -> None:
    rows = pack_best_fit(Pieces.whole(np.array(lengths)), 30)
    ours = Counter(int(rows[number].length.sum()) for number in range(len(rows)))
    assert ours == Counter(map(sum, best_fit_decreasing(lengths, 30)))


def test_best_fit_wastes_almost_nothing_on_lengths_like_those_of_text() -> None:
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(6, 1.2, 4096).astype(np.int64) + 1, 100_000)
    rows = pack_best_fit(Pieces.whole(lengths), 4096)
    assert len(rows) * 4096 < 1.005 * lengths.sum()


@settings(max_examples=100, deadline=None)
@given(lengths, st.integers(2, 33), packers, st.data())
def test_what_is_left_of_a_packing_joins_again(
    lengths: list[int], seq_len: int, packing: str, data: st.DataObject
) -> None:
    """When a stage changes the row length, the rows not yet taken are made into pieces as long as they can be."""
    rows = PACKERS[packing](Pieces.whole(np.array(lengths)), seq_len)
    order = np.array(data.draw(st.permutations(range(len(rows)))), dtype=np.int64)
    taken = data.draw(st.integers(0, len(rows)))
    left = rows.take(order[taken:]).pieces.joined()
    first = rows.take(order[:taken]).pieces
    seen: Counter[tuple[int, int]] = Counter()
    for pieces in (first, left):
        for document, start, length in zip(pieces.document, pieces.start, pieces.length, strict=True):
            seen.update((int(document), int(start) + i) for i in range(int(length)))
    assert seen == Counter((document, i) for document, length in enumerate(lengths) for i in range(length))
    ends = left.start + left.length
    touching = (left.document[1:] == left.document[:-1]) & (left.start[1:] == ends[:-1])
    assert not touching.any()


@pytest.mark.parametrize("packing", sorted(PACKERS))
def test_nothing_makes_no_rows(packing: str) -> None:
    assert len(PACKERS[packing](Pieces.whole(np.array([0, 0])), 8)) == 0


@pytest.mark.parametrize(
    ("packing", "rows"),
    [
        ("concat", ["A[0:3] B[0:1]", "B[1:5]", "B[5:6] C[0:2] D[0:1]"]),
        ("best_fit", ["B[0:4]", "A[0:3] D[0:1]", "B[4:6] C[0:2]"]),
    ],
)
def test_the_worked_example_of_its_file(packing: str, rows: list[str]) -> None:
    packed = PACKERS[packing](Pieces.whole(np.array([3, 6, 2, 1])), 4)
    found = []
    for number in range(len(packed)):
        row = packed[number]
        pieces = zip(row.document.tolist(), row.start.tolist(), row.length.tolist(), strict=True)
        found.append(" ".join(f"{'ABCD'[document]}[{start}:{start + length}]" for document, start, length in pieces))
    assert found == rows
