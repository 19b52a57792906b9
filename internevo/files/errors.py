"""The one exception for a person's mistake, and how its messages name things."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Something the user can put right. The message says what was wrong, where, and what to do next. The command line
    prints it without a traceback and exits with code 2."""


def some(names: Sequence[object], most: int = 5) -> str:
    """The first of many names, and how many more there are, for a message."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
