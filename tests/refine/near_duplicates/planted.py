"""Documents with near-duplicates among them, deduplicated."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from internevo.refine.near_duplicates.dedup import Dedup
from internevo.refine.shards import Document
from internevo.refine.step import Place
from tests.refine.running import place_of, run_phases
from tools.near_duplicates import altered, chinese, code, english

ORIGINALS: dict[str, Callable[[], list[str]]] = {
    "English": lambda: english(300),
    "code": lambda: code(300),
    "Chinese": lambda: chinese(300, random.Random(0)),
}


@cache
def originals(kind: str) -> list[str]:
    return ORIGINALS[kind]()


def numbered(texts: list[str]) -> list[Document]:
    return [Document(text, str(number)) for number, text in enumerate(texts)]


def deduplicated(folder: Path, documents: list[Document], shards: int = 3, **options: Any) -> Place:
    place = place_of(folder, documents, shards)
    run_phases(Dedup(**options), place)
    return place


def mixture(count: int = 150) -> list[Document]:
    """English, code and Chinese with versions of them, and dates of which many are the same."""
    chance = random.Random(1)
    texts = [text for kind in ORIGINALS for text in originals(kind)[:count]]
    texts += [altered(text, chance.uniform(0.5, 1), chance) for text in texts for _ in range(2)]
    chance.shuffle(texts)
    return [
        Document(text, f"id-{number}", {"date": f"20{chance.randrange(10, 24)}"}) for number, text in enumerate(texts)
    ]
