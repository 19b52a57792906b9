"""One piece of text to one file of tokens: what a worker of `internevo data prepare` does."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from internevo.config.errors import UserError
from internevo.data.corpus import Document, Reject
from internevo.data.pieces import Piece
from internevo.data.tokenizer import Tokenizer, load_tokenizer

_GROUP_CHARACTERS = 2**20
"""About so much text is encoded at a time."""


@dataclass
class Counts:
    """What became of the documents."""

    documents: int = 0
    tokens: int = 0
    heldout_documents: int = 0
    heldout_tokens: int = 0
    characters: int = 0
    empty: int = 0
    """Documents without any text, left out."""
    rejected: int = 0
    """Places in the input that held no usable text, kept aside in `rejects.jsonl`."""

    @property
    def read(self) -> int:
        """All places in the input that should have held a document."""
        return self.documents + self.heldout_documents + self.empty + self.rejected

    def add(self, other: Counts) -> None:
        """Count these too."""
        for name, count in asdict(other).items():
            setattr(self, name, getattr(self, name) + count)


@dataclass
class Record:
    """What a piece held beside its tokens."""

    counts: Counts = field(default_factory=Counts)
    lines: int = 0
    rejects: list[Reject] = field(default_factory=list)


@dataclass(frozen=True)
class TokenisedPiece:
    """A piece: tokens `[tokens]` in the store's dtype and int32 lengths `[documents]`, to train on and held out."""

    record: Record
    train: np.ndarray
    train_lengths: np.ndarray
    heldout: np.ndarray
    heldout_lengths: np.ndarray

    def save(self, path: Path) -> None:
        """Write it under this name at once or not at all."""
        aside = path.with_suffix(".partial")
        record = np.frombuffer(json.dumps(asdict(self.record)).encode(), np.uint8)
        arrays = {name: value for name, value in vars(self).items() if name != "record"}
        with aside.open("wb") as file:
            np.savez(file, record=record, **arrays)
        aside.rename(path)

    @classmethod
    def load(cls, path: Path) -> TokenisedPiece:
        """The inverse of `save`. Raises UserError for a file that is damaged."""
        try:
            with np.load(path) as file:  # the archive has a checksum of every array
                arrays: dict[str, np.ndarray] = dict(file)
            found: dict[str, Any] = json.loads(arrays.pop("record").tobytes())
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is damaged: {error}. Remove it and run the same command again.") from None
        rejects = [Reject(**one) for one in found["rejects"]]
        return cls(Record(Counts(**found["counts"]), found["lines"], rejects), **arrays)


@dataclass(frozen=True)
class Options:
    """How text becomes tokens."""

    text_key: str
    held_out: float
    dtype: str


def tokenise(piece: Piece, tokenizer: Tokenizer, options: Options, all_held_out: bool = False) -> TokenisedPiece:
    """Each document of a piece becomes BOS, its tokens, EOS.

    A document is held out when a hash of its text falls below `options.held_out`, so that neither order nor files
    change what is. Raises UserError for input that is damaged.
    """
    record = Record()
    limit = 2.0 if all_held_out else options.held_out
    train, heldout = _Line(options.dtype), _Line(options.dtype)
    for texts in _groups(piece, options.text_key, record):
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            held = limit > 0 and _share(text) < limit
            (heldout if held else train).add(tokenizer.bos_id, ids, tokenizer.eos_id)
        train.settle()
        heldout.settle()
    counts = record.counts
    counts.documents, counts.tokens = len(train.lengths), sum(train.lengths)
    counts.heldout_documents, counts.heldout_tokens = len(heldout.lengths), sum(heldout.lengths)
    return TokenisedPiece(record, *train.arrays(), *heldout.arrays())


class _Line:
    """Documents one behind the other."""

    def __init__(self, dtype: str):
        self.dtype = np.dtype(dtype)
        self.lengths: list[int] = []
        self._parts: list[Sequence[int]] = []
        self._settled: list[np.ndarray] = [np.empty(0, self.dtype)]

    def add(self, bos: int, ids: list[int], eos: int) -> None:
        self.lengths.append(len(ids) + 2)
        self._parts += ((bos,), ids, (eos,))

    def settle(self) -> None:
        """Python's numbers to numpy's, which take a tenth of the memory."""
        self._settled.append(np.fromiter(chain.from_iterable(self._parts), self.dtype))
        self._parts.clear()

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate(self._settled), np.array(self.lengths, np.int32)


def _groups(piece: Piece, text_key: str, record: Record) -> Iterator[list[str]]:
    """Usable texts, some at a time; the rest goes into the record."""
    texts: list[str] = []
    held = 0
    for record.lines, one in piece.read(text_key):
        if isinstance(one, Reject):
            record.counts.rejected += 1
            record.rejects.append(one)
        elif isinstance(one, Document):
            if not one.text.strip():
                record.counts.empty += 1
                continue
            texts.append(one.text)
            held += len(one.text)
            record.counts.characters += len(one.text)
            if held >= _GROUP_CHARACTERS:
                yield texts
                texts, held = [], 0
    if texts:
        yield texts


def _share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


_worker: tuple[Tokenizer, Options] | None = None  # one for each worker process, loaded when it starts


def start_worker(tokenizer: Path, options: Options) -> None:
    """In a new process: get ready for `work`."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the process that waits for this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = load_tokenizer(tokenizer), options


def _end_with_parent() -> None:
    """A worker whose parent is killed must not go on writing into a folder that another run may take over."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def work(piece: Piece, all_held_out: bool, path: Path) -> None:
    """Tokenise a piece into a file."""
    assert _worker is not None
    tokenise(piece, *_worker, all_held_out).save(path)
