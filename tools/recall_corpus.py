"""A corpus on which a small model learns to find things again: running text with sentences that come back.

Each document is prose into which pairs "KEY WORD." are scattered; most come again, further on, with the same word. A
model that predicts the word the second time has found the first. For the recipe docs/recipes/extend-to-32k.md.

    python tools/recall_corpus.py quickstart/corpus/prose.jsonl corpus/short.jsonl --words 150 --documents 20000
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from internevo.eval.needle import KEYS, WORDS

SENTENCE = " {key} {word}."


def sentences(path: Path) -> list[str]:
    """The prose as short pieces."""
    pieces = []
    for line in path.open(encoding="utf-8"):
        words = json.loads(line)["text"].split()
        pieces += [" ".join(words[n : n + 12]) for n in range(0, len(words) - 12, 12)]
    return pieces


def document(prose: list[str], words: int, every: int, draw: random.Random) -> str:
    """About `words` words, three pairs after every `every` words of prose or so."""
    facts = {key: draw.choice(WORDS) for key in draw.sample(KEYS, draw.randint(2, 5))}
    parts: list[str] = []
    count, at = 0, draw.randrange(len(prose))
    while count < words:
        for _ in range(draw.randint(1, max(1, every // 6))):  # some pieces of prose in a row
            parts.append(" " + prose[at % len(prose)])
            at += 1
            count += 12
        for key in draw.choices(list(facts), k=3):
            parts.append(SENTENCE.format(key=key, word=facts[key]))
            count += 2
    return "".join(parts).strip()


def documents(asked: argparse.Namespace) -> Iterator[str]:
    """All of them."""
    draw = random.Random(asked.seed)
    prose = sentences(asked.prose)
    for _ in range(asked.documents):
        yield document(prose, draw.randint(asked.words // 2, asked.words), asked.every, draw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prose", type=Path, help="JSON lines with a `text`")
    parser.add_argument("output", type=Path)
    parser.add_argument("--documents", type=int, default=20000)
    parser.add_argument("--words", type=int, default=150, help="of the longest document")
    parser.add_argument("--every", type=int, default=12, help="words of prose between pairs, about twice as many")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    with asked.output.open("w", encoding="utf-8") as file:
        for text in documents(asked):
            file.write(json.dumps({"text": text}) + "\n")


if __name__ == "__main__":
    main()
