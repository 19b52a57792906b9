"""Mappings whose keys are the user's own and whose values have a type."""

from __future__ import annotations

from dataclasses import dataclass, field

from internevo.config.typed import build, typed_tree


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


@dataclass
class Whole:
    """A tree with all kinds of branches."""

    outer: Outer = field(default_factory=lambda: Outer(weights={"as": 1.0}))
    maybe: Inner | None = None
    several: list[Inner] = field(default_factory=list)


def test_what_is_left_out_keeps_its_default() -> None:
    values = {"outer": {"named": {"x": {"size": 4}, "y": {}}}, "several": [{"size": 2}, {}]}
    expected = Whole(Outer({"as": 1.0}, {"x": Inner(4), "y": Inner()}), None, [Inner(2), Inner()])
    assert build(Whole, values) == expected
    assert build(Whole, {"maybe": {"size": 3}}) == Whole(maybe=Inner(3))
    assert build(Whole, {"maybe": None}) == Whole()


def test_two_objects_share_nothing() -> None:
    values = {"several": [{}], "outer": {"weights": {"a": 1.0}}}
    first, second = build(Whole, values), build(Whole, values)
    first.several.append(Inner())
    first.outer.weights["b"] = 2.0
    assert second == build(Whole, values) != first


def test_each_mistake_is_told_with_its_place() -> None:
    problems: list[str] = []
    typed_tree(Outer, {"weights": {"a": "much"}, "named": {"x": {"sise": 4}, "y": 3}}, "step.", problems)
    assert [problem.split(":")[0] for problem in problems] == ["step.weights.a", "step.named.x.sise", "step.named.y"]
