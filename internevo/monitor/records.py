"""Reading a run's records: only whole ones are returned, however damaged a file is."""

from __future__ import annotations

import types
import typing
from functools import cache
from pathlib import Path
from typing import Any

from internevo.files.json_files import is_number, parsed

MAY_BE_NULL = ("loss", "grad_norm")  # numbers that are null where they were not finite


def split_records(path: Path, schema: type | None) -> tuple[list[tuple[bytes, dict[str, Any]]], list[bytes]]:
    """The lines of a file that are records of the dataclass `schema`, each with its values, and all other lines.

    Without `schema` a record is a mapping with a whole number `step`. The half line that a killed process leaves at the
    end is one of the others. No lines when there is no file.
    """
    good: list[tuple[bytes, dict[str, Any]]] = []
    others: list[bytes] = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        record = _record(line, schema)
        if record is not None:
            good.append((line, record))
        elif line.strip():
            others.append(line)
    return good, others


def _record(line: bytes, schema: type | None) -> dict[str, Any] | None:
    found = parsed(line)
    if not isinstance(found, dict):
        return None
    for key, hint in _hints(schema).items():
        optional = isinstance(hint, types.UnionType)
        if optional and key not in found:
            found[key] = None
        if key not in found:
            return None
        null = found[key] is None and (optional or key in MAY_BE_NULL)
        if not null and not _is(found[key], hint):
            return None
    return found


@cache
def _hints(schema: type | None) -> dict[str, Any]:
    return {"step": int} if schema is None else typing.get_type_hints(schema)


def _is(value: Any, hint: Any) -> bool:
    """Whether a value that JSON gave is of a field's type."""
    if isinstance(hint, types.UnionType):
        return any(_is(value, one) for one in hint.__args__)
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is list:
        return isinstance(value, list) and all(_is(one, inner[0]) for one in value)
    if kind is tuple:
        return isinstance(value, list) and len(value) == len(inner) and all(map(_loss_or, value, inner))
    if kind is dict:
        return isinstance(value, dict) and all(_is(one, inner[1]) for one in value.values())
    if kind in (int, float):
        return is_number(value) and isinstance(value, int | kind)
    return isinstance(value, kind)


def _loss_or(value: Any, hint: Any) -> bool:
    return _is(value, hint) or (hint is float and value is None)
