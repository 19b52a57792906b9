"""The steps of a stage whose batches grow, against going through them one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from internevo.config.derive import legs, places_before, rows_at, stage_steps, step_from
from internevo.config.schema import BatchLeg, TrainConfig
from internevo.data.mixing import Plan


def one_by_one(train: TrainConfig) -> list[int]:
    """The rows of each step: a step is of the first leg that has not ended before it."""
    rows: list[int] = []
    while True:
        places = sum(rows) * train.seq_len
        if len(rows) == train.steps or (train.tokens is not None and places >= train.tokens):
            return rows
        size = next((leg.batch_tokens for leg in train.batch_ramp if places < leg.until), train.batch_tokens)
        rows.append(size // train.seq_len)


@given(
    st.integers(2, 9),
    st.lists(st.tuples(st.integers(1, 900), st.integers(1, 6)), max_size=3, unique_by=lambda one: one[0]),
    st.integers(1, 8),
    st.integers(1, 1500) | st.none(),
    st.integers(1, 60),
)
def test_a_ramp(seq_len: int, ramp: list[tuple[int, int]], rows: int, tokens: int | None, steps: int) -> None:
    train = TrainConfig(
        seq_len=seq_len,
        batch_tokens=rows * seq_len,
        batch_ramp=[BatchLeg(until, count * seq_len) for until, count in sorted(ramp)],
        tokens=tokens,
        steps=None if tokens else steps,
    )
    expected = one_by_one(train)
    assert stage_steps(train) == len(expected)
    assert [rows_at(train, step) for step in range(len(expected))] == expected
    assert rows_at(train, len(expected) + 3) == expected[-1]
    assert [leg.first for leg in legs(train)] == sorted({leg.first for leg in legs(train)})
    places = [sum(expected[:step]) * seq_len for step in range(len(expected) + 1)]
    assert [places_before(train, step) for step in range(len(expected) + 1)] == places
    for at in {1, places[-1] // 2 + 1, places[-1]}:
        assert step_from(train, at) == next(step for step, before in enumerate(places) if before >= at)


def test_what_is_left_of_a_stage() -> None:
    changes = ((4, {"web": 0.0}), (7, {"web": 1.0}))
    plan = Plan((), 10, "concat", ((0, 2), (3, 5)), changes, 9)
    assert [list(plan.legs(step)) for step in (0, 5, 8, 9)] == [
        [(0, 4), (4, 7), (7, 9)],
        [(5, 7), (7, 9)],
        [(8, 9)],
        [],
    ]
    assert [plan.places(step) for step in (0, 3, 4, 6, 7)] == [60 + 50, 50, 150, 50, 100]
