"""Dates as documents have them."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

NO_DATE = -(2**63)  # before all dates


def microseconds(date: Any) -> int:
    """Seconds since 1970, ISO 8601 from a year alone to a time with its zone, or a HTTP header's date, as microseconds
    since 1970; NO_DATE for anything else. Without a zone it is UTC."""
    try:
        if isinstance(date, str):
            moment = _parsed(date.strip())
            date = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        is_number = isinstance(date, int | float) and not isinstance(date, bool)
        return int(date * 1_000_000) if is_number and abs(date) < 2**40 else NO_DATE
    except (ValueError, OverflowError):
        return NO_DATE


def _parsed(date: str) -> datetime:
    if date[:1].isalpha():  # a day of the week
        return parsedate_to_datetime(date)
    if len(date) in (len("2026"), len("2026-11")):
        date += "0000-01-01"[len(date) :]
    return datetime.fromisoformat(date)
