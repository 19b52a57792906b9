"""How conversations become documents: what `internevo data chat` lets one choose."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Longer(StrEnum):
    """What becomes of a conversation that is longer than a row."""

    refuse = "refuse"
    cut = "cut"
    in_parts = "split"


class Thinking(StrEnum):
    """What becomes of what the assistant thought before it answered."""

    keep = "keep"
    drop = "drop"


class Turns(StrEnum):
    """Whether the answers of a conversation stand in one document, or each in its own, after what was said before."""

    together = "together"
    apart = "apart"


@dataclass(frozen=True)
class ChatOptions:
    """How conversations become documents."""

    max_tokens: int | None = None
    longer: Longer = Longer.refuse
    thinking: Thinking = Thinking.keep
    turns: Turns = Turns.together
    variables: tuple[tuple[str, str], ...] = ()
    """More that the template knows, by name."""
