"""Megatron's indexed format: one `.bin` of token ids and one `.idx` of where documents lie.

The index is a header (`MMIDIDX\\0\\0`, version, dtype code, number of sequences, number of document borders), then
int32 sequence lengths, int64 byte offsets and int64 document borders, all little-endian. Everything is memory
mapped: opening a pair costs the same whatever its size. Pairs are written with one sequence a document, or with two
where a document is a preference (chosen, rejected); reading also takes those of Megatron's tools, with several
sequences or none.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np

from internevo.files.errors import UserError
from internevo.files.foreign import described, other_store

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, type[np.generic]] = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}


class StoreError(UserError):
    """A store that is missing, torn or not a store; the message names the file."""


class MegatronPair:
    """Documents of token ids in one pair of files. `prefix` is their path without `.bin` and `.idx`."""

    def __init__(self, prefix: str | Path):
        self.prefix = Path(prefix)
        self.index = index = pair_file(self.prefix, ".idx")
        data = pair_file(self.prefix, ".bin")
        for path in (index, data):
            if not path.is_file():
                raise StoreError(f"{path} does not exist. {_instead(path, data)}")
        size = index.stat().st_size
        with index.open("rb") as file:
            header = file.read(HEADER.size)
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise StoreError(f"{index} is not the index of a token store.")
        _, version, code, sequences, borders = HEADER.unpack(header)
        if version != 1 or code not in DTYPES:
            raise StoreError(
                f"{index} has version {version} and dtype code {code}; known are version 1, {list(DTYPES)}."
            )
        if borders < 1 or size < HEADER.size + 12 * sequences + 8 * borders:
            raise StoreError(f"{index} is torn: it announces {sequences:,} sequences but has only {size:,} bytes.")
        self.dtype = np.dtype(DTYPES[code])
        tables = map_index(index)[HEADER.size :]
        lengths = tables[: 4 * sequences].view("<i4")
        self._pointers = tables[4 * sequences : 12 * sequences].view("<i8")
        self._borders = tables[12 * sequences : 12 * sequences + 8 * borders].view("<i8")
        if self._borders[-1] != sequences:
            raise StoreError(f"{index} is torn: its documents end at sequence {self._borders[-1]:,} of {sequences:,}.")
        self.tokens = 0  # tokens in all documents
        if sequences:
            self.tokens = int(self._pointers[-1]) // self.dtype.itemsize + int(lengths[-1])
        actual, needed = data.stat().st_size, self.tokens * self.dtype.itemsize
        if actual < needed:
            raise StoreError(f"{data} is torn: its index needs {needed:,} bytes, it has {actual:,}.")
        self.data = np.empty(0, self.dtype)  # all token ids in file order, a view of the memory map
        if self.tokens:
            self.data = np.asarray(np.memmap(data, dtype=self.dtype, mode="r", shape=(self.tokens,)))

    def __len__(self) -> int:
        return len(self._borders) - 1

    def starts(self, documents: np.ndarray) -> np.ndarray:
        """Where documents begin in `data`, int64; after the last, where it ends. Raises StoreError for a bad index."""
        sequences = self._borders[documents]
        starts = np.full(sequences.shape, self.tokens, np.int64)
        # a document without sequences, as Megatron's tools write for empty text, may stand after the last sequence
        inside = sequences < len(self._pointers)
        starts[inside] = self._pointers[sequences[inside]] // self.dtype.itemsize
        outside = (starts < 0) | (starts > self.tokens)
        if outside.any():
            document = documents[outside][0]
            raise StoreError(f"{self.index} is damaged: document {document:,} begins outside the data.")
        return starts

    def first_lengths(self, documents: np.ndarray) -> np.ndarray:
        """Tokens of the first of the two sequences of documents, int64. Raises StoreError for one that has not two."""
        first = self._borders[documents]
        if (wrong := self._borders[documents + 1] - first != 2).any():
            raise StoreError(f"{self.index} is damaged: document {documents[wrong][0]:,} has not two sequences.")
        return (self._pointers[first + 1] - self._pointers[first]) // self.dtype.itemsize


def _instead(missing: Path, data: Path) -> str:
    """What stands there in the place of a pair, and what to do."""
    if what := other_store(missing.parent):
        return f"{what}."
    given = data.with_suffix("")
    if given.is_file() and (what := described(given)):
        return f"{given} is {what}."
    if missing == data or not data.is_file():
        return "`internevo data prepare` writes token stores."
    if what := described(data):
        return f"{data} is {what}."
    return (
        f"{data} has no index: if it is a plain line of ids, as nanoGPT and llm.c write them, "
        f"`internevo data index {data} --eos ID` finds its documents; then name {data}."
    )


def map_index(path: Path) -> np.ndarray:
    """A file that is not empty as bytes, mapped into memory. Documents are looked up in random order: the system's
    reading ahead would read thirty times as much and count as memory."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, np.uint8)


def pair_file(prefix: Path, ending: str) -> Path:
    """The file beside `prefix` whose name is longer by `ending`."""
    return prefix.with_name(prefix.name + ending)
