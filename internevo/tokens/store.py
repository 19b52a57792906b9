"""The token store: documents of token ids in one or several files, as one line of tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from internevo.config.schema import CACHE
from internevo.tokens.flat import ENDINGS, NAMED, FlatFile
from internevo.tokens.megatron import MegatronPair, StoreError, pair_file
from internevo.tokens.prepared_folder import COMPLEMENT, HELDOUT, MANIFEST, NEGATED, TRAIN
from internevo.tokens.remote import local_copy

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.idx$")


class TokenStore:
    """Documents of token ids on disk.

    `path` is that of a `.bin`/`.idx` pair without the endings, or of shards `PREFIX-00000-of-00003` and so on, as
    internevo, Megatron-LM, NeMo and datatrove write them; of datatrove's and nanotron's `.ds`; of an indexed `.npy` or
    `.bin`; or of a folder of flat files, in the order of names. Raises StoreError for what is none of these, or torn.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._shards = _open(self.path)
        self._first_document = np.cumsum([0, *map(len, self._shards)])
        self._first_token = np.cumsum([0, *(shard.tokens for shard in self._shards)])
        self.dtype = self._shards[0].dtype
        if any(shard.dtype != self.dtype for shard in self._shards):
            raise StoreError(f"{self.path}: its files are of several dtypes.")
        self.tokens = int(self._first_token[-1])  # tokens in all documents
        self.manifest = _manifest(self.path if self.path.is_dir() else self.path.parent)
        """`manifest.json` beside it; empty where there is none."""
        self.masked = bool(self.manifest.get("masked"))
        """Whether ids may be negative: such a token is one that nothing is to learn to predict."""
        masking = self.manifest.get("masking", NEGATED)
        if self.masked and masking not in (NEGATED, COMPLEMENT):
            raise StoreError(f"{self.path}: its {MANIFEST} says masking {masking!r}, which this version does not know.")
        self._complement = masking == COMPLEMENT
        self.paired = bool(self.manifest.get("pairs"))
        """Whether each document is a pair of sequences: the chosen one and the rejected one."""

    @classmethod
    def open_source(cls, path: str | Path, cache: str | Path = CACHE) -> TokenStore:
        """The training documents of a prepared folder, or what `path` names itself; a URL's are copied to `cache`."""
        place = local_copy(path, TRAIN, cache)
        return cls(place / TRAIN if place.is_dir() and not _flat_files(place) else place)

    @classmethod
    def open_heldout(cls, path: str | Path, cache: str | Path = CACHE) -> TokenStore | None:
        """The held-out documents of a prepared folder, or of a URL; None when nothing was held out."""
        prefix = local_copy(path, HELDOUT, cache) / HELDOUT
        there = pair_file(prefix, ".idx").is_file() or _shards_beside(prefix)
        return cls(prefix) if there else None

    def __len__(self) -> int:
        return int(self._first_document[-1])

    def lengths(self, documents: np.ndarray) -> np.ndarray:
        """Lengths of these documents in tokens, int64. Raises StoreError as `spans` does."""
        return self.spans(documents)[1]

    def spans(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where documents begin in the line of tokens, and their lengths, int64. Raises StoreError for a bad index."""
        starts = self.starts(documents)
        lengths = self.starts(documents + 1) - starts
        if (lengths < 0).any():
            document = int(documents[lengths < 0][0])
            shard = self._shards[int(np.searchsorted(self._first_document, document, side="right")) - 1]
            raise StoreError(f"{shard.index} is damaged: document {document:,} ends before it begins.")
        return starts, lengths

    def starts(self, documents: np.ndarray) -> np.ndarray:
        """As `spans` says where they begin; the one past the last begins where the line ends."""
        if len(self._shards) == 1:
            return self._shards[0].starts(documents)
        shards = np.searchsorted(self._first_document, documents, side="right") - 1
        starts = np.full(documents.shape, self.tokens, np.int64)
        for number in np.unique(shards[shards < len(self._shards)]):
            here = shards == number
            local = self._shards[number].starts(documents[here] - self._first_document[number])
            starts[here] = local + self._first_token[number]
        return starts

    def sides(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of a store of pairs: where each side begins in the line of tokens, and its length, int64 `[documents, 2]`.

        The chosen side is the first. Raises StoreError for a bad index.
        """
        starts, lengths = self.spans(documents)
        shards = np.searchsorted(self._first_document, documents, side="right") - 1
        chosen = np.zeros(documents.shape, np.int64)
        for number in np.unique(shards):
            here, shard = shards == number, self._shards[number]
            if not isinstance(shard, MegatronPair):
                raise StoreError(f"{self.path}: pairs are read from .bin and .idx files alone")
            chosen[here] = shard.first_lengths(documents[here] - self._first_document[number])
        if (wrong := (chosen < 1) | (chosen >= lengths)).any():
            raise StoreError(
                f"{self.path}: its index is damaged: a side of pair {documents[wrong][0]:,} has no tokens."
            )
        return np.stack([starts, starts + chosen], 1), np.stack([chosen, lengths - chosen], 1)

    def slice(self, begin: int, end: int) -> np.ndarray:
        """Tokens `begin` to `end` of the line, in the store's dtype: of one shard a view of the file."""
        if len(self._shards) == 1:
            return self._shards[0].data[begin:end]
        number = int(np.searchsorted(self._first_token, begin, side="right")) - 1
        if begin >= self.tokens:
            return np.empty(0, self.dtype)
        first = int(self._first_token[number])
        # documents do not cross shards
        return self._shards[number].data[begin - first : end - first]

    def ids(self, tokens: np.ndarray) -> np.ndarray:
        """The ids of what `slice` or `read` gives, int64, masked or not."""
        found = tokens.astype(np.int64)
        if self.masked:
            np.copyto(found, ~found if self._complement else -found, where=found < 0)
        return found

    def read(self, document: int) -> np.ndarray:
        """Token ids of one document: a view of the file, in its dtype."""
        start, end = self.starts(np.array([document, document + 1])).tolist()
        return self.slice(start, end)


def _open(path: Path) -> Sequence[FlatFile | MegatronPair]:
    if path.suffix in (".bin", ".idx") and all(path.with_suffix(one).is_file() for one in (".bin", ".idx")):
        raise StoreError(f"{path} is one file of a pair; name them without the ending: {path.with_suffix('')}")
    if path.suffix in NAMED and not pair_file(path, ".idx").is_file():
        return [FlatFile(path)]
    if path.is_dir() and (files := _flat_files(path)):
        return [FlatFile(file) for file in files]
    return [MegatronPair(prefix) for prefix in _shard_prefixes(path)]


def _manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{file} is torn: {error}") from None
    return found if isinstance(found, dict) else {}  # another tool's file of this name


def _flat_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in ENDINGS)


def _shard_prefixes(prefix: Path) -> list[Path]:
    """The prefixes of a store's pairs in order: of its shards, or itself. Raises StoreError when a shard is missing."""
    found = _shards_beside(prefix)
    if pair_file(prefix, ".idx").is_file() or not found:
        return [prefix]
    (count, *others) = {match[2] for match in found}
    if others:
        raise StoreError(f"{prefix}: shards of several stores stand beside each other, of {count} and of {others[0]}.")
    there = {int(match[1]) for match in found}
    for number in range(int(count)):
        if number not in there:
            raise StoreError(f"{prefix}-{number:05}-of-{count}.idx does not exist, but other shards of its store do.")
    return [prefix.with_name(f"{prefix.name}-{number:05}-of-{count}") for number in range(int(count))]


def _shards_beside(prefix: Path) -> list[re.Match[str]]:
    named = (_SHARD.search(file.name) for file in prefix.parent.glob(f"{prefix.name}-?????-of-?????.idx"))
    return [match for match in named if match]
