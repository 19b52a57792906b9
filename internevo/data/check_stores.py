"""Whether the token stores of a run can be trained on: asked before anything expensive begins."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from internevo.config.schema import StageConfig
from internevo.data.length_band import ALL, Band
from internevo.data.mixing import Plan, source_name, tokens_drawn
from internevo.files.errors import UserError
from internevo.files.urls import is_remote
from internevo.tokens.megatron import StoreError
from internevo.tokens.remote import look
from internevo.tokens.store import TokenStore
from internevo.tokens.tokenizer import fingerprint

_TOGETHER = 2**20
"""Documents whose lengths are looked at at a time."""


def store_problems(stages: Iterable[StageConfig], copy: bool = True) -> list[str]:
    """A sentence for each store of these stages that cannot be trained on, beginning with its path.

    Each is opened, with its held-out documents, and remote ones are copied for that; with `copy` false these are only
    looked at where they are. Told too are stores of several tokenizers, ids that the model does not have, and stages
    that ask for more than their sources have.
    """
    found: list[str] = []
    stages, stores = list(stages), dict[str, TokenStore]()
    manifests: dict[str, Mapping[str, object]] = {}
    vocab = {}
    for stage in stages:
        for path in (source.path for source in stage.data.sources):
            vocab[path] = stage.model.vocab
            if path in manifests:
                continue
            manifests[path] = {}
            try:
                if is_remote(path) and not copy:
                    look(path)
                    continue
                store = TokenStore.open_source(path, stage.data.cache)
                TokenStore.open_heldout(path, stage.data.cache)
                manifests[path] = store.manifest
            except (UserError, OSError) as error:
                found.append(f"{path}: {error}")
                continue
            if store.tokens:
                stores[path] = store
            else:
                found.append(f"{path}: holds no tokens")
    own = {
        f"stage {stage.name}": {"tokenizer": stage.tokenizer, "tokenizer_fingerprint": fingerprint(stage.tokenizer)}
        for stage in stages
        if stage.tokenizer is not None
    }
    found += [*tokenizer_problems({**manifests, **own}), *_too_many_pieces(manifests, vocab)]
    return [*found, *_pair_problems(stages, stores), *_supply_problems(stages, stores)]


def _pair_problems(stages: Iterable[StageConfig], stores: Mapping[str, TokenStore]) -> Iterator[str]:
    """Pairs that would be cut, and those of a stage that trains on texts."""
    for stage in stages:
        for source in stage.data.sources:
            store = stores.get(source.path)
            if store is None or not store.paired:
                continue
            if stage.train.objective.kind == "next_token":
                yield (
                    f"{source.path}: holds pairs (chosen, rejected), and stage {stage.name} would train on both alike; "
                    "set train.objective.kind to what learns from pairs, as internevo.align.dpo:DPO does"
                )
            elif stage.data.packing != "best_fit":
                yield f"{source.path}: holds pairs, which data.packing={stage.data.packing} would cut; use best_fit"
            elif longest := _longest_above(store, Band(source.min_tokens, source.max_tokens), stage.train.seq_len):
                yield (
                    f"{source.path}: its longest pair has {longest:,} tokens, more than train.seq_len "
                    f"{stage.train.seq_len:,}, and a pair is never cut; raise it, or set max_tokens of the source"
                )


def _longest_above(store: TokenStore, band: Band, most: int) -> int:
    """The length of the longest document of these lengths, if it is more than `most`; else 0."""
    found = 0
    for first in range(0, len(store), _TOGETHER):
        lengths = store.lengths(np.arange(first, min(first + _TOGETHER, len(store))))
        found = max(found, int(lengths[band.holds(lengths)].max(initial=0)))
    return found if found > most else 0


def tokenizer_problems(manifests: Mapping[str, Mapping[str, object]]) -> list[str]:
    """What is wrong with stores, or a stage, that name several tokenizers; stores without one may be mixed."""
    first: dict[object, str] = {}
    for path, manifest in manifests.items():
        if one := manifest.get("tokenizer_fingerprint"):
            first.setdefault(one, path)
    if len(first) < 2:
        return []
    named = ", ".join(f"{path} with {manifests[path].get('tokenizer')} ({one})" for one, path in first.items())
    return [f"there are different tokenizers, so that one id means several things: {named}"]


def _too_many_pieces(manifests: Mapping[str, Mapping[str, object]], vocab: Mapping[str, int]) -> list[str]:
    return [
        f"{path}: was made with {Path(str(manifest.get('tokenizer'))).name} of {size:,} pieces, but model.vocab is "
        f"{vocab[path]:,}"
        for path, manifest in manifests.items()
        if isinstance(size := manifest.get("vocab_size"), int) and size > vocab[path]
    ]


def _supply_problems(stages: Iterable[StageConfig], stores: Mapping[str, TokenStore]) -> Iterator[str]:
    """Bands of lengths that hold nothing, and stages whose sources are used up too early. Stages after one that cannot
    be judged, for want of a store, are not judged either: what it leaves is not known."""
    found: dict[tuple[str, Band], float] = {}
    drawn: dict[str, float] = {}
    for stage in stages:
        left: dict[str, float] = {}
        for source in stage.data.sources:
            if source.path not in stores:
                return
            store, band = stores[source.path], Band(source.min_tokens, source.max_tokens)
            if (key := (source.path, band)) not in found:
                found[key] = store.tokens if band == ALL else band.survey(store).tokens
                if not found[key]:
                    yield f"{source.path}: {band.missing_in(store)}"
            name, epochs = source_name(source), source.max_epochs
            left[name] = math.inf if epochs is None else max(0.0, epochs * found[key] - drawn.get(name, 0))
        if not all(found.values()):
            return
        try:
            taken = tokens_drawn(Plan.of(stage), 0, left)
        except StoreError as error:
            yield f"stage {stage.name}: {error}"
            return
        drawn |= {name: drawn.get(name, 0) + tokens for name, tokens in taken.items()}


def check_stores(stages: Iterable[StageConfig], copy: bool = True) -> None:
    """Raise UserError with everything that `store_problems` finds."""
    if problems := store_problems(stages, copy):
        raise UserError("the token stores cannot be trained on:\n  " + "\n  ".join(problems))
