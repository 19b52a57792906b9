"""Stories that each keep to one family of names, and a tiny model that has learned to go by it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
import yaml

from internevo.config.load import load_config
from internevo.tokens.prepare import prepare
from internevo.tokens.train_tokenizer import train_tokenizer
from internevo.train.run import train


def casts(chance: random.Random) -> list[list[str]]:
    """Eight families of eight names."""
    beginnings = ("Ba", "Do", "Ke", "Li", "Mu", "Na", "Po", "Ri")
    names = [first + second + last for first in beginnings for second in ("ra", "ko", "si", "tu") for last in "nl"]
    chance.shuffle(names)
    return [names[at : at + 8] for at in range(0, len(names), 8)]


def story(chance: random.Random, cast: list[str]) -> str:
    """Lines about one family."""
    return "\n".join(f"{chance.choice(cast)} sees {chance.choice(cast)}." for _ in range(40))


def train_on_stories(folder: Path) -> Path:
    """A run on stories, each about one family."""
    torch.set_num_threads(1)  # of a model so small, two threads wait for each other
    chance = random.Random(0)
    families = casts(chance)
    stories = [story(chance, chance.choice(families)) for _ in range(1500)]
    corpus = folder / "stories.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in stories))
    tokenizer = train_tokenizer(stories[:300], folder / "tokenizer.model", 384)
    prepare([corpus], folder / "tokens", tokenizer)
    tree = {
        "name": "stories",
        "runs": str(folder / "runs"),
        "model": {"preset": "tiny", "vocab": 384},
        "tokenizer": str(tokenizer),
        "optimizer": {"lr": 1e-2},
        "train": {
            **{"seq_len": 128, "batch_tokens": 1024, "micro_batch": 8, "steps": 200},
            **{"precision": "fp32", "device": "cpu"},
        },
        "checkpoint": {"every": 1000},
        "data": {"sources": [{"path": str(folder / "tokens")}]},
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    assert train(load_config(config), ["test"]) is None
    return folder / "runs" / "stories"
