"""Writing a token store: documents appended to a `.bin`/`.idx` pair."""

from __future__ import annotations

import hashlib
from array import array
from pathlib import Path

import numpy as np

from internevo.files.durable import aside_of, make_durable, write_durable
from internevo.tokens.megatron import DTYPES, HEADER, MAGIC, StoreError, pair_file


def token_dtype(vocab_size: int) -> type[np.generic]:
    """The smallest dtype that Megatron's readers use for this vocabulary."""
    return np.uint16 if vocab_size <= 2**16 else np.int32


class TokenStoreWriter:
    """Appends documents to a new store. Its files get their names when it is closed without an error.

    A document is one sequence, or several: `sequences`, such as the two sides of a pair.
    """

    def __init__(self, prefix: str | Path, dtype: type[np.generic] | str, sequences: int = 1):
        self.sequences = sequences
        self.dtype = np.dtype(dtype)
        self._code = next(code for code, known in DTYPES.items() if known is self.dtype.type)
        self._limits = np.iinfo(self.dtype)
        self._data, self._index = (pair_file(Path(prefix), ending) for ending in (".bin", ".idx"))
        for path in (self._data, self._index):
            if path.exists():
                raise StoreError(f"{path} exists already; it is not overwritten. Choose another name or remove it.")
        self._file = aside_of(self._data).open("wb")
        self._lengths = array("i")
        self._hash = hashlib.sha256()
        self.tokens = 0  # tokens of all documents so far

    def append(self, tokens: np.ndarray) -> None:
        """Add one sequence. Raises StoreError for an empty one or an id that the dtype cannot hold."""
        self.extend(tokens, np.array([len(tokens)]))

    def extend(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Add sequences that stand one after the other in `tokens`. Raises StoreError as `append` does."""
        if not lengths.all():
            raise StoreError("a document without tokens cannot be stored")
        if tokens.dtype != self.dtype and len(tokens):
            if tokens.min() < self._limits.min or tokens.max() > self._limits.max:
                raise StoreError(f"token ids {tokens.min()}..{tokens.max()} do not fit {self.dtype.name}")
            tokens = tokens.astype(self.dtype)
        data = tokens.tobytes()
        self._file.write(data)
        self._hash.update(data)
        self.tokens += len(tokens)
        self._lengths.frombytes(lengths.astype("i4").tobytes())

    def __enter__(self) -> TokenStoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def abandon(self) -> None:
        """Leave nothing behind. Does nothing once the writer is closed."""
        self._file.close()
        aside_of(self._data).unlink(missing_ok=True)

    def close(self) -> dict[str, str]:
        """Write the index and name both files, which are then on the disk; the SHA-256 of each, by its name."""
        self._file.close()
        lengths = np.array(self._lengths, dtype="<i4")
        if len(lengths) % self.sequences:
            raise StoreError(f"{len(lengths):,} sequences are no whole documents of {self.sequences}")
        ends = np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
        pointers = np.concatenate(([0], ends))[: len(lengths)].astype("<i8")
        borders = np.arange(0, len(lengths) + 1, self.sequences, dtype="<i8")
        header = HEADER.pack(MAGIC, 1, self._code, len(lengths), len(borders))
        index = header + lengths.tobytes() + pointers.tobytes() + borders.tobytes()
        make_durable(self._data)
        write_durable(self._index, index)
        return {self._data.name: self._hash.hexdigest(), self._index.name: hashlib.sha256(index).hexdigest()}


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
