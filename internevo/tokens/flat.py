"""Flat files of token ids with an index of where documents end: datatrove's and nanotron's `.ds`, OLMo's raw `.npy`,
nanoGPT's and llm.c's `.bin`.

Beside `FILE` stand `FILE.index`, the ends of the documents in tokens as uint64, and perhaps `FILE.metadata`, whose
first line ends with the bytes of a token (`gpt2|2`). datatrove writes all three. The others' files have no borders of
documents but the id that ends each (llm.c: begins each); `index_documents` looks for it once. All is little-endian, and
memory mapped. llm.c's files begin with 256 int32: a number for the size of a token, a version, the count of tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from internevo.files.foreign import described, other_store
from internevo.tokens.megatron import StoreError, map_index, pair_file

ENDINGS = (".ds", ".npy")  # of files that are taken from a folder
NAMED = (*ENDINGS, ".bin")  # of files that can be named themselves
_TYPES: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
_CHUNK = 2**24  # tokens that are looked at together when documents are found
_NUMPY = b"\x93NUMPY"
_LLM_C: dict[int, tuple[int, np.dtype[Any]]] = {20240520: (1, _TYPES[2]), 20240801: (7, _TYPES[4])}
"""By the first number of llm.c's files: the second one, a version, and the tokens (llm.c, dev/data/data_common.py)."""
_LLM_C_HEAD = 256 * 4


class FlatFile:
    """Documents of token ids in one flat file. Raises StoreError for one that is missing, torn or without an index."""

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise StoreError(f"{path} does not exist.")
        self.index = pair_file(path, ".index")
        if not self.index.is_file():
            _check_kind(path)
            raise StoreError(f"{path} has no index of its documents. `internevo data index {path} --eos ID` makes one.")
        size = self.index.stat().st_size
        if size % 8:
            raise StoreError(f"{self.index} is torn: {size:,} bytes are no whole number of uint64.")
        self._ends = map_index(self.index).view("<u8") if size else np.empty(0, "<u8")
        self.tokens = int(self._ends[-1]) if len(self._ends) else 0  # tokens in all documents
        self.data = _tokens(path, self._token_bytes())  # all token ids in file order, a view of the memory map
        self.dtype = self.data.dtype
        if len(self.data) != self.tokens:
            raise StoreError(
                f"{path} and its index disagree: {len(self.data):,} tokens, of which documents end at {self.tokens:,}."
            )

    def __len__(self) -> int:
        return len(self._ends)

    def starts(self, documents: np.ndarray) -> np.ndarray:
        """As a `MegatronPair`'s."""
        starts = np.zeros(documents.shape, np.int64)
        starts[documents > 0] = self._ends[documents[documents > 0] - 1]
        if (starts > self.tokens).any():
            document = documents[starts > self.tokens][0]
            raise StoreError(f"{self.index} is damaged: document {document:,} begins outside the data.")
        return starts

    def _token_bytes(self) -> int:
        metadata = pair_file(self.path, ".metadata")
        if metadata.is_file():
            said = metadata.read_text(encoding="utf-8").partition("\n")[0].rpartition("|")[2]
            if said not in ("2", "4"):
                raise StoreError(f"{metadata} names no size of a token: its first line does not end with |2 or |4.")
            return int(said)
        size = self.path.stat().st_size
        return size // self.tokens if self.tokens and size in (2 * self.tokens, 4 * self.tokens) else 2


def index_documents(path: Path, eos: int, token_bytes: int) -> int:
    """Write the index of a flat file whose documents, but perhaps the last, end with the id `eos`; returns how many.

    Raises StoreError for a file that is missing, indexed already, without `eos`, or with tokens of another size.
    """
    if not path.is_file():
        raise StoreError(f"{path} does not exist.")
    if token_bytes not in _TYPES:
        raise StoreError(f"tokens of {token_bytes} bytes are not read; a token has {' or '.join(map(str, _TYPES))}.")
    _check_kind(path)
    index, metadata = pair_file(path, ".index"), pair_file(path, ".metadata")
    for file in (index, metadata):
        if file.exists():
            raise StoreError(f"{file} exists already; it is not overwritten.")
    data = _tokens(path, token_bytes)
    if not len(data):
        raise StoreError(f"{path} holds no tokens.")
    documents, end = 0, 0
    aside = index.with_suffix(".partial")
    with aside.open("wb") as out:
        for start in range(0, len(data), _CHUNK):
            ends = np.flatnonzero(data[start : start + _CHUNK] == eos) + start + 1
            out.write(ends.astype("<u8").tobytes())
            documents += len(ends)
            end = int(ends[-1]) if len(ends) else end
        if documents and end < len(data):
            out.write(np.array([len(data)], "<u8").tobytes())
            documents += 1
    if not documents:
        aside.unlink()
        raise StoreError(f"{path}: the id {eos} never comes in {len(data):,} tokens of {token_bytes} bytes.")
    metadata.write_text(f"|{data.dtype.itemsize}\n{len(data)}\n", encoding="utf-8")
    aside.rename(index)
    return documents


def _check_kind(path: Path) -> None:
    """Raise StoreError for a file of another kind, and for one of several that only another loader reads."""
    if what := other_store(path.parent):
        raise StoreError(f"{what}.")
    if what := described(path):
        raise StoreError(f"{path} is no file of token ids, but {what}.")


def _tokens(path: Path, token_bytes: int) -> np.ndarray:
    """The ids of a raw file, or of one that numpy saved, `[tokens]`."""
    with path.open("rb") as file:
        saved = file.read(len(_NUMPY)) == _NUMPY
    if saved:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:  # cut off, or an array of objects
            raise StoreError(f"{path} is torn, or no array of numbers: {error}") from None
        if array.ndim != 1 or array.dtype.kind not in "ui":
            raise StoreError(f"{path} is an array {array.dtype} of {array.ndim} dimensions, not a line of token ids.")
        return np.asarray(array)
    size = path.stat().st_size
    if (tokens := _llm_c(path, size)) is not None:
        return tokens
    if size % token_bytes:
        raise StoreError(f"{path} is torn: {size:,} bytes are no whole number of {token_bytes}-byte tokens.")
    dtype = _TYPES[token_bytes]
    return np.asarray(np.memmap(path, dtype=dtype, mode="r")) if size else np.empty(0, dtype)


def _llm_c(path: Path, size: int) -> np.ndarray | None:
    """The ids of a file of llm.c's, `[tokens]`; None for any other. Raises StoreError for one that cannot be read."""
    head = np.fromfile(path, "<i4", 3).tolist()
    if len(head) < 3 or head[0] not in _LLM_C:
        return None
    version, dtype = _LLM_C[head[0]]
    if head[1] != version:
        raise StoreError(f"{path} is a file of llm.c's of version {head[1]}; version {version} is read.")
    if size != (whole := _LLM_C_HEAD + head[2] * dtype.itemsize):
        raise StoreError(f"{path} is torn: its head makes it {whole:,} bytes for {head[2]:,} tokens, it has {size:,}.")
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", offset=_LLM_C_HEAD, shape=(head[2],)))
