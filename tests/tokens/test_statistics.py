"""What token frequencies alone give: from the training documents, not from those that are evaluated."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from internevo.tokens.statistics import frequency_loss, label_counts
from internevo.tokens.store import TokenStore
from tests.tokens.stores import write_store


def test_every_label_is_counted_once(tmp_path: Path) -> None:
    documents = [np.array([1, 5, 5, 2]), np.array([1, 7, 2]), np.array([1])]
    store = write_store(tmp_path / "train", documents)
    counts = label_counts(store, 9)
    assert counts.tolist() == [0, 0, 2, 0, 0, 2, 0, 1, 0]  # the first token of a document is nobody's label


def test_masked_tokens_are_no_labels(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"masked": true}')
    store = write_store(tmp_path / "train", [np.array([1, -5, 5, 2])])
    assert label_counts(store, 9).tolist() == [0, 0, 1, 0, 0, 1, 0, 0, 0]


def test_a_sample_stands_for_the_store(tmp_path: Path) -> None:
    """Documents of very different lengths, some of them longer than what is read of one."""
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(2, 300, 3000).tolist(), 200_000, 150_000]
    documents = [rng.choice(64, length, p=np.arange(1, 65) / 2080) for length in lengths]
    store = write_store(tmp_path / "train", [documents[i] for i in rng.permutation(len(documents))])
    whole, part = label_counts(store, 64), label_counts(store, 64, most=200_000)
    assert whole.sum() == store.tokens - len(store)
    assert frequency_loss(whole, part) == pytest.approx(frequency_loss(whole, whole), abs=0.01)


def test_only_so_much_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_store(tmp_path / "train", [np.full(50, 3)] * 4000)
    read: list[int] = []
    whole = TokenStore.slice

    def counted(self: TokenStore, begin: int, end: int) -> np.ndarray:
        read.append(end - begin)
        return whole(self, begin, end)

    monkeypatch.setattr(TokenStore, "slice", counted)
    label_counts(store, 8, most=10_000)
    assert 5_000 < sum(read) <= 10_000


def test_the_loss_by_hand() -> None:
    training = np.array([6.0, 2.0, 0.0])  # with one added to each: 7, 3 and 1 of 11
    labels = np.array([1.0, 0.0, 3.0])
    expected = -(math.log(7 / 11) + 3 * math.log(1 / 11)) / 4
    assert frequency_loss(labels, training) == pytest.approx(expected)
    entropy = -(math.log(1 / 4) / 4 + 3 / 4 * math.log(3 / 4))
    assert frequency_loss(labels, training) > entropy  # the labels' own frequencies could not have been known
    with pytest.raises(ValueError, match="no labels"):
        frequency_loss(np.zeros(3), training)
