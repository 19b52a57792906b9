"""Scores of tokens, and what is made of them, beside transformers on the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from internevo.eval.heldout import evaluate_sources, first_tokens, open_for_evaluation, summarise
from internevo.eval.scorer import Scored, Scorer
from internevo.files.errors import UserError
from internevo.monitor.metrics import read_metrics
from internevo.tokens.store import TokenStore
from internevo.train.stored_model import open_model
from tests.parallel.jobs import ALONE


@torch.no_grad()
def by_transformers(folder: Path, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses and whether the likeliest token was right, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    logits = model(torch.from_numpy(tokens)[None]).logits[0, :-1].double()
    labels = torch.from_numpy(tokens[1:])
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return losses.numpy(), (logits.argmax(-1) == labels).numpy()


@pytest.fixture(scope="module")
def scorer(text_run: Path) -> Scorer:
    return Scorer(open_model(text_run), ALONE, 128)


def test_scores_are_those_of_transformers(scorer: Scorer, exported: Path) -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 512, n) for n in (2, 128, 7, 100, 64, 3)]
    for tokens, one in zip(sequences, scorer.score(sequences), strict=True):
        losses, correct = by_transformers(exported, tokens)
        assert np.abs(one.losses - losses).max() < 1e-4
        assert (one.correct == correct).all()


@settings(deadline=None, max_examples=15)
@given(lengths=st.lists(st.integers(2, 128), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_a_score_does_not_depend_on_its_neighbours(scorer: Scorer, lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(0, 512, n) for n in lengths]
    together = scorer.score(sequences)
    for tokens, one in zip(sequences, together, strict=True):
        (alone,) = scorer.score([tokens])
        np.testing.assert_allclose(one.losses, alone.losses, atol=2e-5)


def test_what_cannot_be_scored(scorer: Scorer) -> None:
    with pytest.raises(UserError, match="has 1 tokens"):
        scorer.score([np.zeros(1, np.int64)])
    with pytest.raises(UserError, match="id 512 is past the model's vocabulary of 512"):
        scorer.score([np.array([1, 512])])


def score_over_ranks(world: Any, run: str, sequences: list[np.ndarray]) -> list[np.ndarray]:
    """A job of a rank: what it knows of all scores."""
    scored = Scorer(open_model(Path(run)), world, 128).score(sequences)
    return [np.concatenate([one.losses, one.correct]) for one in scored]


def test_ranks_that_share_rows_score_alike(scorer: Scorer, text_run: Path, ranks: Any) -> None:
    rng = np.random.default_rng(1)
    sequences = [rng.integers(0, 512, n) for n in (128, 5, 77, 2, 128)]
    alone = scorer.score(sequences)
    for mine in ranks(2).run(score_over_ranks, str(text_run), sequences):
        for one, theirs in zip(alone, mine, strict=True):
            losses, correct = np.split(theirs, 2)
            np.testing.assert_allclose(losses, one.losses, atol=1e-4)
            assert (correct == one.correct).all()


def test_losses_put_together() -> None:
    """Positions count from the document's start; a long document weighs more in the whole, not among documents."""
    first = Scored(np.arange(70, dtype=np.float32), np.zeros(70, bool))
    second = Scored(np.full(10, 5, np.float32), np.zeros(10, bool))
    found = summarise([first, second], 128)
    assert found.tokens == 80
    assert found.loss == pytest.approx((sum(range(70)) + 50) / 80)
    assert [(a, b, n) for a, b, _, n in found.by_position] == [(0, 64, 74), (64, 128, 6)]
    assert found.by_position[1][2] == pytest.approx(66.5)
    assert found.documents == [34.5, 5.0]


def test_held_out_loss_is_that_of_training(scorer: Scorer, text_run: Path) -> None:
    """Documents that fit a row: the same loss as the run's own evaluation at its end."""
    store = open_for_evaluation(str(text_run.parents[1] / "tokens"))
    documents = [np.asarray(store.read(n)) for n in range(len(store))]
    assert TokenStore.open_heldout(str(text_run.parents[1] / "tokens")) is not None
    found = evaluate_sources(scorer, {"library": str(text_run.parents[1] / "tokens")}, 128, 10**9)["library"]
    assert len(found.documents) == len(documents)
    assert found.tokens == sum(min(len(one), 128) - 1 for one in documents)
    assert [len(one) for one in first_tokens(store, 128, 300)] == [128, 128, 128]
    ends = [one["loss"] for one in read_metrics(text_run / "evals.jsonl") if one["when"] == "end"]
    assert found.loss == pytest.approx(ends[0], abs=0.3)  # that one has the documents' later parts too


def test_evaluation_within_training(text_run: Path) -> None:
    evals = [(one["when"], one["step"]) for one in read_metrics(text_run / "evals.jsonl")]
    assert evals == [("start", 0), ("middle", 20), ("end", 40)]
