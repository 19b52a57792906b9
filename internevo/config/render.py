"""A resolved configuration as YAML again, and the difference between two."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import yaml

from internevo.config.load import RUN_ONLY
from internevo.config.schema import RunConfig
from internevo.config.typed import flatten


def render(config: RunConfig) -> str:
    """The whole base tree, then each stage with the keys in which it differs. Loading it gives `config` again."""
    tree = _tree(config)
    stages = tree.pop("stages")
    base = {key: value for key, value in tree.items() if key not in RUN_ONLY}
    tree["stages"] = [{"name": stage.pop("name"), **_difference(base, stage)} for stage in stages]
    return yaml.safe_dump(tree, sort_keys=False, width=100, allow_unicode=True)


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """A line `key: old -> new` for each key in which two configurations differ."""
    before, after = flatten(_tree(old)), flatten(_tree(new))
    keys = dict.fromkeys([*before, *after])
    absent = "(absent)"
    return [
        f"{key}: {before.get(key, absent)} -> {after.get(key, absent)}"
        for key in keys
        if before.get(key, absent) != after.get(key, absent)
    ]


def _tree(config: RunConfig) -> dict[str, Any]:
    tree = asdict(config)
    for one in (tree, *tree["stages"]):
        one["model"]["preset"] = None  # its fields are all here; a preset may change in a later version
    return tree


def _difference(base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in other.items():
        if isinstance(value, dict):
            if inner := _difference(base[key], value):
                changed[key] = inner
        elif value != base[key]:
            changed[key] = value
    return changed
