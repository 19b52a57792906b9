"""Texts that are long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from internevo.config.bounds import Between, Count
from internevo.files.errors import UserError
from internevo.refine.shards import Document
from internevo.refine.step import Sift


@dataclass
class Length(Sift):
    """Keeps texts by their length in UTF-8."""

    min_bytes: Count = 32 * 1024
    """Shorter texts are dropped."""
    max_bytes: Annotated[int | None, Between(0, 10**12)] = None
    """Longer ones are dropped; there is no limit when absent."""

    def __post_init__(self) -> None:
        if self.max_bytes is not None and self.max_bytes < self.min_bytes:
            found = f"found {self.min_bytes} and {self.max_bytes}"
            raise UserError(f"length.min_bytes: expected min_bytes <= max_bytes, {found}")

    def judge(self, document: Document) -> str | None:
        size = len(document.text.encode(errors="replace"))
        if size < self.min_bytes:
            return "short"
        return "long" if self.max_bytes is not None and size > self.max_bytes else None
