"""Mappings whose keys are the user's own and whose values have a type."""

from __future__ import annotations

from dataclasses import dataclass, field

from internevo.config.typed import typed_tree


@dataclass
class Inner:
    """A value."""

    size: int = 1


@dataclass
class Outer:
    """A tree."""

    weights: dict[str, float] = field(default_factory=dict)
    named: dict[str, Inner] = field(default_factory=dict)


def test_values_are_converted() -> None:
    problems: list[str] = []
    found = typed_tree(Outer, {"weights": {"a": 2, "b": "1e3"}, "named": {"x": {"size": "4K"}}}, "", problems)
    assert found == {"weights": {"a": 2.0, "b": 1000.0}, "named": {"x": {"size": 4000}}}
    assert problems == []


def test_each_mistake_is_told_with_its_place() -> None:
    problems: list[str] = []
    typed_tree(Outer, {"weights": {"a": "much"}, "named": {"x": {"sise": 4}, "y": 3}}, "step.", problems)
    assert [problem.split(":")[0] for problem in problems] == ["step.weights.a", "step.named.x.sise", "step.named.y"]
