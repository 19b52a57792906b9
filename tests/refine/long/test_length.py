"""Texts by their length."""

from __future__ import annotations

import pytest

from internevo.files.errors import UserError
from internevo.refine.long.length import Length
from internevo.refine.shards import Document


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a" * 32_767, "short"), ("a" * 32_768, None), ("文" * 10_923, None), ("文" * 10_922, "short")],
)
def test_length_is_that_of_utf_8(text: str, reason: str | None) -> None:
    assert Length().judge(Document(text, "id")) == reason


def test_limits() -> None:
    step = Length(min_bytes=2, max_bytes=4)
    assert [step.judge(Document("a" * n, "id")) for n in range(1, 6)] == ["short", None, None, None, "long"]
    with pytest.raises(UserError, match=r"length\.min_bytes"):
        Length(min_bytes=5, max_bytes=4)
