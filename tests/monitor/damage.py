"""Damage to the files that a run reads back, as a disk, another program or a person may do it."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import yaml

ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    3.5,
    2**70,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "10000",
    "[/red]",
    "\x1b[31mred\x1b[0m",
    "../x",
    "数据",
    [],
    {},
    [1],
    [[]],
    {"a": 1},
    {"step": 1},
]


def damage(file: Path, chance: random.Random) -> str:
    """Damage a file in one way of many, and return what was done to it."""
    ways = [_flipped, _cut, _emptied, _noise, _lines, _gone, _folder]
    if file.suffix in (".json", ".jsonl", ".yaml"):
        ways += [_typed] * 10
    way = chance.choice(ways)
    return f"{file.name} {way.__name__.strip('_')}: {way(file, chance)}"


def reseal(checkpoint: Path) -> None:
    """Make the manifest fit files that were changed: damage that no checksum shows."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name, facts in manifest["files"].items():
        if (file := checkpoint / name).is_file():
            data = file.read_bytes()
            facts |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def _flipped(file: Path, chance: random.Random) -> object:
    data = bytearray(file.read_bytes())
    places = [chance.randrange(len(data)) for _ in range(chance.choice((1, 1, 5)))] if data else []
    for place in places:
        data[place] = chance.randrange(256)
    file.write_bytes(data)
    return places


def _cut(file: Path, chance: random.Random) -> object:
    data = file.read_bytes()
    size = chance.randrange(len(data) + 1)
    file.write_bytes(data[:size])
    return size


def _emptied(file: Path, chance: random.Random) -> object:
    text = chance.choice((b"", b"\n", b"null", b"[]", b"{}", b"3", b'"x"', b"\xff\xfe", b"[" * 5000))
    file.write_bytes(text)
    return text[:20]


def _noise(file: Path, chance: random.Random) -> object:
    data = file.read_bytes()
    place, noise = chance.randrange(len(data) + 1), chance.randbytes(chance.choice((1, 20, 200)))
    file.write_bytes(data[:place] + noise + data[place:])
    return place, noise[:20]


def _lines(file: Path, chance: random.Random) -> object:
    lines = file.read_bytes().splitlines(keepends=True)
    chance.shuffle(lines)
    lines = lines[chance.randrange(3) :] * chance.choice((1, 2))
    file.write_bytes(b"".join(lines))
    return len(lines)


def _gone(file: Path, chance: random.Random) -> object:
    file.unlink()
    return ""


def _folder(file: Path, chance: random.Random) -> object:
    file.unlink()
    if chance.random() < 0.5:
        file.symlink_to(file)
        return "a link to itself"
    file.mkdir()
    return "a folder"


def _typed(file: Path, chance: random.Random) -> object:
    """Another value at some place of what the file says."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        lines = text.splitlines()
        if not lines:
            return ""
        number = chance.randrange(len(lines))
        lines[number], done = _changed(lines[number], chance, json.loads, json.dumps)
        file.write_text("\n".join([*lines, ""]), encoding="utf-8")
        return done
    read, write = (yaml.safe_load, yaml.safe_dump) if file.suffix == ".yaml" else (json.loads, json.dumps)
    changed, done = _changed(text, chance, read, write)
    file.write_text(changed, encoding="utf-8")
    return done


def _changed(text: str, chance: random.Random, read: Any, write: Any) -> tuple[str, object]:
    tree = read(text)
    places = list(_places(tree))
    if not places:
        return text, ""
    holder, key = chance.choice(places)
    if chance.random() < 0.2:
        del holder[key]
        done: object = (key, "left out")
    else:
        holder[key] = chance.choice(ODD)
        done = (key, str(holder[key])[:30])
    return write(tree), done


def _places(tree: Any) -> Any:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from _places(value)


def restore(whole: Path, copy: Path) -> None:
    """The folder as it was before the damage."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
