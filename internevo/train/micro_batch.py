"""Micro-batches: the rows of a batch that run at one time, on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from internevo.data.batch import Batch
from internevo.model.attention import prepare_documents
from internevo.model.documents import Documents, to_device
from internevo.parallel.context import ContextCut


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a batch, on the device, `[rows, seq]`; integers but for the weights."""

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    documents: Documents
    weights: Tensor | None = None
    """fp32: how much each label counts; None: all alike."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """int64 or fp32: what the objective has to know of each place, by name."""
    sources: tuple[str, ...] = ()
    """The source of each row."""
    filler: bool = False
    """Whether it only fills up a step, as where a pipeline wants more: it has no label, and does not count."""


class Staged:
    """A batch and its micro-batches on the device, or on their way there.

    On a GPU they are copied from pinned memory on a stream of their own, beside the step that is running; whoever
    iterates lets the current stream, not the host, wait for them.
    """

    def __init__(self, batch: Batch, micros: list[MicroBatch], arrived: torch.cuda.Event | None):
        self.batch, self._micros, self._arrived = batch, micros, arrived

    @classmethod
    def of(
        cls, batch: Batch, rows: int, device: torch.device, cut: ContextCut | None = None, kernel: str = "sdpa"
    ) -> Staged:
        """Cut the rows that a batch holds into micro-batches of at most `rows` rows and bring each to the device.

        With `cut`, the tokens of each row that this rank has. The documents are prepared for the attention `kernel`.
        """
        if device.type != "cuda":
            return cls(batch, list(_micro_batches(batch, rows, device, cut, kernel)), None)
        # the device too: a thread begins on GPU 0, and going back to GPU 0's stream would make a context there
        with torch.cuda.device(device), torch.cuda.stream(_copying(device)):
            micros = list(_micro_batches(batch, rows, device, cut, kernel))
            arrived = torch.cuda.Event()
            arrived.record()
        return cls(batch, micros, arrived)

    def __len__(self) -> int:
        return len(self._micros)

    def __iter__(self) -> Iterator[MicroBatch]:
        if self._arrived is not None:
            now = torch.cuda.current_stream()
            now.wait_event(self._arrived)
            for micro in self._micros:
                documents = micro.documents
                tensors = [micro.tokens, micro.labels, micro.positions, documents.offsets, *documents.mask_tensors]
                tensors += [*micro.extras.values(), *([] if micro.weights is None else [micro.weights])]
                for tensor in tensors:
                    tensor.record_stream(now)  # made on one stream and used on another
        return iter(self._micros)


@cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    """The stream on which a device is given its data."""
    return torch.cuda.Stream(device)


def _micro_batches(
    batch: Batch, rows: int, device: torch.device, cut: ContextCut | None, kernel: str
) -> Iterator[MicroBatch]:
    for start in range(0, len(batch.tokens), rows):
        part = slice(start, start + rows)
        arrays = [batch.tokens[part], batch.labels[part], batch.positions[part]]
        if batch.weights is not None:
            arrays.append(batch.weights[part])
        arrays += [batch.extras[name][part] for name in batch.extras]
        lengths = batch.local_lengths[part]
        if cut is None:
            documents = Documents.of(list(chain.from_iterable(lengths)), device)
        else:
            index, documents = cut(lengths)
            arrays = [np.take_along_axis(array, index, axis=1) for array in arrays]
        tokens, labels, positions, *more = (to_device(torch.from_numpy(array), device) for array in arrays)
        weights = more.pop(0) if batch.weights is not None else None
        extras = dict(zip(batch.extras, more, strict=True))
        sources = batch.sources[batch.rows][part]
        yield MicroBatch(tokens, labels, positions, prepare_documents(documents, kernel), weights, extras, sources)
