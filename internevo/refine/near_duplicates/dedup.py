"""MinHash deduplication: of documents that are nearly the same, one is kept.

Four phases. A task a shard signs its documents; a task for each band, and for each part of its hashes when there are
many shards, finds pairs; one task makes clusters of them; a task a shard sifts. Memory is bounded by a shard, a part of
a band, or the number of documents that have duplicates. No result depends on the order or the number of tasks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from internevo.config.bounds import Between
from internevo.files.durable import made_aside
from internevo.files.errors import UserError
from internevo.refine.near_duplicates.bottom_sketch import bottom_sketches
from internevo.refine.near_duplicates.clusters import Clusters
from internevo.refine.near_duplicates.dates import NO_DATE, microseconds
from internevo.refine.near_duplicates.minhash import band_hashes, bands_for, signatures
from internevo.refine.near_duplicates.near_pairs import SKETCH, alike_in, near_pairs
from internevo.refine.near_duplicates.shingles import shingles
from internevo.refine.near_duplicates.signed_shard import SignedBatch, SignedShards, by_shard, write_signed_shard
from internevo.refine.shards import Document, Judged, read_shard, write_array
from internevo.refine.step import Phase, Place, Step
from internevo.text.batches import in_batches

NEAR_DUPLICATE = "near-duplicate"
UNDATED = "near-duplicate without a date"
"""Reasons. The second is for `keep: newest`, where age could not decide."""

DUPLICATE_OF = "duplicate_of"  # the key of a dropped document's metadata that has the id of the one that is kept

_BATCH = 2**20  # characters that are shingled and signed together
SIGNATURES, PAIRS, DUPLICATES = "work/signatures", "work/pairs", "work/duplicates"  # folders in the step's own
_SHARDS_OF_A_PART = 64  # a band's hashes are cut into one more part for every 64 shards


@dataclass
class Dedup(Step):
    """Of documents whose Jaccard similarity is `threshold` or more, one is kept."""

    hashes: Annotated[int, Between(1, 2**16)] = 128
    """Hashes of a signature. Similarities near 0.7 are estimated with a standard deviation of sqrt(0.21 / hashes)."""
    ngrams: Annotated[int, Between(1, 1000)] = 5
    """Words of a shingle; in scripts without spaces, characters."""
    threshold: Annotated[float, Between(0, 1, open_below=True)] = 0.7
    """Documents whose sets of shingles have at least this Jaccard similarity are near-duplicates."""
    keep: Literal["newest", "longest", "first"] = "newest"
    """Which of a cluster: `newest`, `longest` in characters, or `first` in the order of the input. Among equals the
    first; a document without a date is older than any with one."""
    date: str = "date"
    """The key of a document's metadata that has its date: ISO 8601, as in HTTP headers, or seconds since 1970."""

    def phases(self, place: Place) -> list[Phase]:
        for library in ("rensa", "scipy"):
            if find_spec(library) is None:
                raise UserError(f"deduplication needs {library}: pip install 'internevo[refine]'")
        shards = len(place.shards)
        parts = 1 + shards // _SHARDS_OF_A_PART
        pair_tasks = bands_for(self.hashes, self.threshold).count * parts
        return [
            Phase("signatures", shards, partial(_sign, self, place)),
            Phase("pairs", pair_tasks, partial(_pair, self, place, parts)),
            Phase("clusters", 1, partial(_cluster, self, place, pair_tasks)),
            place.sifting("sift", partial(_sifted, place)),
        ]

    def priority(self, document: Document) -> int:
        """Of near-duplicates the document with the highest is kept."""
        if self.keep == "newest":
            return microseconds(document.metadata.get(self.date))
        return len(document.text) if self.keep == "longest" else 0


def _sign(step: Dedup, place: Place, shard: int) -> None:
    folder = place.folder / SIGNATURES / f"{shard:05}"
    if folder.exists() or (place.folder / DUPLICATES).exists():
        return
    batches = in_batches(read_shard(place.shards[shard]), lambda document: len(document.text), _BATCH)
    write_signed_shard(folder, (_signed(step, batch) for batch in batches))


def _signed(step: Dedup, batch: list[Document]) -> SignedBatch:
    shingled = shingles([document.text for document in batch], step.ngrams)
    signed = signatures(shingled, step.hashes)
    return SignedBatch(
        signatures=signed,
        bands=band_hashes(signed, bands_for(step.hashes, step.threshold)),
        sketches=bottom_sketches(shingled, SKETCH),
        priorities=[step.priority(document) for document in batch],
        ids=[document.id for document in batch],
    )


def _pair(step: Dedup, place: Place, parts: int, task: int) -> None:
    target = _pairs_file(place, task)
    if target.exists() or (place.folder / DUPLICATES).exists():
        return
    band, part = divmod(task, parts)
    shards = _signed_shards(place)
    hashes, keys = shards.band(band, part * 2**64 // parts, (part + 1) * 2**64 // parts - 1)
    write_array(target, near_pairs(hashes, keys, partial(alike_in, shards, step.threshold)))


def _cluster(step: Dedup, place: Place, pair_tasks: int, _task: int) -> None:
    target = place.folder / DUPLICATES
    if not target.exists():
        with made_aside(target) as aside:
            _write_duplicates(step, place, pair_tasks, aside)
    for folder in (SIGNATURES, PAIRS):  # as large as the text, and of no more use
        shutil.rmtree(place.folder / folder, ignore_errors=True)


def _write_duplicates(step: Dedup, place: Place, pair_tasks: int, folder: Path) -> None:
    shards = _signed_shards(place)
    clusters = Clusters.of(np.load(_pairs_file(place, task)) for task in range(pair_tasks))
    priorities = shards.priorities(clusters.keys)
    dropped, kept = clusters.dropped(priorities)
    ids = shards.ids(kept)
    undated = priorities[np.searchsorted(clusters.keys, dropped)] == NO_DATE
    begin = 0
    for shard, rows in by_shard(dropped):
        at = slice(begin, begin := begin + len(rows))
        reasons = [UNDATED if step.keep == "newest" and one else NEAR_DUPLICATE for one in undated[at]]
        lines = list(zip(rows.tolist(), ids[at], reasons, strict=True))
        (folder / f"{shard:05}.json").write_text(json.dumps(lines), encoding="utf-8")


def _sifted(place: Place, shard: int) -> Iterator[Judged]:
    file = place.folder / DUPLICATES / f"{shard:05}.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    duplicates = {row: (kept, reason) for row, kept, reason in found}
    for row, document in enumerate(read_shard(place.shards[shard])):
        reason = None
        if row in duplicates:
            document.metadata[DUPLICATE_OF], reason = duplicates[row]
        yield document, reason


def _signed_shards(place: Place) -> SignedShards:
    return SignedShards(place.folder / SIGNATURES, len(place.shards))


def _pairs_file(place: Place, task: int) -> Path:
    return place.folder / PAIRS / f"{task:06}.npy"
