"""Stores of pairs for tests, of random tokens, without tokenizer and template; and what a model thinks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from internevo.tokens.store_writer import TokenStoreWriter

REFERENCE = "given"
"""The name of the reference model of these stores."""


@dataclass(frozen=True)
class Side:
    """One side of a pair."""

    ids: np.ndarray
    first: int
    """Its first trained token; all after it are trained."""


def random_pairs(count: int, vocab: int, longest: int, seed: int = 0) -> list[tuple[Side, Side]]:
    """Pairs of sides of up to `longest` tokens, each with a prompt of its pair and an answer of its own."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        prompt = draw.integers(1, vocab, int(draw.integers(1, longest // 2)))
        answers = [draw.integers(1, vocab, int(draw.integers(1, longest // 2))) for _ in range(2)]
        chosen, rejected = (Side(np.concatenate([prompt, one]), len(prompt)) for one in answers)
        found.append((chosen, rejected))
    return found


def write_pairs(
    folder: Path, pairs: Sequence[tuple[Side, Side]], references: np.ndarray | None = None, name: str = "train"
) -> Path:
    """A prepared folder of pairs, with what the reference model thinks of them, fp32 `[pairs, 2]`."""
    folder.mkdir(parents=True, exist_ok=True)
    with TokenStoreWriter(folder / name, np.int32, sequences=2) as writer:
        for pair in pairs:
            for side in pair:
                writer.append(np.where(np.arange(len(side.ids)) < side.first, ~side.ids, side.ids).astype(np.int32))
    (folder / "manifest.json").write_text('{"masked": true, "masking": "complement", "pairs": true}')
    if references is not None:
        beside = folder / "reference" / f"{REFERENCE}-fp32"
        beside.mkdir(parents=True, exist_ok=True)
        np.save(beside / f"{name}.npy", references.astype(np.float32))
    return folder
