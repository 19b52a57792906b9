"""A YAML file as plain dicts, with its bases merged under it, and the overrides of a command line.

omegaconf is loaded when YAML is read, not before: what is built from the schema's dataclasses works without it.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from internevo.files.errors import UserError

UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_WITH_UNIT = re.compile(r"([+-]?[\d_]*\.?\d+(?:[eE][+-]?\d+)?)\s*([A-Za-z]+)")


class ConfigError(UserError):
    """A configuration that cannot be used; the message names file and key."""


class _Loader(yaml.SafeLoader):
    """YAML with numbers as people write them: `010` is ten, `1e-3` a number, `1:30` and `2026-01-31` are text.

    YAML 1.1, which PyYAML reads, makes these 8, text, 90 and a date. A key that a mapping has twice is a mistake.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag.rpartition(":")[2] not in ("int", "float", "timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises ConstructorError for a key that is there twice."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | str:
    if len(node.value) > 300:  # more than a float can be; Python itself refuses some thousand digits
        return str(node.value)
    return int(node.value.replace("_", ""), 0 if node.value[:2].lower() == "0x" else 10)


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.add_implicit_resolver(_INT, re.compile(r"([-+]?[0-9][0-9_]*|0[xX][0-9a-fA-F]+)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"([-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
_Loader.add_constructor(_INT, _whole)


def read_tree(path: Path, including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's tree with its `_base_` files merged under it.

    `_base_` is a path or a list of paths, relative to the file that names it; later ones win. Raises ConfigError
    for a file that cannot be read and for bases that go in a circle.
    """
    if (resolved := path.resolve()) in including:
        raise ConfigError(f"_base_ goes in a circle: {' -> '.join(str(file) for file in (*including, resolved))}")
    tree = _parse(path)
    bases = tree.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: _base_ must be a path or a list of paths, found {bases!r}")
    merged: dict[str, Any] = {}
    for base in bases:
        file = path.parent / base
        if not file.exists():
            raise ConfigError(f"{path}: its _base_ {file} does not exist")
        merged = merge(merged, read_tree(file, (*including, resolved)))
    return merge(merged, tree)


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`: mappings merge key by key, everything else is replaced.

    A stage's length is given in tokens or in steps, so `train.tokens` displaces `train.steps` from below and the
    other way round.
    """
    merged = dict(under)
    for given, displaced in (("tokens", "steps"), ("steps", "tokens")):
        if given in over and displaced not in over:
            merged.pop(displaced, None)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_override(text: str) -> tuple[list[str], Any]:
    """`a.b=value` as its path and its value, which is read as YAML. Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise ConfigError(f"override {text!r}: expected key=value, for example train.seq_len=8192")
    reader = _omegaconf()
    try:
        tree = yaml.load(f"value: {value}", _Loader)
        parsed: Any = reader.OmegaConf.to_container(reader.OmegaConf.create(tree), resolve=True)
        return key.strip().split("."), parsed["value"]
    except (yaml.YAMLError, reader.errors.OmegaConfBaseException):
        raise ConfigError(f"override {text!r}: the value is not valid YAML") from None


def number(text: str) -> float | int | None:
    """`4M` as 4000000; None when the text is no number with a unit. Raises ValueError for an unknown unit."""
    match = _WITH_UNIT.fullmatch(text.strip())
    if not match:
        return None
    if (unit := UNITS.get(match[2].upper())) is None:
        raise ValueError(f"unknown unit {match[2]!r}; known are K, M, B and T, a thousand to a trillion")
    exact = Decimal(match[1].replace("_", "")) * unit
    return int(exact) if exact == exact.to_integral_value() else float(exact)


def _omegaconf() -> ModuleType:
    """The package that reads YAML and fills in its interpolations. Raises ConfigError where it is not installed."""
    try:
        import omegaconf
        import omegaconf.errors
    except ImportError as error:
        raise ConfigError(
            f"YAML files and key=value overrides are read by omegaconf, which cannot be imported ({error}). Install it "
            "with `pip install omegaconf`, or without network see `make gpu-wheels`."
        ) from None
    return omegaconf


def _parse(path: Path) -> dict[str, Any]:
    if path.suffix == ".py":
        raise ConfigError(
            f"{path} is Python, as InternEvo's own configurations are; here they are YAML, with docs/config.md's keys"
        )
    reader = _omegaconf()
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        tree = {} if tree is None else tree
        if isinstance(tree, dict):
            tree = reader.OmegaConf.to_container(reader.OmegaConf.create(tree), resolve=True)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except IsADirectoryError:
        own = f"; its own is {path / 'config.yaml'}" if (path / "config.yaml").is_file() else ""
        raise ConfigError(f"{path} is a folder; give a YAML file{own}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except reader.errors.OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds a {type(tree).__name__}; a configuration is a mapping of keys to values")
    if not tree:
        raise ConfigError(f"{path} is empty; a configuration is a mapping of keys to values")
    return {str(key): value for key, value in tree.items()}
