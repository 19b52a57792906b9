"""The one exception for a person's mistake."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right. The message says what was wrong, where, and what to do next.

    The command line prints the message without a traceback and exits with code 2.
    """
