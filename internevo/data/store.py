"""The token store: documents of token ids in one or several pairs of files, as one line of tokens."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from internevo.data.megatron import MegatronPair, StoreError, pair_file

TRAIN, HELDOUT = "train", "heldout"
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.idx$")


class TokenStore:
    """Documents of token ids on disk.

    `prefix` is the path of a `.bin`/`.idx` pair without the endings, or of shards `PREFIX-00000-of-00003` and so on.
    Raises StoreError for a file that is missing, torn or of another kind.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = Path(prefix)
        self._shards = [MegatronPair(one) for one in shard_prefixes(self.prefix)]
        self._first_document = np.cumsum([0, *map(len, self._shards)])
        self._first_token = np.cumsum([0, *(shard.tokens for shard in self._shards)])
        self.dtype = self._shards[0].dtype
        if any(shard.dtype != self.dtype for shard in self._shards):
            raise StoreError(f"{self.prefix}: its shards are of several dtypes.")
        self.tokens = int(self._first_token[-1])
        """Tokens in all documents."""

    @classmethod
    def open_source(cls, path: str | Path) -> TokenStore:
        """The training documents of a prepared folder, or the pair that `path` is the prefix of."""
        return cls(source_prefix(path))

    @classmethod
    def open_heldout(cls, path: str | Path) -> TokenStore | None:
        """The held-out documents of a prepared folder; None when nothing was held out."""
        prefix = Path(path) / HELDOUT
        there = pair_file(prefix, ".idx").is_file() or _shards_beside(prefix)
        return cls(prefix) if there else None

    def __len__(self) -> int:
        """Number of documents."""
        return int(self._first_document[-1])

    def lengths(self, documents: np.ndarray) -> np.ndarray:
        """Lengths of these documents in tokens, int64. Raises StoreError for an index that cannot be right."""
        lengths = self.starts(documents + 1) - self.starts(documents)
        if (lengths < 0).any():
            document = documents[lengths < 0][0]
            raise StoreError(
                f"{pair_file(self.prefix, '.idx')} is damaged: document {document:,} ends before it begins."
            )
        return lengths

    def starts(self, documents: np.ndarray) -> np.ndarray:
        """Where these documents begin in the line of all tokens, int64; the one past the last, where the line ends.

        Raises StoreError for an index that cannot be right.
        """
        if len(self._shards) == 1:
            return self._shards[0].starts(documents)
        shards = np.searchsorted(self._first_document, documents, side="right") - 1
        starts = np.full(documents.shape, self.tokens, np.int64)
        for number in np.unique(shards[shards < len(self._shards)]):
            here = shards == number
            local = self._shards[number].starts(documents[here] - self._first_document[number])
            starts[here] = local + self._first_token[number]
        return starts

    def slice(self, begin: int, end: int) -> np.ndarray:
        """Tokens `begin` to `end` of the line, in the store's dtype: of one shard a view of the file."""
        if len(self._shards) == 1:
            return self._shards[0].data[begin:end]
        number = int(np.searchsorted(self._first_token, begin, side="right")) - 1
        if begin >= self.tokens:
            return np.empty(0, self.dtype)
        first = int(self._first_token[number])
        # documents do not cross shards, so that whoever asks for some of one gets it from one
        return self._shards[number].data[begin - first : end - first]

    def read(self, document: int) -> np.ndarray:
        """Token ids of one document: a view of the file, in its dtype."""
        start, end = self.starts(np.array([document, document + 1])).tolist()
        return self.slice(start, end)


def source_prefix(path: str | Path) -> Path:
    """The prefix of a source's training pair: inside a prepared folder, or `path` itself."""
    path = Path(path)
    return path / TRAIN if path.is_dir() else path


def shard_prefixes(prefix: Path) -> list[Path]:
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
