"""The loader: batches of packed rows, one optimizer step each, resumable anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from internevo.config.schema import SourceConfig
from internevo.data.batch import IGNORE, Batch
from internevo.data.megatron import StoreError
from internevo.data.mixture import Mixture
from internevo.data.packing import Pieces, pack_best_fit
from internevo.data.source import EMPTY, Row, SourceCursor, SourceStream
from internevo.data.store import TokenStore

PADDING = 0
"""The token id of padding. Its value never matters: it has no label and no real token attends to it."""


@dataclass(frozen=True)
class Part:
    """One of `parts` equal parts of a step's rows."""

    number: int
    parts: int


WHOLE = Part(0, 1)


@dataclass(frozen=True)
class Cursor:
    """Where the data of a run stands, by source name. Sources keep their place while a stage does not use them."""

    sources: dict[str, SourceCursor] = field(default_factory=dict)

    def next_stage(self) -> Cursor:
        """The cursor with which a following stage begins: places kept, shares counted anew."""
        return Cursor({name: replace(cursor, stage_tokens=0) for name, cursor in self.sources.items()})

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return {name: cursor.to_json() for name, cursor in self.sources.items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Cursor:
        """The inverse of `to_json`."""
        return cls({name: SourceCursor.from_json(cursor) for name, cursor in value.items()})


class Loader:
    """Batches of one stage. A thread makes the next batch while the caller trains on the last."""

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        *,
        seq_len: int,
        rows_per_step: int,
        packing: str,
        seed: int,
        cursor: Cursor | None = None,
        part: Part = WHOLE,
        prepare: Callable[[Batch], Any] = lambda batch: batch,
    ):
        """Open the sources and stand at `cursor`; batches hold the rows of `part`, which must divide the rows.

        `prepare` turns a batch into what `next` returns, in the loader's thread: it may bring it to a device. Raises
        StoreError for a store that cannot be used.
        """
        self.cursor = cursor or Cursor()
        """Where the data stands after the last batch that `next` returned."""
        self._seq_len, self._rows, self._part, self._prepare = seq_len, rows_per_step, part, prepare
        self._mixture = Mixture([source.weight for source in sources])
        self._streams = []
        for source in sources:
            store, name = TokenStore.open_source(source.path), source_name(source)
            if not store.tokens:
                raise StoreError(f"source {name}: {source.path} holds no tokens.")
            place = self.cursor.sources.get(name, SourceCursor())
            self._streams.append(SourceStream(name, store, packing, seq_len, seed, place))
        self._thread = ThreadPoolExecutor(1, "loader")
        self._coming: Future[tuple[Any, Cursor]] = self._thread.submit(self._make)

    def next(self) -> Any:
        """The next step's batch, as `prepare` made it; `cursor` moves behind it."""
        batch, self.cursor = self._coming.result()
        self._coming = self._thread.submit(self._make)
        return batch

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _make(self) -> tuple[Any, Cursor]:
        plan: list[tuple[SourceStream, Row]] = []
        for _ in range(self._rows):
            drawn = [stream.cursor.stage_tokens for stream in self._streams]
            stream = self._streams[self._mixture.choose(drawn, self._seq_len)]
            plan.append((stream, stream.next_row()))
        places = {stream.name: stream.cursor for stream in self._streams}
        rows = [(stream.name, stream.store, row) for stream, row in plan]
        batch = materialise(rows, self._seq_len, self._part)
        return self._prepare(batch), Cursor({**self.cursor.sources, **places})


def materialise(plan: Sequence[tuple[str, TokenStore, Row]], seq_len: int, part: Part = WHOLE) -> Batch:
    """The planned rows (source name, store, row) as a batch; only the rows of `part` are read."""
    share = len(plan) // part.parts
    rows = slice(part.number * share, (part.number + 1) * share)
    tokens = np.full((share, seq_len), PADDING, np.int64)
    labels = np.full((share, seq_len), IGNORE, np.int64)
    positions = np.tile(np.arange(seq_len), (share, 1))
    for number, (_, store, row) in enumerate(plan[rows]):
        if len(row.length):
            _fill(tokens[number], labels[number], positions[number], store, row)
    lengths, real_tokens, label_count = [], [], 0
    for _, _, row in plan:
        real = int(row.length.sum())
        lengths.append((*row.length.tolist(), *([seq_len - real] if real < seq_len else [])))
        real_tokens.append(real)
        label_count += real - int((~row.goes_on).sum())
    names = tuple(name for name, _, _ in plan)
    return Batch(tokens, labels, positions, tuple(lengths), tuple(real_tokens), names, label_count, rows)


def _fill(tokens: np.ndarray, labels: np.ndarray, positions: np.ndarray, store: TokenStore, row: Row) -> None:
    """Read one row into the arrays `[seq]`, which hold padding."""
    ends = np.cumsum(row.length)
    real, begins = int(ends[-1]), ends - row.length
    for first, begin, length in zip(row.first.tolist(), begins.tolist(), row.length.tolist(), strict=True):
        tokens[begin : begin + length] = store.slice(first, first + length)
    labels[: real - 1] = tokens[1:real]
    labels[ends - 1] = IGNORE
    cut = np.flatnonzero(row.goes_on)
    for end, following in zip(ends[cut].tolist(), (row.first + row.length)[cut].tolist(), strict=True):
        labels[end - 1] = store.slice(following, following + 1)[0]
    counts = np.append(row.length, len(tokens) - real)
    positions[:] = np.arange(len(tokens)) - np.repeat(np.append(begins, real), counts)


def evaluation_batches(
    name: str, store: TokenStore, seq_len: int, rows: int, max_tokens: int, part: Part = WHOLE, padded: bool = False
) -> Iterator[Batch]:
    """The first documents of a held-out store, at most `max_tokens` tokens of them, packed by best fit.

    Each batch has `rows` rows, of which the arrays hold those of `part`. The last batch may have fewer, or, with
    `padded`, rows of padding. At least one document is used, cut if it must be.
    """
    documents = np.arange(min(len(store), max_tokens))
    lengths = store.lengths(documents)
    used = max(1, int(np.searchsorted(np.cumsum(lengths), max_tokens, side="right")))
    documents, lengths = documents[:used], np.minimum(lengths[:used], max_tokens)
    starts = store.starts(documents)
    packed = pack_best_fit(Pieces.whole(lengths), seq_len)
    for start in range(0, len(packed), rows):
        plan = []
        for number in range(start, min(start + rows, len(packed))):
            pieces = packed[number]
            goes_on = pieces.start + pieces.length < lengths[pieces.document]
            plan.append((name, store, Row(starts[pieces.document] + pieces.start, pieces.length, goes_on)))
        if padded:
            plan += [(name, store, EMPTY)] * (rows - len(plan))
        yield materialise(plan, seq_len, part)


def source_name(source: SourceConfig) -> str:
    """How metrics call a source."""
    return source.name or Path(source.path).name
