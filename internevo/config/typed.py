"""A plain tree against the schema: unknown keys, wrong types, units. Collects every mistake it finds; and from such a
tree to the schema's objects."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from internevo.config.bounds import Between
from internevo.config.choices import Instead, OrYours, is_yours
from internevo.config.names import ELSEWHERE
from internevo.config.read import number
from internevo.config.schema import MISSING

T = TypeVar("T")
_MOST_PLACES = 3
"""Of a key that is suggested."""
_EXPECTED = {
    int: "a whole number (4096, 4M)",
    float: "a number (0.1, 3e-4)",
    bool: "true or false",
    str: "text",
}


def typed_tree(
    schema: type, tree: Any, path: str, problems: list[str], whole: tuple[type, str] | None = None
) -> dict[str, Any]:
    """The tree with its numbers converted. `path` is what to put before a key in a message.

    Keys that are wrong are left out of the result and added to `problems`. `whole` is the schema that this one is a
    part of, and the path of that: an unknown key that another part has is reported with its place.
    """
    whole = whole or (schema, path)
    if not isinstance(tree, dict):
        keys = ", ".join([*list(_hints(schema))[:4], *["..."] * (len(_hints(schema)) > 4)])
        problems.append(f"{path.rstrip('.') or 'the file'}: expected a mapping with {keys}, found {_show(tree)}")
        return {}
    hints = _hints(schema)
    result = {}
    for key, value in tree.items():
        if key not in hints:
            places = _places(*whole, str(key))
            if not places and (ours := f"{whole[1]}{ELSEWHERE.get(key)}") in _paths(*whole):
                places = [ours]
            suggestion = f"; did you mean {' or '.join(places)}?" if places else did_you_mean(str(key), hints)
            problems.append(f"{path}{key}: unknown key{suggestion}")
            continue
        before = len(problems)
        converted = _value(hints[key], value, f"{path}{key}", problems, whole)
        if len(problems) == before or is_dataclass(hints[key]):
            result[key] = converted
    return result


def build(schema: type[T], values: dict[str, Any], default: T | None = None) -> T:
    """The dataclass of values in which `typed_tree` found nothing wrong.

    What they leave out, in it and in dataclasses inside it, is as in `default`, or as the schema says.
    """
    hints, made = _hints(typing.cast(Any, schema)), {}
    for one in fields(typing.cast(Any, schema)):
        if one.name in values:
            inner = one.default_factory() if callable(one.default_factory) else None
            made[one.name] = _built(hints[one.name], values[one.name], inner)
    return schema(**made) if default is None else replace(typing.cast(Any, default), **made)


def lacking(schema: type, values: dict[str, Any], path: str = "") -> Iterator[str]:
    """The paths of the keys that must be given and are not, in it and in the dataclasses inside it."""
    for one in fields(typing.cast(Any, schema)):
        hint = _hints(schema)[one.name]
        if is_dataclass(hint):
            yield from lacking(typing.cast(type, hint), values.get(one.name) or {}, f"{path}{one.name}.")
        elif one.default == MISSING and one.name not in values:
            yield f"{path}{one.name}"


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """Every value of a tree by its path, `data.sources.web.weight`; an item of a list by its name, else its number."""
    if isinstance(tree, dict) and tree:
        items = [(f"{path}.{key}" if path else str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        items = [(f"{path}.{item.get('name') or i}", item) for i, item in enumerate(tree)]
    else:
        return {path: tree}
    return {key: value for inner, item in items for key, value in flatten(item, inner).items()}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` or the list of what is known."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; known are {', '.join(known)}" if known else ""


def _places(schema: type, path: str, key: str) -> list[str]:
    """Where the schema has a key of this name; empty when there are more than `_MOST_PLACES`."""
    found = [place for place in _paths(schema, path) if place.rpartition(".")[2] == key]
    return found if len(found) <= _MOST_PLACES else []


def _paths(schema: type, path: str) -> Iterator[str]:
    """The paths of all keys. An item of a list is reached by its name; stages have the keys of the run itself."""
    for key, hint in _hints(schema).items():
        yield f"{path}{key}"
        hint, name = _without_none(_without_notes(hint)[0]), ""
        if typing.get_origin(hint) is list and key != "stages":
            (hint,), name = typing.get_args(hint), "NAME."
        if is_dataclass(hint) and (not name or "name" in _hints(typing.cast(type, hint))):
            yield from _paths(typing.cast(type, hint), f"{path}{key}.{name}")


@cache
def _hints(schema: type) -> dict[str, Any]:
    """The types of its fields, with what is noted beside them, by name."""
    hints = typing.get_type_hints(schema, include_extras=True)
    return {one.name: hints[one.name] for one in fields(typing.cast(Any, schema))}


def _without_notes(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """`int` and the range for `Annotated[int, Between(1, 8)]`; any other as it is."""
    return (hint.__origin__, hint.__metadata__) if typing.get_origin(hint) is Annotated else (hint, ())


def _without_none(hint: Any) -> Any:
    """`int` for `int | None`; any other as it is."""
    if not isinstance(hint, types.UnionType):
        return hint
    (kind,) = (option for option in hint.__args__ if option is not type(None))
    return kind


def _built(hint: Any, value: Any, default: Any = None) -> Any:
    if value is None:
        return None
    hint = _without_none(_without_notes(hint)[0])
    if is_dataclass(hint):
        return build(typing.cast(type, hint), value, default)
    if isinstance(value, list):  # new lists and mappings: no two stages share one
        (inner,) = typing.get_args(hint) or (Any,)
        return [_built(inner, item) for item in value]
    if isinstance(value, dict):
        _, inner = typing.get_args(hint) or (str, Any)
        return {key: _built(inner, item) for key, item in value.items()}
    return value


def _value(hint: Any, value: Any, path: str, problems: list[str], whole: tuple[type, str]) -> Any:
    hint, notes = _without_notes(hint)
    if typing.get_origin(hint) is Literal:
        return _choice(typing.get_args(hint), notes, value, path, problems)
    before = len(problems)
    converted = _unbounded(hint, value, path, problems, whole)
    bounds = next((note for note in notes if isinstance(note, Between)), None)
    if bounds is not None and len(problems) == before:
        numbers = {path: converted}
        if isinstance(converted, list):
            numbers = {f"{path}[{i}]": one for i, one in enumerate(converted)}
        for place, one in numbers.items():
            if one is not None and (problem := bounds.problem(one)):
                problems.append(f"{place}: {problem}")
    return converted


def _choice(known: tuple[str, ...], notes: tuple[Any, ...], value: Any, path: str, problems: list[str]) -> Any:
    if value in known:
        return value
    yours = any(isinstance(note, OrYours) for note in notes)
    if yours and isinstance(value, str) and is_yours(value):
        return value
    reasons = next((note.reasons for note in notes if isinstance(note, Instead)), {})
    if why := reasons.get(str(value)):
        problems.append(f"{path}: {value} {why}")
    else:
        more = "; code of your own is named PACKAGE.MODULE:NAME" if yours else ""
        problems.append(f"{path}: unknown value {_show(value)}{did_you_mean(str(value), known)}{more}")
    return None


def _unbounded(hint: Any, value: Any, path: str, problems: list[str], whole: tuple[type, str]) -> Any:
    if isinstance(hint, types.UnionType) and value is None:
        return None
    hint = _without_none(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return typed_tree(typing.cast(type, hint), value, f"{path}.", problems, whole)
    if typing.get_origin(hint) is dict:
        if isinstance(value, dict):
            inner = typing.get_args(hint)[1]
            return {str(key): _value(inner, one, f"{path}.{key}", problems, whole) for key, one in value.items()}
        problems.append(f"{path}: expected a mapping, found {_show(value)}")
        return {}
    if typing.get_origin(hint) is list:
        return _list(typing.get_args(hint)[0], value, path, problems, whole)
    try:
        return _scalar(hint, value)
    except ValueError as error:
        reason = f" ({error})" if str(error) else ""
        places = [place for key in value for place in _places(*whole, str(key))] if isinstance(value, dict) else []
        suggestion = f"; did you mean {' or '.join(places)}?" if places else ""
        problems.append(f"{path}: expected {_EXPECTED[hint]}, found {_show(value)}{reason}{suggestion}")
        return None


def _list(hint: Any, value: Any, path: str, problems: list[str], whole: tuple[type, str]) -> list[Any]:
    if not isinstance(value, list):
        problems.append(f"{path}: expected a list, found {_show(value)}")
        return []
    items = [_value(hint, item, f"{path}[{i}]", problems, whole) for i, item in enumerate(value)]
    if is_dataclass(hint):
        needed = [one.name for one in fields(hint) if one.default == MISSING]
        for i, item in enumerate(value):
            if isinstance(item, dict):
                problems += [f"{path}[{i}].{name}: missing" for name in needed if name not in item]
    return items


def _scalar(hint: type, value: Any) -> Any:
    """Raises ValueError when the value is not of the type."""
    if hint in (bool, str):
        if isinstance(value, hint):
            return value
        raise ValueError("put it in quotes" if hint is str and isinstance(value, int | float) else "")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    if isinstance(value, str):
        with_unit = number(value)
        if with_unit is None:
            try:
                with_unit = float(value.replace("_", ""))
            except ValueError:
                raise ValueError from None  # Python's own words add nothing
        value = with_unit
    try:
        finite = math.isfinite(value)
    except OverflowError:
        raise ValueError("it is too large") from None
    if not finite:
        raise ValueError("it must be finite")
    if hint is int and value != int(value):
        raise ValueError("it is not whole")
    return hint(value)


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return f"a mapping with {', '.join(map(str, value)) or 'no keys'}"
    return repr(value)
