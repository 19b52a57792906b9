"""A model of ours as the refinery's scorer: its likelihoods, and whether it tells texts that hold together from those
whose halves were swapped."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from internevo.eval.text_scorer import TextScorer
from internevo.files.errors import UserError
from internevo.refine.long.perplexity_difference import PerplexityDifference
from internevo.refine.shards import Document
from internevo.tokens.tokenizer import load_tokenizer
from tests.eval.stories import casts, story, train_on_stories
from tests.refine.running import dropped, kept, place_of, run_phases


def test_likelihoods_are_those_of_transformers(text_run: Path, exported: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    run, folder = TextScorer(str(text_run), 100, "cpu"), TextScorer(str(exported), 100, "cpu")
    first, second = run.encode("def add(one, other):\n"), run.encode("    return one + other")
    assert folder.encode("    return one + other").tolist() == second.tolist()
    nothing, begin = np.empty(0, np.int64), load_tokenizer(exported).bos_id
    pairs = [(first, second), (nothing, second), (nothing, second[:1])]
    wanted = []
    for prefix, ids in pairs:
        row = torch.tensor([[begin, *prefix.tolist(), *ids.tolist()]])
        with torch.no_grad():
            logs = model(row).logits[0].double().log_softmax(-1)
        wanted.append(float(logs[:-1].gather(1, row[0, 1:, None])[-len(ids) :].mean()))
    assert run.log_likelihoods(pairs) == pytest.approx(wanted, abs=1e-5)
    assert folder.log_likelihoods(pairs) == pytest.approx(wanted, abs=1e-5)


def test_what_is_wrong_with_a_model_is_told_before_the_work(text_run: Path, tmp_path: Path) -> None:
    place = place_of(tmp_path, [Document("a text", "id")], 1)
    with pytest.raises(UserError, match="rows of 128 tokens"):
        PerplexityDifference(model=str(text_run)).phases(place)
    with pytest.raises(UserError, match="has no model"):
        PerplexityDifference(model=str(tmp_path)).phases(place)


def test_a_model_s_files_are_its_weights_and_no_export_beside_them(text_run: Path, exported: Path) -> None:
    run = PerplexityDifference(model=str(text_run))
    before = run.files()
    assert {path.suffix for path in before} == {".distcp"}
    beside = text_run / "beside" / "model.safetensors"
    beside.parent.mkdir()
    beside.write_bytes(b"exported")
    assert run.files() == before
    assert [path.name for path in PerplexityDifference(model=str(exported)).files()] == ["model.safetensors"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_stories(tmp_path_factory.mktemp("stories"))


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0, 40])
def test_swapped_halves_are_told_from_whole_texts(trained: Path, tmp_path: Path, gap: int) -> None:
    chance = random.Random(7)
    families = casts(random.Random(0))
    whole = [story(chance, families[n % 8]) for n in range(96)]
    halves = [text.split("\n") for text in whole]
    swapped = ["\n".join([*halves[n][:20], *halves[(n + 1 + n % 7) % 96][20:]]) for n in range(96)]
    documents = [Document(text, f"whole {n}") for n, text in enumerate(whole)]
    documents += [Document(text, f"swapped {n}") for n, text in enumerate(swapped)]
    chance.shuffle(documents)
    known, others = documents[:64], documents[64:]
    keys = {"context_tokens": 64, "target_tokens": 32, "gap_characters": gap, "cuts": 1, "device": "cpu"}
    step = PerplexityDifference(model=str(trained), **keys)
    gains = gains_of([one for one, _ in step.judged(iter(known), step.make_scorer())])
    border = float(np.quantile(gains["whole"], 0.05))  # set from texts that are known to be good
    place = place_of(tmp_path, others, 2)
    run_phases(PerplexityDifference(model=str(trained), min_gain=border, **keys), place)
    found = gains_of([*kept(place), *dropped(place)])
    assert sum(map(len, found.values())) == len(others)
    auc = np.mean(found["whole"][:, None] > found["swapped"])
    assert auc > 0.95, {name: (values.mean(), values.std()) for name, values in found.items()}
    assert sum(one.id.startswith("whole") for one in kept(place)) > 0.8 * len(found["whole"])
    assert sum(one.id.startswith("swapped") for one in dropped(place)) > 0.9 * len(found["swapped"])


def gains_of(documents: list[Document]) -> dict[str, np.ndarray]:
    """By kind."""
    gains: dict[str, list[float]] = {"whole": [], "swapped": []}
    for one in documents:
        gains[one.id.split()[0]].append(one.metadata["context_gain"])
    return {kind: np.array(values) for kind, values in gains.items()}
