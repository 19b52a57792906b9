"""Expressions over keys: what they compute, and that they run nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internevo.config.expression import evaluate
from internevo.files.errors import UserError

KEYS = {"a": 6, "model.hidden": 128, "optimizer.lr": 3e-3, "name": "x"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", 6),
        ("256 * optimizer.lr / model.hidden", 256 * 3e-3 / 128),
        ("model.hidden // 16", 8),
        ("-a + 2 ** 3 % 5", -3),
        ("1 < a <= 6 and not a == 5", True),
        ("a > 6 or name == 'x'", True),
        ("round(sqrt(a * 6)) + int(log2(model.hidden))", 13),
    ],
)
def test_values(text: str, value: object) -> None:
    assert evaluate(text, KEYS.__getitem__) == value


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_numbers_as_python_has_them(a: float, b: float) -> None:
    assert evaluate(f"({a!r}) * ({b!r}) - ({a!r})", KEYS.__getitem__) == a * b - a


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__import__('os').getpid()", "has no place in an expression"),
        ("a.b", "there is no key a.b"),
        ("[1, 2]", "has no place in an expression"),
        ("a +", "is not an expression over keys"),
        ("1 / 0", "cannot be computed"),
        ("name * name", "cannot be computed"),
        ("round(a, ndigits=1)", "has no place"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(text, KEYS.__getitem__)
