"""Weights of labels against the documents themselves, gone through token by token, whatever rows cut."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.config.schema import SourceConfig
from internevo.data.batch import IGNORE, Batch, digest
from internevo.data.loader import Loader, Part
from internevo.data.mixing import Plan
from internevo.tokens.store_writer import TokenStoreWriter

documents = st.lists(st.lists(st.booleans(), min_size=1, max_size=30), min_size=1, max_size=12)
"""Of each token, whether it is learnt."""


def expected_weights(learnt: list[bool], average: str) -> dict[int, Fraction]:
    """By place in the document of the token that is the label."""
    labels = [at for at in range(1, len(learnt)) if learnt[at]]
    if average == "conversation":
        return {at: Fraction(1, len(labels)) for at in labels}
    found = {}
    for at in labels:
        begin = end = at
        while begin - 1 in labels:
            begin -= 1
        while end + 1 in labels:
            end += 1
        found[at] = Fraction(1, end - begin + 1)
    return found


def write(folder: Path, learnt: list[list[bool]]) -> Path:
    """A store in which every token is another id, from 1 on."""
    folder.mkdir(parents=True)
    number = 0
    with TokenStoreWriter(folder / "train", np.int32) as writer:
        for one in learnt:
            ids = np.arange(number + 1, number + 1 + len(one))
            writer.append(np.where(one, ids, ~ids).astype(np.int32))
            number += len(one)
    (folder / "manifest.json").write_text(json.dumps({"masked": True, "masking": "complement"}))
    return folder


def batches(folder: Path, average: str, seq_len: int, packing: str, steps: int, part: Part) -> list[Batch]:
    plan = Plan.constant([SourceConfig(str(folder), max_epochs=1)], seq_len=seq_len, rows=4, packing=packing)
    with Loader(replace(plan, average=average), seed=3, part=part) as loader:
        return [loader.next() for _ in range(steps)]


@settings(max_examples=60, deadline=None)
@given(
    documents,
    st.sampled_from(["message", "conversation"]),
    st.integers(2, 40),
    st.sampled_from(["concat", "best_fit"]),
)
def test_every_label_has_the_weight_of_its_whole_document(
    tmp_path_factory: pytest.TempPathFactory, learnt: list[list[bool]], average: str, seq_len: int, packing: str
) -> None:
    folder = write(tmp_path_factory.mktemp("store") / "s", learnt)
    wanted: dict[int, Fraction] = {}
    first = 1
    for one in learnt:
        wanted |= {first + at: weight for at, weight in expected_weights(one, average).items()}
        first += len(one)
    tokens = sum(map(len, learnt))
    steps = -(-tokens // (4 * seq_len))  # at least: some rows are not full
    found: dict[int, float] = {}
    parts: dict[int, list[Batch]] = defaultdict(list)
    for number in range(2):
        for step, batch in enumerate(batches(folder, average, seq_len, packing, steps, Part(number, 2))):
            parts[step].append(batch)
    for step in parts.values():
        assert step[0].weight_sum == step[1].weight_sum == step[0].divisor
        here = 0.0
        for batch in step:
            assert batch.weights is not None
            assert batch.weights.dtype == np.float32
            real = batch.labels != IGNORE
            assert (batch.weights[~real] == 0).all()
            found |= dict(zip(batch.labels[real].tolist(), batch.weights[real].tolist(), strict=True))
            here += float(batch.weights.sum())
        assert here == pytest.approx(step[0].weight_sum, rel=1e-5, abs=1e-6)
    for label, weight in found.items():
        assert weight == np.float32(float(wanted[label]))
    if packing == "concat":  # every row is full but the last: all labels were seen
        assert set(found) == set(wanted)


def test_the_worked_example(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", [[False, False, True, True, False, True, False, True, True]])
    for average, weights, total in (
        ("message", [0, 1 / 2, 1 / 2, 0, 1, 0, 1 / 2, 1 / 2, 0], 3),
        ("conversation", [0, 1 / 5, 1 / 5, 0, 1 / 5, 0, 1 / 5, 1 / 5, 0], 1),
    ):
        (batch,) = batches(folder, average, 9, "concat", 1, Part(0, 1))
        assert batch.weights is not None
        assert batch.weights[0].tolist() == np.array(weights, np.float32).tolist()
        assert batch.divisor == pytest.approx(total)


def test_a_text_without_masks_counts_as_one_message_and_one_conversation(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with TokenStoreWriter(tmp_path / "s" / "train", np.uint16) as writer:
        writer.append(np.arange(1, 12, dtype=np.uint16))
    for average in ("message", "conversation"):
        (batch,) = batches(tmp_path / "s", average, 4, "concat", 1, Part(0, 1))
        assert batch.weights is not None
        assert batch.weights.sum() == pytest.approx(1)
        assert batch.weights.max() == np.float32(0.1)


def test_a_digest_covers_the_weights(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", [[False, True, False, True, True], [True, True]])
    found = [digest(batches(folder, how, 16, "concat", 1, Part(0, 1))[0]) for how in ("token", "message")]
    (batch,) = batches(folder, "message", 16, "concat", 1, Part(0, 1))
    assert batch.weights is not None
    changed = replace(batch, weights=batch.weights * np.float32(1.5))
    found += [digest(changed), digest(replace(batch, weight_sum=batch.weight_sum * 2))]
    assert len(set(found)) == 4
