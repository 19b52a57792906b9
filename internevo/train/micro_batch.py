"""Micro-batches: the rows of a batch that run at one time, on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from internevo.data.batch import Batch
from internevo.model.attention import Documents
from internevo.parallel.context import ContextCut


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a batch, on the device. Integers `[rows, seq]`."""

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    documents: Documents


def micro_batches(batch: Batch, rows: int, device: torch.device, cut: ContextCut | None = None) -> Iterator[MicroBatch]:
    """Cut the rows that a batch holds into micro-batches of at most `rows` rows and bring each to the device.

    With `cut`, the tokens of each row that this rank has.
    """

    def bring(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    for start in range(0, len(batch.tokens), rows):
        part = slice(start, start + rows)
        arrays = [batch.tokens[part], batch.labels[part], batch.positions[part]]
        lengths = batch.local_lengths[part]
        if cut is None:
            documents = Documents.of(list(chain.from_iterable(lengths)), device)
        else:
            index, documents = cut(lengths)
            arrays = [np.take_along_axis(array, index, axis=1) for array in arrays]
        tokens, labels, positions = map(bring, arrays)
        yield MicroBatch(tokens, labels, positions, documents)
