"""Needles, contamination and choices: what they ask, and what they make of the answers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from internevo.config.presets import model_preset
from internevo.config.schema import StageConfig, TrainConfig
from internevo.data.loader import evaluation_batches
from internevo.eval.choices import Question, answer_choices, read_questions
from internevo.eval.contamination import contamination
from internevo.eval.heldout import open_for_evaluation
from internevo.eval.needle import (
    NEEDLE,
    _Haystack,
    draw_facts,
    needle_in_a_haystack,
    split_sentence,
)
from internevo.eval.scorer import Scorer
from internevo.files.errors import UserError
from internevo.model.initial import initial_model
from internevo.parallel.world import World
from internevo.tokens.store import TokenStore
from internevo.tokens.store_writer import TokenStoreWriter
from internevo.train.build import make_engine
from internevo.train.step import train_step
from internevo.train.stored_model import StoredModel, open_model
from tests.eval.test_scores import by_transformers
from tests.hf.models import ModelWeights
from tests.parallel.jobs import ALONE


@pytest.fixture(scope="module")
def stored(text_run: Path) -> StoredModel:
    return open_model(text_run)


@pytest.fixture(scope="module")
def haystack(text_run: Path) -> TokenStore:
    return open_for_evaluation(str(text_run.parents[1] / "tokens"))


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_a_needle_is_where_it_should_be(depth: float, stored: StoredModel, haystack: TokenStore) -> None:
    tokenizer = stored.needs_tokenizer()
    said = {"key": "amber", "value": "4711"}
    row, count = _Haystack(haystack, tokenizer).row(300, depth, said, split_sentence(NEEDLE), random.Random(0))
    assert len(row) == 300
    assert row[0] == tokenizer.bos_id
    assert row[-count:].tolist() == tokenizer.encode(" 4711")
    text = tokenizer.decode(row.tolist())
    assert text.endswith(" The code of amber is 4711")
    assert text.count("The code of amber is 4711") == 2
    needle = tokenizer.encode(NEEDLE.format(**said))
    at = next(n for n in range(1, 300) if row[n : n + len(needle)].tolist() == needle)
    room = 299 - len(needle) - len(tokenizer.encode(split_sentence(NEEDLE)[1].format(**said))) - count
    assert at == 1 + round(depth * room)


def test_needles_are_scored_as_transformers_would(stored: StoredModel, haystack: TokenStore, exported: Path) -> None:
    tokenizer, lengths, depths = stored.needs_tokenizer(), [64, 128], [0.0, 1.0]
    cells = needle_in_a_haystack(Scorer(stored, ALONE, 128), tokenizer, haystack, lengths, depths, trials=2, seed=3)
    assert [(cell.length, cell.depth) for cell in cells] == [(64, 0.0), (64, 1.0), (128, 0.0), (128, 1.0)]
    draw = random.Random("3:64")
    text, losses, found = _Haystack(haystack, tokenizer), [], []
    for _ in range(2):
        said = draw_facts(draw)
        row, count = text.row(64, 0.0, said, split_sentence(NEEDLE), draw)
        loss, correct = by_transformers(exported, row)
        losses.append(loss[-count:].mean())
        found.append(correct[-count:].all())
    assert cells[0].loss == pytest.approx(np.mean(losses), abs=1e-4)
    assert cells[0].found == np.mean(found)


@pytest.mark.parametrize("sentence", ["no place", " {value} of {key}", " {key} is"])
def test_a_sentence_that_is_no_needle(sentence: str) -> None:
    with pytest.raises(UserError, match="a needle has"):
        split_sentence(sentence)


def test_no_room_for_a_needle(stored: StoredModel, haystack: TokenStore) -> None:
    with pytest.raises(UserError, match="20 tokens has no room"):
        needle_in_a_haystack(Scorer(stored, ALONE, 128), stored.needs_tokenizer(), haystack, [20], [0.5])


def write(prefix: Path, seed: int) -> TokenStore:
    """Documents of one kind: none can be told from another but by having been seen."""
    rng = np.random.default_rng(seed)
    with TokenStoreWriter(prefix, np.uint16) as writer:
        for _ in range(12):
            writer.append(rng.integers(3, 200, 64))
    return TokenStore(prefix)


@pytest.mark.heavy
def test_a_seen_test_set_is_found_out(tmp_path: Path) -> None:
    """A model that learned the training set by heart, and then one that learned the test set as well."""
    torch.set_num_threads(2)
    train, test, reference = (write(tmp_path / name, seed) for seed, name in enumerate(("train", "test", "reference")))
    results = []
    for seen in ([train], [train, test]):
        config = model_preset("tiny")
        stage = StageConfig(
            model=config, train=TrainConfig(precision="fp32", micro_batch=12, seq_len=64, batch_tokens=768)
        )
        model = initial_model(config, "cpu", 0)
        engine = make_engine(stage, World.alone(torch.device("cpu")), model)
        for _ in range(60):
            for store in seen:
                for batch in evaluation_batches("x", store, 64, 12, 10**6):
                    train_step(engine, engine.stage_batch(batch), 1e-2)
        stored = StoredModel("x", ModelWeights(model), config, 64, None, None, None, 0)
        results.append(contamination(Scorer(stored, ALONE, 64), test, reference, train, 64, 10**6))
    clean, dirty = results
    assert abs(clean.to_reference) < 0.3
    assert clean.to_train > 2
    assert dirty.to_reference < -2
    assert abs(dirty.to_train) < 1


QUESTIONS = [
    Question("Which module reads arguments?", ("argparse", "bisect", "calendar"), 0),
    Question("What is two and two?", ("3", "4"), 1),
    Question("def", ("class", "import", "return", "self"), 2),
]


def test_choices_as_transformers_would_answer(stored: StoredModel, exported: Path) -> None:
    tokenizer = stored.needs_tokenizer()
    result = answer_choices(Scorer(stored, ALONE, 128), tokenizer, QUESTIONS)
    plain, circular, letters = [], [], []
    for one in QUESTIONS:
        right = []
        for turn in range(len(one.choices)):
            turned = [*one.choices[turn:], *one.choices[:turn]]
            shown = "\n".join(f"{'ABCD'[n]}. {choice}" for n, choice in enumerate(turned))
            prompt = tokenizer.encode(f"{one.question}\n{shown}\nAnswer:")
            scores = []
            for n in range(len(turned)):
                said = tokenizer.encode(f"{one.question}\n{shown}\nAnswer: {'ABCD'[n]}")
                assert said[: len(prompt)] == prompt
                losses, _ = by_transformers(exported, np.array([tokenizer.bos_id, *said]))
                scores.append(losses[len(prompt) :].sum())
            letters.append(int(np.argmin(scores)))
            right.append(turned[letters[-1]] == one.choices[one.answer])
        plain.append(right[0])
        circular.append(all(right))
    assert result.accuracy == np.mean(plain)
    assert result.circular == np.mean(circular)
    assert result.letters == {"ABCD"[n]: letters.count(n) / len(letters) for n in range(4)}


def test_a_guesser_is_right_now_and_then_but_not_in_every_rotation(stored: StoredModel) -> None:
    questions = [Question(f"Is {n} odd?", ("yes", "no", "maybe", "both"), n % 4) for n in range(24)]
    result = answer_choices(Scorer(stored, ALONE, 128), stored.needs_tokenizer(), questions)
    assert 0 < result.accuracy < 1
    assert result.circular < result.accuracy


def test_questions_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "a", "choices": ["x", 2], "answer": "B"}) + "\n\n")
    assert read_questions(path) == [Question("a", ("x", "2"), 1)]
    for line, message in (
        ("{", r"line 1: expected"),
        ('{"question": "a", "choices": ["x"], "answer": 0}', "line 1: 1 choices"),
        ('{"question": "a", "choices": ["x", "y"], "answer": "C"}', "line 1: 2 choices, and the answer is number 2"),
        ("", "has no questions"),
    ):
        path.write_text(line)
        with pytest.raises(UserError, match=message):
            read_questions(path)
