"""Every number of every file that a person writes has a range, and what is outside is refused by its path."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

from internevo.config.bounds import Between
from internevo.config.load import load_config
from internevo.config.read import ConfigError, parse_override
from internevo.config.schema import RunConfig
from internevo.config.typed import typed_tree
from internevo.launch.sweep import SweepConfig
from internevo.refine.config import RefineConfig
from internevo.refine.steps import STEPS


def numbers(schema: type, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Between | None]]:
    """The path of every number below a schema, and its range; an item of a list has the path 0."""
    hints = typing.get_type_hints(schema, include_extras=True)
    for one in fields(typing.cast(Any, schema)):
        if not (schema is RunConfig and one.name == "stages"):  # a stage is the same tree
            yield from _numbers(hints[one.name], (*path, one.name), None)


def _numbers(hint: Any, path: tuple[Any, ...], bounds: Between | None) -> Iterator[tuple[tuple[Any, ...], Any]]:
    origin = typing.get_origin(hint)
    if origin is Annotated:
        yield from _numbers(hint.__origin__, path, hint.__metadata__[0])
    elif isinstance(hint, types.UnionType):
        for option in hint.__args__:
            yield from _numbers(option, path, bounds)
    elif is_dataclass(hint):
        yield from numbers(typing.cast(type, hint), path)
    elif origin in (list, dict):
        place = 0 if origin is list else "name"
        yield from _numbers(typing.get_args(hint)[-1], (*path, place), bounds)
    elif hint in (int, float):
        yield path, bounds


def shown(path: tuple[Any, ...]) -> str:
    return "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in path).lstrip(".")


FOUND = [
    (schema, *one) for schema in (RunConfig, SweepConfig, RefineConfig, *STEPS.values()) for one in numbers(schema)
]


def test_the_walk_finds_them() -> None:
    found = {shown(path) for _, path, _ in FOUND}
    assert {
        "train.steps",
        "optimizer.betas[0]",
        "data.changes[0].weights.name",
        "train.batch_ramp[0].until",
        "zh.max_top_ngram[0]",
    } <= found
    assert len(found) > 120


@pytest.mark.parametrize(("schema", "path", "bounds"), FOUND, ids=lambda one: shown(one) if type(one) is tuple else "")
def test_what_is_outside_is_refused_by_its_path(schema: type, path: tuple[Any, ...], bounds: Between | None) -> None:
    assert bounds is not None, "has no range"
    outside: list[Any] = [bounds.least - 1, bounds.most * 2 + 1, 10**19, -(10**19), "10000000T"]
    outside += [bounds.least] if bounds.open_below else []
    outside += [bounds.most] if bounds.open_above else []
    for value in outside:
        tree: Any = value
        for key in reversed(path):
            tree = [tree] if isinstance(key, int) else {key: tree}
        problems: list[str] = []
        typed_tree(schema, tree, "", problems)
        assert any(problem.startswith(f"{shown(path)}: must be ") for problem in problems), (value, problems)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lr=1e30", "optimizer.lr: must be at most 1,000, found 1e+30"),
        ("optimizer.eps=0", "optimizer.eps: must be above 0, found 0"),
        ("checkpoint.every=9223372036854775808", "checkpoint.every: must be at most 1,000,000,000, found 9.22337e+18"),
        ("model.hidden=10000000000000000000", "model.hidden: must be at most 1,048,576, found 1e+19"),
        ("data.sources=[{path: web, weight: 1e300}]", "data.sources[0].weight: must be at most 1e+15, found 1e+300"),
        ("data.changes=[{at: 1, weights: {web: 1e300}}]", "data.changes[0].weights.web: must be at most 1e+15, found"),
        (f"train.steps={'9' * 5000}", "train.steps: expected a whole number (4096, 4M), found '999"),
        ("train.steps=1:30", "train.steps: expected a whole number (4096, 4M), found '1:30'"),
        ("train.steps=2026-01-31", "train.steps: expected a whole number (4096, 4M), found '2026-01-31'"),
    ],
)
def test_what_it_says(tmp_path: Path, override: str, said: str) -> None:
    (tmp_path / "run.yaml").write_text(
        "name: run\nmodel: {preset: tiny}\ntrain: {seq_len: 64, batch_tokens: 512, steps: 5}\n"
        "data: {sources: [{path: web}]}\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.yaml", [override], check_data=False)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("007", 7),
        ("-08", -8),
        ("1:30", "1:30"),
        ("2026-01-31", "2026-01-31"),
        ("0x1F", 31),
        ("1_000", 1000),
        ("1e-3", 0.001),
        ("3.", 3.0),
        (".5", 0.5),
        ("true", True),
        ("", None),
    ],
)
def test_yaml_reads_numbers_as_people_write_them(text: str, value: Any) -> None:
    read = parse_override(f"key={text}")[1]
    assert read == value
    assert type(read) is type(value)
