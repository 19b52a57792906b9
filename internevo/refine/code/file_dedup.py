"""Files with the same content, white space aside: one is kept.

Three phases. A task a shard hashes its documents; a task for each part of the hashes finds those that come more than
once; a task a shard sifts. Memory: one shard's share of 40 bytes a document. No result depends on the order of tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from internevo.refine.near_duplicates.dates import microseconds
from internevo.refine.shards import Document, Judged, read_shard, write_array
from internevo.refine.step import Phase, Place, Step

DUPLICATE = "same as another file"
CONTENT = "content"  # the key of a document's metadata that has its hash, by which a dropped document's twin is found
_LATEST = 2**63 - 1


@dataclass
class FileDedup(Step):
    """Keeps one of the documents that differ in nothing but white space."""

    keep: Literal["newest", "first"] = "newest"
    """Which one: `newest`, or `first` in the order of the input. Among equals the first; a document without a date is
    older than any with one."""
    date: str = "date"
    """The key of a document's metadata that has its date."""

    def phases(self, place: Place) -> list[Phase]:
        tasks = len(place.shards)
        return [
            Phase("hash", tasks, partial(_hash, self, place)),
            Phase("choose", tasks, partial(_choose, place)),
            place.sifting("sift", partial(_sifted, place)),
        ]


def content_hash(text: str) -> bytes:
    """16 bytes that are the same for texts that differ in the length of their white space alone."""
    return hashlib.blake2b(" ".join(text.split()).encode(errors="surrogatepass"), digest_size=16).digest()


def _hash(step: FileDedup, place: Place, shard: int) -> None:
    """Writes uint64 `[4, documents]`: both halves of the hash, the age, the row; sorted by hash."""
    target = _work_file(place, "hashes", shard)
    if target.exists():
        return
    digests = bytearray()
    ages: list[int] = []
    for document in read_shard(place.shards[shard]):
        digests += content_hash(document.text)
        # unsigned, the newest smallest; what has no date comes out as the largest number
        ages.append(_LATEST - microseconds(document.metadata.get(step.date)) if step.keep == "newest" else 0)
    high, low = np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2).T
    columns = np.stack([high, low, np.array(ages, np.uint64), np.arange(len(ages), dtype=np.uint64)])
    write_array(target, columns[:, np.argsort(high, kind="stable")])


def _choose(place: Place, part: int) -> None:
    """Writes uint64 `[2, duplicates]`: shard and row of what is dropped, in order."""
    target = _work_file(place, "duplicates", part)
    if target.exists():
        return
    parts = len(place.shards)
    found = []
    for shard in range(parts):
        columns = np.load(_work_file(place, "hashes", shard), mmap_mode="r")
        first, last = (np.uint64(border) for border in (part * 2**64 // parts, (part + 1) * 2**64 // parts - 1))
        some = columns[:, columns[0].searchsorted(first) : columns[0].searchsorted(last, side="right")]
        found.append(np.concatenate([some, np.full((1, some.shape[1]), shard, np.uint64)]))
    high, low, age, row, shards = np.concatenate(found, axis=1)
    order = np.lexsort((row, shards, age, low, high))
    high, low = high[order], low[order]
    again = np.flatnonzero((high[1:] == high[:-1]) & (low[1:] == low[:-1])) + 1
    dropped = np.stack([shards[order[again]], row[order[again]]])
    write_array(target, dropped[:, np.lexsort((dropped[1], dropped[0]))])


def _sifted(place: Place, shard: int) -> Iterator[Judged]:
    dropped: set[int] = set()
    for part in range(len(place.shards)):
        shards, rows = np.load(_work_file(place, "duplicates", part), mmap_mode="r")
        first, last = np.searchsorted(shards, np.array([shard, shard + 1], np.uint64))
        dropped.update(rows[first:last].tolist())
    for row, document in enumerate(read_shard(place.shards[shard])):
        metadata = {**document.metadata, CONTENT: content_hash(document.text).hex()}
        yield Document(document.text, document.id, metadata), DUPLICATE if row in dropped else None


def _work_file(place: Place, kind: str, task: int) -> Path:
    return place.folder / "work" / kind / f"{task:05}.npy"
