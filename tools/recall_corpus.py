"""A corpus on which a small model learns to find things again: running text with sentences that come back.

Each document is prose into which sentences "The code of KEY is VALUE." are scattered; most are said again, further on,
with the same value. A model that predicts the value the second time has found the first. For the recipe on longer
context, docs/recipes/extend-to-32k.md.

    python tools/recall_corpus.py quickstart/corpus/prose.jsonl corpus/short.jsonl --words 150 --documents 20000
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from internevo.eval.needle import KEYS, NEEDLE


def sentences(path: Path) -> list[str]:
    """The prose as short pieces."""
    pieces = []
    for line in path.open(encoding="utf-8"):
        words = json.loads(line)["text"].split()
        pieces += [" ".join(words[n : n + 12]) for n in range(0, len(words) - 12, 12)]
    return pieces


def document(prose: list[str], words: int, every: int, draw: random.Random) -> str:
    """About `words` words, with a sentence to remember after about `every` of them."""
    keys = draw.sample(KEYS, draw.randint(2, 5))
    codes = {key: str(draw.randrange(1000, 10000)) for key in keys}
    parts: list[str] = []
    count = 0
    at = draw.randrange(len(prose))
    while count < words:
        said = draw.randint(1, max(1, every // 6))  # of the prose, some pieces in a row
        for _ in range(said):
            parts.append(" " + prose[at % len(prose)])
            at += 1
            count += 12
        key = draw.choice(keys)
        parts.append(NEEDLE.format(key=key, value=codes[key]))
        count += 6
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
    parser.add_argument("--every", type=int, default=12, help="words between sentences to remember")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    with asked.output.open("w", encoding="utf-8") as file:
        for text in documents(asked):
            file.write(json.dumps({"text": text}) + "\n")


if __name__ == "__main__":
    main()
