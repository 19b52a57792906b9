"""A token store of any size for tests and tools: sparse files, in which only what is looked at is written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from internevo.tokens.megatron import HEADER, MAGIC, pair_file

LENGTH = 1000
"""Tokens of each document."""


class SparseStore:
    """A `.bin`/`.idx` pair of uint16 documents, all of LENGTH tokens, that takes hardly any room on the disk.

    `write` fills in what the index says of some documents, and `write_tokens` the first tokens of each.
    """

    def __init__(self, folder: Path, documents: int):
        self.documents = documents
        index, data = pair_file(folder / "train", ".idx"), pair_file(folder / "train", ".bin")
        index.write_bytes(HEADER.pack(MAGIC, 1, 8, documents, documents + 1))
        data.touch()
        self._pointers = HEADER.size + 4 * documents
        self._borders = self._pointers + 8 * documents
        os.truncate(index, self._borders + 8 * (documents + 1))
        os.truncate(data, 2 * LENGTH * documents)
        self._index, self._data = (os.open(path, os.O_RDWR) for path in (index, data))
        self.write(np.array([0, documents - 1]))

    def write(self, documents: np.ndarray) -> None:
        """Make these documents readable."""
        for document in documents.tolist():
            begin = 2 * LENGTH * document
            pointers = np.array([begin, begin + 2 * LENGTH], "<i8")
            last = document + 1 == self.documents
            os.pwrite(self._index, np.array([LENGTH], "<i4").tobytes(), HEADER.size + 4 * document)
            os.pwrite(self._index, pointers[: 1 if last else 2].tobytes(), self._pointers + 8 * document)
            borders = np.array([document, document + 1], "<i8")
            os.pwrite(self._index, borders.tobytes(), self._borders + 8 * document)

    def write_tokens(self, documents: np.ndarray) -> None:
        """Write the first tokens of these documents."""
        for document in documents.tolist():
            os.pwrite(self._data, self.tokens(document).astype("<u2").tobytes(), 2 * LENGTH * document)

    @staticmethod
    def tokens(document: int) -> np.ndarray:
        """The first four tokens of a document: its number, in pieces."""
        return np.array([document >> shift & 0xFFFF for shift in (48, 32, 16, 0)])

    def close(self) -> None:
        """Let go of the files."""
        os.close(self._index)
        os.close(self._data)
