"""A look into a token store: counts, lengths, documents."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from internevo.tokens.store import TokenStore
from internevo.tokens.tokenizer import Tokenizer

SAMPLE = 1_000_000  # documents whose lengths are looked at; a larger store is sampled evenly


@dataclass(frozen=True)
class Lengths:
    """Documents of like length."""

    first: int  # the least length in tokens: a power of two, or 0
    last: int  # the greatest: twice as much, less one
    documents: float  # their share of the documents
    tokens: float  # their share of the tokens


@dataclass(frozen=True)
class StoreSummary:
    path: str
    documents: int
    tokens: int
    dtype: str
    masked: bool  # whether ids may be negative: tokens that are not trained on
    lengths: dict[str, int]  # document lengths in tokens: least, 10%, median, 90%, most
    histogram: list[Lengths]  # documents by length, without gaps
    sampled: int  # documents whose lengths were looked at
    heldout_documents: int
    heldout_tokens: int
    manifest: dict[str, Any]  # `manifest.json`; empty for a bare pair of files


def describe(path: str | Path) -> StoreSummary:
    """Counts and lengths of what a source may name, in bounded time. Raises StoreError."""
    store, heldout = TokenStore.open_source(path), TokenStore.open_heldout(path)
    sample = np.linspace(0, len(store) - 1, min(len(store), SAMPLE)).astype(np.int64)
    lengths = store.lengths(sample)
    marks = {"least": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "most": 1.0}
    values = np.quantile(lengths, list(marks.values())).astype(int).tolist() if len(lengths) else []
    return StoreSummary(
        path=str(path),
        documents=len(store),
        tokens=store.tokens,
        dtype=store.dtype.name,
        masked=store.masked,
        lengths=dict(zip(marks, values, strict=False)),
        histogram=histogram(lengths),
        sampled=len(sample),
        heldout_documents=len(heldout) if heldout else 0,
        heldout_tokens=heldout.tokens if heldout else 0,
        manifest=store.manifest,
    )


def histogram(lengths: np.ndarray) -> list[Lengths]:
    """Documents by length `[documents]`, in powers of two from the shortest to the longest."""
    if not len(lengths):
        return []
    bits = np.frexp(lengths)[1]  # 0 for 0, 1 for 1, 2 for 2 and 3, 3 for 4 to 7
    documents = np.bincount(bits) / len(lengths)
    tokens = np.bincount(bits, lengths) / max(1, lengths.sum())
    return [
        Lengths(2 ** (bit - 1) if bit else 0, 2**bit - 1, float(documents[bit]), float(tokens[bit]))
        for bit in range(int(bits.min()), int(bits.max()) + 1)
    ]


def spread(documents: int, count: int) -> list[int]:
    """Indices of `count` documents, evenly spread over `documents`: the middle one of each of `count` equal parts."""
    count = min(count, documents)
    return [(2 * part + 1) * documents // (2 * count) for part in range(count)]


Parts = list[tuple[str, bool]]
"""Stretches of a document as text, and whether each is masked."""


def document_parts(store: TokenStore, number: int, tokenizer: Tokenizer, limit: int = 200) -> Parts:
    """The beginning of a document as text, its control tokens by their names, the frame as `<BOS>` and `<EOS>`."""
    tokens = store.read(number)
    ids = store.ids(tokens).tolist()
    begin = "<BOS>" if tokens[:1].tolist() == [tokenizer.bos_id] else ""
    end = "<EOS>" if tokens[-1:].tolist() == [tokenizer.eos_id] and len(ids) > 1 else ""
    inner = range(len(begin) > 0, len(ids) - (len(end) > 0))
    cut = " … " if len(inner) > limit else ""
    parts = [
        (tokenizer.show([ids[i] for i in stretch]), masked)
        for masked, stretch in groupby(inner[:limit], lambda i: bool(store.masked and tokens[i] < 0))
    ]
    return [(text, masked) for text, masked in [(begin, False), *parts, (cut + end, False)] if text]


def show_document(parts: Parts) -> str:
    """In one text, `<BOS>a <masked>b</masked> … <EOS>`."""
    return "".join(f"<masked>{text}</masked>" if masked else text for text, masked in parts)
