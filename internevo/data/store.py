"""The token store: Megatron's indexed format, one `.bin` of token ids and one `.idx` of where documents lie.

The index is a header (`MMIDIDX\\0\\0`, version, dtype code, number of sequences, number of document borders), then
int32 sequence lengths, int64 byte offsets and int64 document borders, all little-endian. Everything is memory
mapped: opening a store costs the same whatever its size. Stores are written with one sequence a document; reading
also takes stores whose documents have several sequences or none, as Megatron's tools may write them.
"""

from __future__ import annotations

import struct
from array import array
from pathlib import Path
from types import TracebackType

import numpy as np

from internevo.config.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, type[np.generic]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    8: np.uint16,
}
TRAIN, HELDOUT = "train", "heldout"


class StoreError(UserError):
    """A store that is missing, torn or not a store; the message names the file."""


def token_dtype(vocab_size: int) -> type[np.generic]:
    """The smallest dtype that Megatron's readers use for this vocabulary."""
    return np.uint16 if vocab_size <= 2**16 else np.int32


class TokenStore:
    """Documents of token ids on disk. `prefix` is the path of the pair without `.bin` and `.idx`."""

    def __init__(self, prefix: str | Path):
        self.prefix = Path(prefix)
        index, data = _file(self.prefix, ".idx"), _file(self.prefix, ".bin")
        for path in (index, data):
            if not path.is_file():
                raise StoreError(f"{path} does not exist. `internevo data prepare` writes token stores.")
        size = index.stat().st_size
        with index.open("rb") as file:
            header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(MAGIC):
            raise StoreError(f"{index} is not the index of a token store.")
        _, version, code, sequences, borders = _HEADER.unpack(header)
        if version != 1 or code not in DTYPES:
            raise StoreError(
                f"{index} has version {version} and dtype code {code}; known are version 1, {list(DTYPES)}."
            )
        if borders < 1 or size < _HEADER.size + 12 * sequences + 8 * borders:
            raise StoreError(f"{index} is torn: it announces {sequences:,} sequences but has only {size:,} bytes.")
        self.dtype = np.dtype(DTYPES[code])
        raw = np.asarray(np.memmap(index, dtype=np.uint8, mode="r"))
        offset = _HEADER.size
        lengths = raw[offset : offset + 4 * sequences].view("<i4")
        offset += 4 * sequences
        self._pointers = raw[offset : offset + 8 * sequences].view("<i8")
        offset += 8 * sequences
        self._borders = raw[offset : offset + 8 * borders].view("<i8")
        if self._borders[-1] != sequences:
            raise StoreError(f"{index} is torn: its documents end at sequence {self._borders[-1]:,} of {sequences:,}.")
        self.tokens = 0
        """Tokens in all documents."""
        if sequences:
            self.tokens = int(self._pointers[-1]) // self.dtype.itemsize + int(lengths[-1])
        actual = data.stat().st_size
        if actual < self.tokens * self.dtype.itemsize:
            raise StoreError(
                f"{data} is torn: its index needs {self.tokens * self.dtype.itemsize:,} bytes, it has {actual:,}."
            )
        self.data = np.empty(0, self.dtype)
        """All token ids in file order, as a plain view of the memory map."""
        if self.tokens:
            self.data = np.asarray(np.memmap(data, dtype=self.dtype, mode="r", shape=(self.tokens,)))

    @classmethod
    def open_source(cls, path: str | Path) -> TokenStore:
        """The training documents of a prepared folder, or the pair that `path` is the prefix of."""
        return cls(source_prefix(path))

    @classmethod
    def open_heldout(cls, path: str | Path) -> TokenStore | None:
        """The held-out documents of a prepared folder; None when nothing was held out."""
        prefix = Path(path) / HELDOUT
        return cls(prefix) if _file(prefix, ".idx").is_file() else None

    def __len__(self) -> int:
        """Number of documents."""
        return len(self._borders) - 1

    def lengths(self, documents: np.ndarray) -> np.ndarray:
        """Lengths of these documents in tokens, int64. Raises StoreError for an index that cannot be right."""
        lengths = self.starts(documents + 1) - self.starts(documents)
        if (lengths < 0).any():
            document = documents[lengths < 0][0]
            raise StoreError(f"{_file(self.prefix, '.idx')} is damaged: document {document:,} ends before it begins.")
        return lengths

    def starts(self, documents: np.ndarray) -> np.ndarray:
        """Where these documents begin in `data`, int64; the one past the last begins where `data` ends.

        Raises StoreError for an index that cannot be right.
        """
        sequences = self._borders[documents]
        starts = np.full(sequences.shape, self.tokens, np.int64)
        # a document without sequences, as Megatron's tools write for empty text, may stand behind the last sequence
        inside = sequences < len(self._pointers)
        starts[inside] = self._pointers[sequences[inside]] // self.dtype.itemsize
        outside = (starts < 0) | (starts > self.tokens)
        if outside.any():
            document = documents[outside][0]
            raise StoreError(f"{_file(self.prefix, '.idx')} is damaged: document {document:,} begins outside the data.")
        return starts

    def read(self, document: int) -> np.ndarray:
        """Token ids of one document: a view of the file, in its dtype."""
        start, end = self.starts(np.array([document, document + 1])).tolist()
        return self.data[start:end]


class TokenStoreWriter:
    """Appends documents to a new store. Files get their names when the writer is closed without an error."""

    def __init__(self, prefix: str | Path, dtype: type[np.generic]):
        self.prefix, self.dtype = Path(prefix), np.dtype(dtype)
        self._code = next(code for code, known in DTYPES.items() if known is self.dtype.type)
        self._limits = np.iinfo(self.dtype)
        for path in (_file(self.prefix, ".bin"), _file(self.prefix, ".idx")):
            if path.exists():
                raise StoreError(f"{path} exists already; it is not overwritten. Choose another name or remove it.")
        self._aside = _file(self.prefix, ".bin.partial")
        self._file = self._aside.open("wb")
        self._lengths = array("i")

    def append(self, tokens: np.ndarray) -> None:
        """Add one document. Raises StoreError for an empty one or an id that the dtype cannot hold."""
        if not len(tokens):
            raise StoreError("a document without tokens cannot be stored")
        if tokens.min() < self._limits.min or tokens.max() > self._limits.max:
            raise StoreError(f"token ids {tokens.min()}..{tokens.max()} do not fit {self.dtype.name}")
        self._file.write(tokens.astype(self.dtype).tobytes())
        self._lengths.append(len(tokens))

    def __enter__(self) -> TokenStoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()
            self._aside.unlink()

    def close(self) -> None:
        """Write the index and give both files their names, the index last."""
        self._file.close()
        lengths = np.array(self._lengths, dtype="<i4")
        ends = np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
        pointers = np.concatenate(([0], ends))[: len(lengths)].astype("<i8")
        borders = np.arange(len(lengths) + 1, dtype="<i8")
        aside = _file(self.prefix, ".idx.partial")
        header = _HEADER.pack(MAGIC, 1, self._code, len(lengths), len(borders))
        aside.write_bytes(header + lengths.tobytes() + pointers.tobytes() + borders.tobytes())
        self._aside.rename(_file(self.prefix, ".bin"))
        aside.rename(_file(self.prefix, ".idx"))


def source_prefix(path: str | Path) -> Path:
    """The prefix of a source's training pair: inside a prepared folder, or `path` itself."""
    path = Path(path)
    return path / TRAIN if path.is_dir() else path


def _file(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)
