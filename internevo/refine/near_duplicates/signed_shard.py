"""What deduplication knows of a shard's documents, in a folder of flat arrays that are mapped into memory.

A document's *key* is its shard's number and its own: keys stand in the order of the documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from internevo.files.durable import made_aside
from internevo.refine.near_duplicates.ragged import Ragged, joined, running

_ROW_BITS = 32
_DTYPES: dict[str, type[np.generic]] = {
    "priorities": np.int64,  # [documents]; of near-duplicates the one with the highest is kept
    "signatures": np.uint32,  # MinHash, [documents, hashes]
    "sketches": np.uint32,  # bottom-k sketches, ragged
    "sketch_borders": np.int64,
    "bands": np.uint64,  # each band's hashes, sorted, [bands, documents]
    "band_rows": np.uint32,  # and the numbers of their documents
}


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


class SignedBatch(NamedTuple):
    """Some documents of a shard."""

    signatures: np.ndarray  # uint32 (documents, hashes)
    bands: np.ndarray  # hashes of bands, uint64 (bands, documents)
    sketches: Ragged  # uint32
    priorities: list[int]
    ids: list[str]


def write_signed_shard(folder: Path, batches: Iterable[SignedBatch]) -> None:
    """Writes a signed shard, whose folder is there when it is complete."""
    bands: list[np.ndarray] = []
    lengths = [np.empty(0, np.int64)]
    priorities: list[int] = []
    ids: list[str] = []
    with made_aside(folder) as aside:
        # these, up to 9 kB a document, go to the disk at once; the rest, 0.3 kB, at the end
        with (aside / "signatures").open("wb") as signatures, (aside / "sketches").open("wb") as sketches:
            for batch in batches:
                batch.signatures.tofile(signatures)
                batch.sketches.values.tofile(sketches)
                bands.append(batch.bands)
                lengths.append(batch.sketches.lengths)
                priorities += batch.priorities
                ids += batch.ids
        running(np.concatenate(lengths)).tofile(aside / "sketch_borders")
        np.array(priorities, np.int64).tofile(aside / "priorities")
        (aside / "ids.json").write_text(json.dumps(ids), encoding="utf-8")
        with (aside / "bands").open("wb") as hashes, (aside / "band_rows").open("wb") as rows:
            for band in zip(*bands, strict=True):
                found = np.concatenate(band)
                order = np.argsort(found, kind="stable")
                found[order].tofile(hashes)
                order.astype(np.uint32).tofile(rows)


class SignedShards:
    """All shards of a step. Arrays are mapped when they are first asked for."""

    def __init__(self, folder: Path, count: int):
        self._folder, self._count = folder, count
        self._array = cache(self._mapped)

    def _mapped(self, shard: int, name: str) -> np.ndarray:
        path, dtype = self._folder / f"{shard:05}" / name, _DTYPES[name]
        return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)

    def band(self, number: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """The hashes of a band from `first` to `last`, inclusive, over all shards: uint64; and the documents' keys."""
        hashes, keys = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for shard in range(self._count):
            if documents := len(self._array(shard, "priorities")):
                arrays = (self._array(shard, name) for name in ("bands", "band_rows"))
                band, rows = (array.reshape(-1, documents)[number] for array in arrays)
                at = slice(band.searchsorted(np.uint64(first)), band.searchsorted(np.uint64(last), side="right"))
                hashes.append(band[at])
                keys.append(key_of(shard, rows[at]))
        return np.concatenate(hashes), np.concatenate(keys)

    def signatures(self, keys: np.ndarray) -> np.ndarray:
        """The signatures of documents, uint32 (keys, hashes). The keys are sorted, and there is at least one."""
        found = []
        for shard, rows in by_shard(keys):
            documents = len(self._array(shard, "priorities"))
            found.append(self._array(shard, "signatures").reshape(documents, -1)[rows])
        return np.concatenate(found)

    def sketches(self, keys: np.ndarray) -> Ragged:
        """The sketches of documents, uint32. The keys are sorted, and there is at least one."""
        shards = by_shard(keys)
        return joined([Ragged(self._array(n, "sketches"), self._array(n, "sketch_borders"))[at] for n, at in shards])

    def priorities(self, keys: np.ndarray) -> np.ndarray:
        """What documents are kept by, int64. The keys are sorted."""
        found = [self._array(shard, "priorities")[rows] for shard, rows in by_shard(keys)]
        return np.concatenate([np.empty(0, np.int64), *found])

    def ids(self, keys: np.ndarray) -> list[str]:
        """The ids of documents, whose keys may come in any order and more than once."""
        unique, places = np.unique(keys, return_inverse=True)
        names: list[str] = []
        for shard, rows in by_shard(unique):
            known = json.loads((self._folder / f"{shard:05}" / "ids.json").read_text(encoding="utf-8"))
            names += [known[row] for row in rows]
        return [names[place] for place in places]
