"""One piece of text to one file of tokens: what a worker of `internevo data prepare` does."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from internevo.files.durable import write_durable
from internevo.files.hashing import share_of
from internevo.text.batches import in_batches
from internevo.text.documents import Document, Reject
from internevo.text.pieces import Piece
from internevo.tokens.tokenizer import Tokenizer, load_tokenizer

_GROUP_CHARACTERS = 2**20  # about how many characters are encoded at a time


@dataclass
class Counts:
    """What became of the documents."""

    documents: int = 0
    tokens: int = 0
    heldout_documents: int = 0
    heldout_tokens: int = 0
    characters: int = 0
    empty: int = 0  # documents without any text, left out
    rejected: int = 0  # places in the input that held no usable text, kept aside in `rejects.jsonl`
    masked_tokens: int = 0  # tokens that are never predicted; negative in the store
    tallies: dict[str, int] = field(default_factory=dict)  # what else is counted, by its name

    @property
    def read(self) -> int:
        """All places in the input that should have held a document."""
        return self.documents + self.heldout_documents + self.empty + self.rejected

    def add(self, other: Counts) -> None:
        for name, count in asdict(other).items():
            if name == "tallies":
                self.tallies = dict(Counter(self.tallies) + Counter(count))
            else:
                setattr(self, name, getattr(self, name) + count)


@dataclass
class Record:
    """What a piece held beside its tokens."""

    counts: Counts = field(default_factory=Counts)
    lines: int = 0
    rejects: list[Reject] = field(default_factory=list)

    def reject(self, one: Reject) -> None:
        """Keep something aside that cannot be used."""
        self.counts.rejected += 1
        self.rejects.append(one)


@dataclass(frozen=True)
class TokenisedPiece:
    """Tokens `[tokens]` in the store's dtype and int32 lengths `[sequences]`, to train on and held out."""

    record: Record
    train: np.ndarray
    train_lengths: np.ndarray
    heldout: np.ndarray
    heldout_lengths: np.ndarray

    @classmethod
    def of(
        cls, record: Record, found: list[tuple[np.ndarray, bool]], dtype: np.dtype[Any], sequences: int = 1
    ) -> TokenisedPiece:
        """These sequences, each as its ids and whether it is held out, counted; `sequences` of them make a document."""
        # arrays, since Python's own numbers would take ten times the memory
        train, heldout = ([ids for ids, held in found if held is wanted] for wanted in (False, True))
        counts = record.counts
        counts.documents, counts.tokens = len(train) // sequences, sum(map(len, train))
        counts.heldout_documents, counts.heldout_tokens = len(heldout) // sequences, sum(map(len, heldout))
        arrays: list[np.ndarray] = []
        for part in (train, heldout):
            arrays += np.concatenate([np.empty(0, dtype), *part]), np.array([*map(len, part)], np.int32)
        return cls(record, *arrays)

    def save(self, path: Path) -> None:
        record = np.frombuffer(json.dumps(asdict(self.record)).encode(), np.uint8)
        arrays = {name: value for name, value in vars(self).items() if name != "record"}
        write_durable(path, lambda file: np.savez(file, record=record, **arrays))

    @classmethod
    def find(cls, path: Path) -> TokenisedPiece | None:
        """What `save` wrote there; None where there is nothing, or something damaged."""
        try:
            with np.load(path) as file:  # the archive has a checksum of every array
                arrays: dict[str, np.ndarray] = dict(file)
            found: dict[str, Any] = json.loads(arrays.pop("record").tobytes())
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None
        rejects = [Reject(**one) for one in found["rejects"]]
        return cls(Record(Counts(**found["counts"]), found["lines"], rejects), **arrays)


def text_encoder(
    tokenizer: Path, text_key: str, held_out: float, dtype: str
) -> Callable[[Piece, bool], TokenisedPiece]:
    """`tokenise`, with the tokenizer loaded."""
    return partial(tokenise, load_tokenizer(tokenizer), text_key, held_out, np.dtype(dtype))


def tokenise(
    tokenizer: Tokenizer, text_key: str, held_out: float, dtype: np.dtype[Any], piece: Piece, all_held_out: bool
) -> TokenisedPiece:
    """Documents of a piece as BOS, tokens, EOS; held out by a hash of the text. Raises UserError for damaged input."""
    record = Record()
    documents = []
    for texts in in_batches(_texts(piece, text_key, record), len, _GROUP_CHARACTERS):
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            held = all_held_out or share_of(text.encode()) < held_out
            framed = np.fromiter((tokenizer.bos_id, *ids, tokenizer.eos_id), dtype, len(ids) + 2)
            documents.append((framed, held))
    return TokenisedPiece.of(record, documents, dtype)


def _texts(piece: Piece, text_key: str, record: Record) -> Iterator[str]:
    """Usable texts; the rest goes into the record."""
    for record.lines, one in piece.read(text_key):
        if isinstance(one, Reject):
            record.reject(one)
        elif isinstance(one, Document) and one.text.strip():
            record.counts.characters += len(one.text)
            yield one.text
        elif isinstance(one, Document):
            record.counts.empty += 1
