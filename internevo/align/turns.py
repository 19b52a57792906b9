"""Where a conversation can be divided, and how much of it fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from internevo.align.conversation import Message, Speaker

Messages = tuple[Message, ...]


def in_turns(messages: Sequence[Message]) -> tuple[Messages, list[Messages]]:
    """The system messages in front, and the rest in turns: each ends before the assistant is spoken to again.

    Nothing is lost or moved: the first turn begins right after the system messages, whoever speaks.
    """
    first = next(number for number, one in enumerate(messages) if one.speaker is not Speaker.system)
    begins = [first]
    for number in range(first + 1, len(messages)):
        spoken_to = messages[number].speaker in (Speaker.user, Speaker.system)
        if spoken_to and messages[number - 1].speaker is Speaker.assistant:
            begins.append(number)
    ends = [*begins[1:], len(messages)]
    return tuple(messages[:first]), [tuple(messages[begin:end]) for begin, end in zip(begins, ends, strict=True)]


def most_that_fit(fits: Callable[[int, int], bool], first: int, end: int) -> int:
    """The largest `last` up to `end` for which `fits(first, last)`, or `first`. It is asked about at most twice as much
    as fits: 1, 2, 4, ... and then what lies between."""
    low, high = first, first + 1
    while high <= end and fits(first, high):
        low, high = high, first + 2 * (high - first)
    high = min(high, end + 1)
    while high - low > 1:  # the first `low` fit, the first `high` do not
        middle = (low + high) // 2
        low, high = (middle, high) if fits(first, middle) else (low, middle)
    return low
