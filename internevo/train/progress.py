"""Where a run is: what a checkpoint must remember beside tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from internevo.data.loader import Cursor


@dataclass
class Progress:
    """Counts of finished work. A checkpoint's `state.json` holds it as JSON."""

    cursor: Cursor
    """Where the data stands after the last trained batch."""
    step: int = 0
    """Optimizer steps done in the run."""
    stage: int = 0
    """Number of the current stage."""
    stage_step: int = 0
    """Steps done in the current stage."""
    tokens: int = 0
    """Real tokens trained on in the run, padding left out."""
    skipped_in_a_row: int = 0
    """Steps without a finite loss or gradient directly before this point."""

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return {**asdict(self), "cursor": self.cursor.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Progress:
        """The inverse of `to_json`."""
        return cls(**{**value, "cursor": Cursor.from_json(value["cursor"])})
