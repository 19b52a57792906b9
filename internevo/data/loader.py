"""The loader: batches of packed rows, one optimizer step each, resumable anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from internevo.config.schema import SourceConfig
from internevo.data.batch import IGNORE, Batch
from internevo.data.label_weights import label_weights
from internevo.data.length_band import Band
from internevo.data.mixing import Asked, Mixture, Plan, capped_shares, source_name, tokens_drawn
from internevo.data.packing import Pieces, pack_best_fit
from internevo.data.source_stream import EMPTY, Row, SourceCursor, SourceStream, row_of
from internevo.tokens.megatron import StoreError
from internevo.tokens.store import TokenStore

PADDING = 0
"""The token id of padding. Its value never matters: it has no label and no real token attends to it."""


@dataclass(frozen=True)
class Part:
    """One of `parts` equal parts of a step's rows."""

    number: int
    parts: int


WHOLE = Part(0, 1)


@dataclass(frozen=True)
class Extras:
    """What an objective has to know of each place of a row, beside its token and label."""

    dtypes: Mapping[str, type[np.generic]]
    """By name: int64 or float32."""
    of_row: Callable[[TokenStore, Row], Mapping[str, np.ndarray]]
    """By name, `[real tokens of the row]`; padding has 0."""


@dataclass(frozen=True)
class Cursor:
    """Where the data of a run stands, by source name. Sources keep their place while a stage does not use them."""

    sources: dict[str, SourceCursor] = field(default_factory=dict)
    asked: Asked = field(default_factory=dict)
    """The mixture that was asked for when the shares were set; none yet at the beginning of a stage ..."""
    shares: dict[str, float] = field(default_factory=dict)
    """... and the shares, by source: those of its weights, unless a source may not be gone through as often."""

    def next_stage(self) -> Cursor:
        """The cursor with which a following stage begins: places kept, shares still to be set."""
        return Cursor(self.sources)

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        sources = {name: cursor.to_json() for name, cursor in self.sources.items()}
        return {"sources": sources, "asked": self.asked, "shares": self.shares}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Cursor:
        """The inverse of `to_json`."""
        sources = {name: SourceCursor.from_json(cursor) for name, cursor in value["sources"].items()}
        return cls(sources, value["asked"], value["shares"])


class Loader:
    """Batches of one stage. A thread makes the next batch while the caller trains on the last."""

    def __init__(
        self,
        plan: Plan,
        *,
        seed: int,
        cursor: Cursor | None = None,
        step: int = 0,
        part: Part = WHOLE,
        prepare: Callable[[Batch], Any] = lambda batch: batch,
        extras: Extras | None = None,
    ):
        """Open the sources and stand at `cursor`, before step `step` of the stage.

        Batches hold the rows of `part`, which must divide the rows of every step, with what `extras` adds. `prepare`
        turns a batch into what `next` returns, in the loader's thread: it may bring it to a device. Raises StoreError
        for a store that cannot be used, and when the sources may not give as many tokens as the stage takes.
        """
        self.cursor = cursor or Cursor()
        """Where the data stands after the last batch that `next` returned."""
        self._plan, self._step, self._part, self._prepare = plan, step, part, prepare
        self._extras = extras
        # by name, so that the order in which a configuration lists them decides nothing
        self._streams = [_open(source, plan, seed, self.cursor) for source in sorted(plan.sources, key=source_name)]
        tokens_drawn(plan, step, {stream.name: stream.left for stream in self._streams})
        self._asked, self._shares = self.cursor.asked, self.cursor.shares
        if any(self._shares.values()) and plan.asked(step) == self._asked:
            self._mixture = self._mix()
        self._thread = ThreadPoolExecutor(1, "loader")
        self._coming: Future[tuple[Any, Cursor]] = self._thread.submit(self._make)

    def next(self) -> Any:
        """The next step's batch, as `prepare` made it; `cursor` moves after it."""
        batch, self.cursor = self._coming.result()
        self._coming = self._thread.submit(self._make)
        return batch

    def __iter__(self) -> Iterator[Any]:
        """What `next` returns, without end."""
        while True:
            yield self.next()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _make(self) -> tuple[Any, Cursor]:
        if (asked := self._plan.asked(self._step)) != self._asked:
            self._asked = asked
            self._set_shares(self._plan.weights(self._step))
        plan = [self._draw() for _ in range(self._plan.rows_at(self._step))]
        if not any(len(row.length) for *_, row in plan):
            raise StoreError(
                f"step {self._step + 1:,} of the stage would be nothing but padding: its sources are used up within "
                "their max_epochs. Make the stage shorter, raise max_epochs, or give other sources a weight."
            )
        self._step += 1
        places = {stream.name: stream.cursor for stream in self._streams}
        batch = materialise(plan, self._plan.seq_len, self._part, self._plan.average, self._extras)
        return self._prepare(batch), Cursor({**self.cursor.sources, **places}, self._asked, self._shares)

    def _draw(self) -> tuple[str, TokenStore, Row]:
        """The next row, of the source whose turn it is; one of padding when all sources are used up."""
        while any(self._shares.values()):
            drawn = [stream.cursor.share_tokens for stream in self._streams]
            stream = self._streams[self._mixture.choose(drawn, self._plan.seq_len)]
            if (row := stream.next_row()) is not None:
                return stream.name, stream.store, row
            # used up, perhaps some rows earlier than its tokens let expect: the others take its share over
            self._set_shares({**self._shares, stream.name: 0.0})
        return self._streams[0].name, self._streams[0].store, EMPTY

    def _set_shares(self, weights: dict[str, float]) -> None:
        """From here on, tokens are shared out anew."""
        left = {stream.name: stream.left for stream in self._streams}
        self._shares = capped_shares(weights, left, self._plan.places(self._step))
        for stream in self._streams:
            stream.cursor = replace(stream.cursor, share_tokens=0)
        if any(self._shares.values()):
            self._mixture = self._mix()

    def _mix(self) -> Mixture:
        return Mixture([self._shares[stream.name] for stream in self._streams])


def _open(source: SourceConfig, plan: Plan, seed: int, cursor: Cursor) -> SourceStream:
    store, name = TokenStore.open_source(source.path, plan.cache), source_name(source)
    if not store.tokens:
        raise StoreError(f"source {name}: {source.path} holds no tokens.")
    place = cursor.sources.get(name, SourceCursor())
    band = Band(source.min_tokens, source.max_tokens)
    stream = SourceStream(
        name, store, plan.packing, plan.seq_len, seed, place, band, source.max_epochs, plan.block_size
    )
    if not stream.epoch_tokens:
        raise StoreError(f"source {name}: {source.path} {band.missing_in(store)}.")
    return stream


def materialise(
    plan: Sequence[tuple[str, TokenStore, Row]],
    seq_len: int,
    part: Part = WHOLE,
    average: str = "token",
    extras: Extras | None = None,
) -> Batch:
    """The planned rows (source name, store, row) as a batch; only the rows of `part` are read.

    `average` says what counts alike in the loss, as `train.average` does.
    """
    share = len(plan) // part.parts
    rows = slice(part.number * share, (part.number + 1) * share)
    tokens = np.full((share, seq_len), PADDING, np.int64)
    labels = np.full((share, seq_len), IGNORE, np.int64)
    positions = np.tile(np.arange(seq_len), (share, 1))
    for number, (_, store, row) in enumerate(plan[rows]):
        if len(row.length):
            _fill(tokens[number], labels[number], positions[number], store, row)
    lengths, real_tokens, label_count, documents, cut = [], [], 0, 0, 0
    for _, store, row in plan:
        real = int(row.length.sum())
        lengths.append((*row.length.tolist(), *([seq_len - real] if real < seq_len else [])))
        real_tokens.append(real)
        ends = ~row.continues
        label_count += real - int(ends.sum()) - (_masked(store, row) if store.masked else 0)
        documents += int(ends.sum()) // (2 if store.paired else 1)
        cut += int((ends & row.continued).sum())
    names = tuple(name for name, _, _ in plan)
    batch = Batch(
        tokens, labels, positions, tuple(lengths), tuple(real_tokens), names, label_count, rows, documents, cut
    )
    if extras is not None:
        batch = replace(batch, extras=_extras(extras, plan[rows], seq_len))
    return batch if average == "token" else _weighted(batch, plan, average)


def _extras(extras: Extras, plan: Sequence[tuple[str, TokenStore, Row]], seq_len: int) -> dict[str, np.ndarray]:
    found = {name: np.zeros((len(plan), seq_len), dtype) for name, dtype in extras.dtypes.items()}
    for number, (_, store, row) in enumerate(plan):
        if len(row.length):
            for name, values in extras.of_row(store, row).items():
                found[name][number, : len(values)] = values
    return found


def _weighted(batch: Batch, plan: Sequence[tuple[str, TokenStore, Row]], average: str) -> Batch:
    """The batch with the weights of its labels, whose sum is that of all rows."""
    weights = np.zeros(batch.labels.shape, np.float32)
    first, total = batch.rows.start, 0.0
    for number, (_, store, row) in enumerate(plan):
        if len(row.length):
            found = label_weights(store, row, average)
            total += float(found.sum())
            if first <= number < batch.rows.stop:
                weights[number - first, : len(found)] = found
    return replace(batch, weights=weights, weight_sum=total)


def _fill(tokens: np.ndarray, labels: np.ndarray, positions: np.ndarray, store: TokenStore, row: Row) -> None:
    """Read one row into the arrays `[seq]`, which hold padding."""
    ends = np.cumsum(row.length)
    real, begins = int(ends[-1]), ends - row.length
    for first, begin, length in zip(row.first.tolist(), begins.tolist(), row.length.tolist(), strict=True):
        tokens[begin : begin + length] = store.slice(first, first + length)
    labels[: real - 1] = tokens[1:real]
    labels[ends - 1] = IGNORE
    cut = np.flatnonzero(row.continues)
    for end, following in zip(ends[cut].tolist(), (row.first + row.length)[cut].tolist(), strict=True):
        labels[end - 1] = store.slice(following, following + 1)[0]
    if store.masked:
        labels[labels < 0] = IGNORE
        tokens[:real] = store.ids(tokens[:real])
    counts = np.append(row.length, len(tokens) - real)
    positions[:] = np.arange(len(tokens)) - np.repeat(np.append(begins, real), counts)


def _masked(store: TokenStore, row: Row) -> int:
    """Labels of a row that are masked: those of the tokens after each piece's first, and after a cut."""
    pieces = zip((row.first + 1).tolist(), (row.first + row.length + row.continues).tolist(), strict=True)
    return sum(int((store.slice(begin, end) < 0).sum()) for begin, end in pieces)


def evaluation_batches(
    name: str,
    store: TokenStore,
    seq_len: int,
    rows: int,
    max_tokens: int,
    part: Part = WHOLE,
    padded: bool = False,
    extras: Extras | None = None,
) -> Iterator[Batch]:
    """The first documents of a held-out store, at most `max_tokens` tokens of them, packed by best fit.

    Each batch has `rows` rows, of which the arrays hold those of `part`. The last batch may have fewer, or, with
    `padded`, rows of padding. At least one document is used, cut if it must be; a pair that must be is left out.
    """
    documents = np.arange(min(len(store), max_tokens))
    lengths = store.lengths(documents)
    used = max(1, int(np.searchsorted(np.cumsum(lengths), max_tokens, side="right")))
    documents, lengths = documents[:used], np.minimum(lengths[:used], max_tokens)
    if store.paired:
        lengths[store.lengths(documents) > min(seq_len, max_tokens)] = 0
    starts = store.starts(documents)
    packed = pack_best_fit(Pieces.whole(lengths), seq_len)
    for start in range(0, len(packed), rows):
        plan = []
        for number in range(start, min(start + rows, len(packed))):
            plan.append((name, store, row_of(store, packed[number], documents, starts, lengths)))
        if padded:
            plan += [(name, store, EMPTY)] * (rows - len(plan))
        yield materialise(plan, seq_len, part, extras=extras)
