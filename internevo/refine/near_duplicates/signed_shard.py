"""What deduplication knows of a shard's documents, in a folder of flat arrays that are mapped into memory.

A document has a *key*, its shard's number and its own in the shard: keys stand in the order of the documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from internevo.files.durable import made_aside
from internevo.refine.near_duplicates.ragged import Ragged, joined, running

_ROW_BITS = 32


def key_of(shard: int, rows: np.ndarray) -> np.ndarray:
    """The keys, int64, of these documents of a shard."""
    return (np.int64(shard) << _ROW_BITS) | rows.astype(np.int64)


def by_shard(keys: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Sorted keys, one shard after the other: its number, and the numbers of documents in it, int64."""
    numbers, begins = np.unique(keys >> _ROW_BITS, return_index=True)
    places = pairwise([*begins.tolist(), len(keys)])
    return [
        (number, keys[slice(*at)] & (2**_ROW_BITS - 1)) for number, at in zip(numbers.tolist(), places, strict=True)
    ]


class SignedShard:
    """The documents of one shard."""

    def __init__(self, folder: Path):
        self._folder = folder

    @cached_property
    def priorities(self) -> np.ndarray:
        """Of near-duplicates the one with the highest is kept: int64 (documents,)."""
        return self._mapped("priorities", np.int64)

    @cached_property
    def signatures(self) -> np.ndarray:
        """MinHash signatures, uint32 (documents, hashes)."""
        return self._mapped("signatures", np.uint32).reshape(len(self.priorities), -1)

    @cached_property
    def sketches(self) -> Ragged:
        """Bottom-k sketches, uint32."""
        return Ragged(self._mapped("sketches", np.uint32), self._mapped("sketch_borders", np.int64))

    @property
    def bands(self) -> tuple[np.ndarray, np.ndarray]:
        """The hashes of each band, sorted, uint64 (bands, documents), and the numbers of their documents, uint32."""
        shape = (-1, len(self.priorities))
        return self._mapped("bands", np.uint64).reshape(shape), self._mapped("band_rows", np.uint32).reshape(shape)

    def ids(self) -> list[str]:
        return json.loads((self._folder / "ids.json").read_text(encoding="utf-8"))

    def _mapped(self, name: str, dtype: type[np.generic]) -> np.ndarray:
        path = self._folder / name
        return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


class SignedBatch(NamedTuple):
    """Some documents of a shard."""

    signatures: np.ndarray
    """uint32 (documents, hashes)."""
    bands: np.ndarray
    """Hashes of bands, uint64 (bands, documents)."""
    sketches: Ragged
    """uint32."""
    priorities: list[int]
    ids: list[str]


def write_signed_shard(folder: Path, batches: Iterable[SignedBatch]) -> None:
    """Writes a signed shard, whose folder is there when it is complete."""
    with made_aside(folder) as aside:
        _write(aside, batches)


def _write(folder: Path, batches: Iterable[SignedBatch]) -> None:
    bands: list[np.ndarray] = []
    lengths = [np.empty(0, np.int64)]
    priorities: list[int] = []
    ids: list[str] = []
    # these, up to 9 kB a document, go to the disk at once; the rest, 0.3 kB, at the end
    with (folder / "signatures").open("wb") as signatures, (folder / "sketches").open("wb") as sketches:
        for batch in batches:
            batch.signatures.tofile(signatures)
            batch.sketches.values.tofile(sketches)
            bands.append(batch.bands)
            lengths.append(batch.sketches.lengths)
            priorities += batch.priorities
            ids += batch.ids
    running(np.concatenate(lengths)).tofile(folder / "sketch_borders")
    np.array(priorities, np.int64).tofile(folder / "priorities")
    (folder / "ids.json").write_text(json.dumps(ids), encoding="utf-8")
    with (folder / "bands").open("wb") as hashes, (folder / "band_rows").open("wb") as rows:
        for band in zip(*bands, strict=True):
            found = np.concatenate(band)
            order = np.argsort(found, kind="stable")
            found[order].tofile(hashes)
            order.astype(np.uint32).tofile(rows)


class SignedShards:
    """All shards of a step."""

    def __init__(self, folder: Path, count: int):
        self._shards = [SignedShard(folder / f"{number:05}") for number in range(count)]

    def band(self, number: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """The hashes of a band from `first` to `last`, inclusive, over all shards: uint64; and the documents' keys."""
        hashes, keys = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for shard, signed in enumerate(self._shards):
            if len(signed.priorities):
                band, rows = (array[number] for array in signed.bands)
                at = slice(band.searchsorted(np.uint64(first)), band.searchsorted(np.uint64(last), side="right"))
                hashes.append(band[at])
                keys.append(key_of(shard, rows[at]))
        return np.concatenate(hashes), np.concatenate(keys)

    def signatures(self, keys: np.ndarray) -> np.ndarray:
        """The signatures of documents, uint32 (keys, hashes). The keys are sorted, and there is at least one."""
        return np.concatenate([self._shards[shard].signatures[rows] for shard, rows in by_shard(keys)])

    def sketches(self, keys: np.ndarray) -> Ragged:
        """The sketches of documents. The keys are sorted, and there is at least one."""
        return joined([self._shards[shard].sketches[rows] for shard, rows in by_shard(keys)])

    def priorities(self, keys: np.ndarray) -> np.ndarray:
        """What documents are kept by, int64. The keys are sorted."""
        found = [self._shards[shard].priorities[rows] for shard, rows in by_shard(keys)]
        return np.concatenate([np.empty(0, np.int64), *found])

    def ids(self, keys: np.ndarray) -> list[str]:
        """The ids of documents, whose keys may come in any order and more than once."""
        unique, places = np.unique(keys, return_inverse=True)
        names: list[str] = []
        for shard, rows in by_shard(unique):
            known = self._shards[shard].ids()
            names += [known[row] for row in rows]
        return [names[place] for place in places]
