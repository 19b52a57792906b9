"""A look into a token store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from internevo.data.prepare import MANIFEST
from internevo.data.store import TokenStore, source_prefix
from internevo.data.tokenizer import Tokenizer

SAMPLE = 1_000_000
"""Documents whose lengths are looked at; a larger store is sampled evenly."""


@dataclass(frozen=True)
class StoreSummary:
    """What a store holds."""

    documents: int
    tokens: int
    dtype: str
    lengths: dict[str, int]
    """Document lengths in tokens: least, 10%, median, 90%, most."""
    heldout_documents: int
    heldout_tokens: int
    manifest: dict[str, Any]
    """`manifest.json`; empty for a bare pair of files."""


def describe(path: Path) -> StoreSummary:
    """Counts of a prepared folder or a `.bin`/`.idx` pair, in bounded time. Raises StoreError."""
    store = TokenStore(source_prefix(path))
    heldout = TokenStore.open_heldout(path)
    manifest = path / MANIFEST
    quantiles: dict[str, int] = {}
    if len(store):
        sample = np.linspace(0, len(store) - 1, min(len(store), SAMPLE)).astype(np.int64)
        names = {"least": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "most": 1.0}
        values = np.quantile(store.lengths(sample), list(names.values()))
        quantiles = {name: int(value) for name, value in zip(names, values, strict=True)}
    return StoreSummary(
        len(store),
        store.tokens,
        store.dtype.name,
        quantiles,
        len(heldout) if heldout else 0,
        heldout.tokens if heldout else 0,
        json.loads(manifest.read_text()) if manifest.is_file() else {},
    )


def show_document(store: TokenStore, number: int, tokenizer: Tokenizer, limit: int = 200) -> str:
    """The beginning of a document as text, its frame visible: `<BOS>text … <EOS>`."""
    ids = store.read(number).tolist()
    begin = "<BOS>" if ids[:1] == [tokenizer.bos_id] else ""
    end = "<EOS>" if ids[-1:] == [tokenizer.eos_id] else ""
    inner = ids[len(begin) > 0 : len(ids) - (len(end) > 0)]
    cut = " … " if len(inner) > limit else ""
    return f"{begin}{tokenizer.decode(inner[:limit])}{cut}{end}"
