"""Token stores for tests: Megatron's format by hand, and documents whose tokens say where they stand."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from internevo.tokens.store import TokenStore
from internevo.tokens.store_writer import TokenStoreWriter

CODES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
HEADER = 9 + 8 + 1 + 8 + 8


def numbered(lengths: Sequence[int], first: int = 1) -> list[np.ndarray]:
    """Documents of these lengths whose ids count on from one to the next: an id is one place in the store."""
    ends = first + np.cumsum(lengths)
    return [np.arange(end - length, end) for end, length in zip(ends.tolist(), lengths, strict=True)]


def write_store(prefix: Path, documents: Sequence[np.ndarray], dtype: type[np.generic] = np.int32) -> TokenStore:
    """A store of these documents, made by the writer under test."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with TokenStoreWriter(prefix, dtype) as writer:
        for document in documents:
            writer.append(document)
    return TokenStore(prefix)


def write_by_hand(prefix: Path, documents: Sequence[Sequence[Sequence[int]]], code: int = 4) -> None:
    """Each document is a list of sequences; only the description of the format is used."""
    sequences = [sequence for document in documents for sequence in document]
    size = np.dtype(CODES[code]).itemsize
    lengths = [len(sequence) for sequence in sequences]
    pointers = [size * sum(lengths[:number]) for number in range(len(lengths))]
    borders = [sum(map(len, documents[:number])) for number in range(len(documents) + 1)]
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sequences), len(borders))
    index += struct.pack(f"<{len(lengths)}i", *lengths) + struct.pack(f"<{len(pointers)}q", *pointers)
    index += struct.pack(f"<{len(borders)}q", *borders)
    prefix.with_name(prefix.name + ".idx").write_bytes(index)
    prefix.with_name(prefix.name + ".bin").write_bytes(
        b"".join(np.array(sequence, CODES[code]).tobytes() for sequence in sequences)
    )


def read_by_hand(prefix: Path) -> list[list[list[int]]]:
    """The inverse of `write_by_hand`."""
    index = prefix.with_name(prefix.name + ".idx").read_bytes()
    data = prefix.with_name(prefix.name + ".bin").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code, count, borders = struct.unpack("<QBQQ", index[9:HEADER])
    assert version == 1
    assert len(index) == HEADER + 12 * count + 8 * borders
    lengths = struct.unpack_from(f"<{count}i", index, HEADER)
    pointers = struct.unpack_from(f"<{count}q", index, HEADER + 4 * count)
    ends = struct.unpack_from(f"<{borders}q", index, HEADER + 12 * count)
    sequences = [
        np.frombuffer(data, CODES[code], length, pointer).tolist()
        for length, pointer in zip(lengths, pointers, strict=True)
    ]
    return [sequences[begin:end] for begin, end in pairwise(ends)]
