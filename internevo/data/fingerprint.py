"""What a run's data is, in a few plain values: kept in each checkpoint, and compared when the run resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from internevo.config.schema import StageConfig
from internevo.data.length_band import ALL, Band
from internevo.data.mixing import source_name
from internevo.files.errors import UserError
from internevo.tokens.store import TokenStore
from internevo.tokens.tokenizer import fingerprint as tokenizer_fingerprint

_SAMPLES = 64
"""Documents of a store that are looked at, evenly spaced, and ..."""
_TOKENS = 256
"""... tokens of each: opening a store must not take longer the larger it is."""

Facts = dict[str, Any]


def data_facts(stages: Sequence[StageConfig]) -> Facts:
    """The tokenizer, the sources of all stages so far, and the mixture of the last of them, in plain values.

    Raises UserError for a store or a tokenizer that cannot be opened.
    """
    stage = stages[-1]
    sources = {source_name(source): (source, one.data.cache) for one in stages for source in one.data.sources}
    return {
        "tokenizer": None if stage.tokenizer is None else tokenizer_fingerprint(stage.tokenizer),
        "stores": {
            name: {
                **store_facts(TokenStore.open_source(source.path, cache)),
                "lengths": [source.min_tokens, source.max_tokens],
            }
            for name, (source, cache) in sources.items()
        },
        "mixture": {
            "data.packing": stage.data.packing,
            **{
                f"{key} of {source_name(source)}": getattr(source, key)
                for source in stage.data.sources
                for key in ("weight", "max_epochs")
            },
            "data.changes": [[change.at, change.weights] for change in stage.data.changes],
        },
    }


def store_facts(store: TokenStore) -> Facts:
    """How large a store is, and a hash of some of its documents."""
    found = hashlib.blake2b(digest_size=8)
    documents = np.unique(np.linspace(0, max(0, len(store) - 1), min(len(store), _SAMPLES)).astype(np.int64))
    starts, lengths = store.spans(documents)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        found.update(f"{start} {length} ".encode())
        found.update(store.slice(start, start + min(length, _TOKENS)).astype("<i8").tobytes())
    return {"documents": len(store), "tokens": store.tokens, "sample": found.hexdigest()}


def check_same(saved: Facts, now: Facts, *, mixture: bool, accept: str | None) -> list[str]:
    """The differences between what a run was saved with and what it is to resume with; the mixture only if asked for.

    Raises UserError when there are some that `accept` does not name.
    """
    changes = list(_changes(saved, now, mixture))
    # a hash alone may look like a number, 12345678 or 8e123456, which YAML would take it for
    word = "ok-" + hashlib.blake2b(json.dumps(changes).encode(), digest_size=4).hexdigest()
    if changes and accept != word:
        raise UserError(
            "the data is not what this run was saved with:\n  "
            + "\n  ".join(changes)
            + "\nWith other stores, tokens may come twice or not at all; with other weights, shares are counted anew "
            f"from here on. Put it back, or resume with data.accept={word}"
        )
    return changes


def _changes(saved: Facts, now: Facts, mixture: bool) -> Iterator[str]:
    if saved["tokenizer"] != now["tokenizer"]:
        yield f"tokenizer: was {saved['tokenizer']}, is {now['tokenizer']}"
    before, after = saved["stores"], now["stores"]
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            yield f"store of {name}: was {_store(before[name])}, is {_store(after[name])}"
    for name in sorted(after.keys() - before.keys()):
        for old in sorted(before.keys() - after.keys()):
            if before[old] == after[name]:
                yield f"{name} is what was called {old}, and is read from its beginning (name: {old} keeps its place)"
    if mixture:
        for key in dict.fromkeys([*saved["mixture"], *now["mixture"]]):
            was, is_now = (facts["mixture"].get(key, "absent") for facts in (saved, now))
            if was != is_now:
                yield f"{key}: was {was}, is {is_now}"


def _store(facts: Facts) -> str:
    band = Band(*facts["lengths"])
    part = "" if band == ALL else f", of which those of {band} tokens"
    return f"{facts['documents']:,} documents of {facts['tokens']:,} tokens ({facts['sample']}){part}"
