"""Some items at a time, as much as one wants in memory together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def in_batches(items: Iterable[T], size: Callable[[T], int], enough: int) -> Iterator[list[T]]:
    """Lists of items in order. One ends with the item by which their sizes add up to `enough`, or with the last."""
    batch: list[T] = []
    held = 0
    for item in items:
        batch.append(item)
        held += size(item)
        if held >= enough:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
