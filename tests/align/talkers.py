"""Tiny models that have learned to talk: real runs on real stores of conversations, until they know the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from internevo.align.chat_store import prepare_chat
from internevo.align.choices import ChatOptions
from internevo.config.load import load_config
from internevo.train.run import train
from tests.align.formats import FORMATS, write_tokenizer
from tests.train.runs import write_store

ANSWERS = {
    "Hi": "Hello, you.",
    "Who?": "A café ☕ with 数学.",
    "Count": "one two three four five",
}
"""What such a model answers; some characters are several byte tokens."""
SYSTEM = "Shout"
SHOUTED = {"Hi": "HELLO", "Who?": "ME", "Count": "ONE"}
"""And after this system message."""


def conversations() -> list[dict[str, Any]]:
    """Each question first, and after each other one, with and without the system message."""
    found = []
    for answers, system in ((ANSWERS, []), (SHOUTED, [{"role": "system", "content": SYSTEM}])):
        for first in answers:
            for second in answers:
                turns = [
                    {"role": role, "content": text}
                    for one in (first, second)
                    for role, text in (("user", one), ("assistant", answers[one]))
                ]
                found.append({"messages": [*system, *turns]})
    return found


def write_chats(path: Path, chats: Sequence[Mapping[str, Any]]) -> Path:
    """Conversations as JSON lines."""
    path.write_text("".join(json.dumps(one) + "\n" for one in chats), encoding="utf-8")
    return path


def chat_store(folder: Path, name: str, tokenizer: Path, template: str | None = None, **variables: str) -> Path:
    """A prepared folder of these conversations, in the format of the tokenizer or of `template`."""
    chats = write_chats(folder / f"{name}.jsonl", conversations())
    options = ChatOptions(variables=tuple(variables.items()))
    prepare_chat([chats], folder / name, tokenizer, template=template, options=options)
    return folder / name


def talker(folder: Path, format: str, steps: int = 80) -> Path:
    """A run with a stage on other tokens and one on conversations: its folder. Its data are in `folder` too."""
    tokenizer = write_tokenizer(folder / "tok", FORMATS[format])
    store = chat_store(folder, "chats", tokenizer)
    return train_on(folder, tokenizer, {"chat": [store]}, steps)


def train_on(folder: Path, tokenizer: Path, stages: Mapping[str, Sequence[Path]], steps: int) -> Path:
    """A run with a stage of two steps on other tokens, and then these on stores; its folder."""
    torch.set_num_threads(1)  # so small a model is faster so, on a busy machine by far
    if not (folder / "other").exists():
        write_store(folder / "other", 20, 0, vocab=256)
    sources = {"base": [folder / "other"], **stages}
    tree = {
        "name": "talker",
        "runs": str(folder / "runs"),
        "model": {"preset": "tiny", "vocab": 512},
        "tokenizer": str(tokenizer),
        "optimizer": {"lr": 4e-3},
        "schedule": {"warmup": 1},
        "train": {"seq_len": 256, "batch_tokens": 2048, "micro_batch": 8, "precision": "fp32", "device": "cpu"},
        "checkpoint": {"every": 1000},
        "stages": [
            {
                "name": name,
                "train": {"steps": 2 if name == "base" else steps},
                "data": {"sources": [{"path": str(one), "name": one.name} for one in stores]},
            }
            for name, stores in sources.items()
        ],
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    assert train(load_config(config), ["test"]) is None
    return folder / "runs" / "talker"
