"""The long chain by its command: real long texts against short ones and junk, and shuffled texts against whole ones.

A model of 0.1M parameters, which is what a test can train, learns from real text what words follow each other, and
nothing of what goes on between paragraphs. So the shuffled texts are stories that each keep to a family of names.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from internevo.refine.long.perplexity_difference import PerplexityDifference
from internevo.refine.shards import Document
from tests.eval.stories import casts, story, train_on_stories
from tests.refine.corpus import write_jsonl
from tests.refine.long.texts import chinese, chinese_junk, english, english_junk
from tests.refine.real_pages import prose
from tests.refine.running import refined, step_documents

pytestmark = pytest.mark.slow


def test_real_long_texts_are_kept_and_junk_is_not(tmp_path: Path) -> None:
    chance = random.Random(0)
    texts = {f"whole reference {n}": english(chance) for n in range(10)}
    texts |= {f"whole docstrings {n}": "\n\n".join(chance.sample(prose(), 65)) for n in range(10)}
    texts |= {f"whole chinese {n}": chinese(chance) for n in range(5)}
    texts |= {f"short {n}": text for n, text in enumerate(prose()[:20])}
    texts |= {f"junk {kind}": text for kind, text in english_junk(chance).items()}
    texts |= {f"junk chinese {kind}": text for kind, text in chinese_junk(chance).items()}
    write_jsonl(tmp_path / "long.jsonl", ({"id": name, "text": text} for name, text in texts.items()))
    output = refined(tmp_path, [tmp_path / "long.jsonl"], ["extract", "language", "length", "long_statistics"])
    kept = step_documents(output, "04-long_statistics", "kept")
    assert all(one.id.startswith("whole") for one in kept)
    assert len(kept) >= 0.9 * 25  # grammar makes chapters of the reference have more punctuation than the limit allows
    assert all(one.metadata["statistics"]["connectives"] > 1 for one in kept)
    short = step_documents(output, "03-length", "dropped")
    assert {one.id for one in short} == {name for name in texts if name.startswith("short")}
    # tables are in no language; the rest has too few of the words that hold a text together
    by = {
        one.id: step
        for step in ("02-language", "04-long_statistics")
        for one in step_documents(output, step, "dropped")
    }
    by = {name: step for name, step in by.items() if not name.startswith("whole")}
    assert by.keys() == {name for name in texts if name.startswith("junk")}
    assert Counter(by.values())["04-long_statistics"] >= 5


STORIES = {"min_connectives": 0, "min_conjunctions": 0, "min_function_words": 0, "min_paragraph": 0, "min_sentence": 0}
"""Limits of these texts, which are names and little else."""
SEGMENTS = {"context_tokens": 64, "target_tokens": 32, "gap_characters": 40, "device": "cpu"}


def test_shuffled_texts_are_dropped_and_whole_ones_kept(tmp_path: Path) -> None:
    """Halves of two stories, and the lines of three in turn."""
    model = train_on_stories(tmp_path)
    chance, families = random.Random(7), casts(random.Random(0))
    known = [story(chance, families[n % 8]) for n in range(64)]
    lines = [story(chance, families[n % 8]).split("\n") for n in range(128)]
    texts = {f"whole {n}": parts for n, parts in enumerate(lines)}
    for n in range(128):
        second, third = (lines[(n + step) % 128] for step in (1 + n % 7, 3 + n % 5))
        texts[f"halves {n}"] = lines[n][:20] + second[20:]
        texts[f"in turn {n}"] = [(lines[n], second, third)[at // 2 % 3][at] for at in range(40)]
        texts[f"short {n}"] = lines[n][:9]
    rows = [
        {"id": name, "text": "\n".join(parts), "language": "en", "domain": "stories"} for name, parts in texts.items()
    ]
    chance.shuffle(rows)
    write_jsonl(tmp_path / "long.jsonl", rows)
    keys = {"model": str(model), "cuts": 1, **SEGMENTS}
    steps = [
        {"extract": {}},
        {"length": {"min_bytes": 300}},
        {"long_statistics": {"domains": {"stories": {"en": {**STORIES, "min_unique": 0}}}}},
        {"perplexity_difference": {**keys, "min_gain": border(known, keys)}},
    ]
    output = refined(tmp_path, [tmp_path / "long.jsonl"], steps)
    assert Counter(one.id.split()[0] for one in step_documents(output, "02-length", "dropped")) == {"short": 128}
    assert step_documents(output, "03-long_statistics", "dropped") == []
    dropped = step_documents(output, "04-perplexity_difference", "dropped")
    shares = {kind: sum(one.id.startswith(kind) for one in dropped) / 128 for kind in ("whole", "halves", "in turn")}
    assert shares["whole"] < 0.12, shares
    assert shares["halves"] > 0.85, shares
    # what stands before the cut has all three families, and does help with what comes: most are not found
    assert shares["in turn"] > 0.25, shares


def border(known: list[str], keys: dict[str, object]) -> float:
    """What nineteen in twenty of texts that are known to be whole reach."""
    step = PerplexityDifference(**keys)  # type: ignore[arg-type]
    judged = step.judged((Document(text, "known") for text in known), step.make_scorer())
    return float(np.quantile([one.metadata["context_gain"] for one, _ in judged], 0.05))
