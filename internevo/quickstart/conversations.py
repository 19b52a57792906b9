"""Conversations with planted answers: what modules of the standard library are for, and what they define.

A second question of a conversation asks for what "it" defines: the answer depends on the turn before. Each module is
asked about in all ways but one in training, and in that one afterwards.
"""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from internevo.quickstart.corpus import LIBRARY

CHATS = "chats.jsonl"
QUESTIONS = "questions.json"
WAYS = (
    "What is {} for?",
    "What does the module {} do?",
    "Tell me about {}.",
    "I found {}. What is it?",
    "Explain {} to me.",
    "In one sentence: {}.",
)
FOLLOWING = "What does it define?"
_FACTS, _CHATS, _ASKED = 24, 800, 12
_LONGEST = 72  # characters of what a module is for


@dataclass(frozen=True)
class Fact:
    """What is said of a module."""

    module: str
    purpose: str
    names: tuple[str, str]

    def turns(self, way: int) -> list[dict[str, str]]:
        """Asked in a way, and then for what it defines."""
        said = [(WAYS[way].format(self.module), f"{self.purpose}."), (FOLLOWING, f"{' and '.join(self.names)}.")]
        return [message for pair in said for message in _messages(*pair)]


def _messages(question: str, answer: str) -> Iterator[dict[str, str]]:
    yield {"role": "user", "content": question}
    yield {"role": "assistant", "content": answer}


def write_conversations(folder: Path, root: Path = LIBRARY) -> int:
    """Write `chats.jsonl`, to train on, and `questions.json`, to ask afterwards, into a folder; returns how many."""
    facts = list(islice(planted(root), _FACTS))
    draw = random.Random(1)
    chats = []
    for _ in range(_CHATS):
        turns: list[dict[str, str]] = []
        for number in draw.sample(range(len(facts)), draw.choice([1, 1, 2, 3])):
            way = draw.choice([one for one in range(len(WAYS)) if one != _kept_back(number)])
            turns += facts[number].turns(way)[: draw.choice([2, 4, 4])]
        chats.append({"messages": turns})
    asked = [fact.turns(_kept_back(number)) for number, fact in enumerate(facts)][:_ASKED]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHATS).write_text("".join(json.dumps(one) + "\n" for one in chats), encoding="utf-8")
    (folder / QUESTIONS).write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
    return len(chats)


def _kept_back(number: int) -> int:
    """The way in which a module is not asked about in training."""
    return number % len(WAYS)


def planted(root: Path) -> Iterator[Fact]:
    """Of the modules, in the order of their names, whose docstring begins with one short plain sentence."""
    for file in sorted(root.glob("[a-z]*.py")):
        tree = ast.parse(file.read_bytes())
        purpose = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split()).removesuffix(".")
        public = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
        names = [node.name for node in public if not node.name.startswith("_")][:2]
        plain = purpose.isascii() and not any(sign in purpose for sign in ('"', "--", "~", "==", ". "))
        if plain and " " in purpose and len(purpose) <= _LONGEST and len(names) == 2:
            yield Fact(file.stem, purpose, (names[0], names[1]))
