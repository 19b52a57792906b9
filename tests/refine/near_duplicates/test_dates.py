"""Dates of documents."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internevo.refine.near_duplicates.dates import NO_DATE, microseconds

moments = st.datetimes(
    datetime(1980, 1, 1), datetime(2100, 1, 1), timezones=st.sampled_from([UTC, timezone(timedelta(hours=8))])
)


@given(moments, moments)
def test_dates_in_any_form_are_in_order(one: datetime, other: datetime) -> None:
    forms = [datetime.isoformat, datetime.timestamp, lambda date: date.astimezone(UTC).isoformat()[:-6]]
    first, second = ({microseconds(form(date)) for form in forms} for date in (one, other))
    assert max(first) - min(first) <= 1  # a float of seconds is rounded
    if one + timedelta(microseconds=2) < other:
        assert max(first) < min(second)


@given(moments)
def test_dates_of_http_headers(date: datetime) -> None:
    whole = date.replace(microsecond=0)
    assert microseconds(format_datetime(whole)) == microseconds(whole.isoformat())
    assert microseconds(format_datetime(whole.astimezone(UTC), usegmt=True)) == microseconds(whole.isoformat())


def test_a_year_and_a_month_begin_with_their_first_day() -> None:
    assert microseconds("2024") == microseconds("2024-01") == microseconds("2024-01-01") == microseconds(1704067200)
    assert microseconds("2024-02") == microseconds(" 20240201T000000Z ")


@pytest.mark.parametrize(
    "date", [None, "", "yesterday", "2024-13-01", "20", True, [2024], {}, float("nan"), float("inf"), 10**30, "0000"]
)
def test_what_is_no_date_is_before_all(date: Any) -> None:
    assert microseconds(date) == NO_DATE < microseconds("0001-01-02")
