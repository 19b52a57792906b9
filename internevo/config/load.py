"""From a YAML file and `key=value` overrides to a checked `RunConfig`.

The file is laid on its bases and the overrides on the file. Each stage is the resulting tree with the stage's own
keys laid on top; last, presets fill in what nobody set. Every mistake is reported with the path of its key.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from internevo.config.check import check
from internevo.config.kind import RUN, check_kind
from internevo.config.presets import PRESETS
from internevo.config.read import ConfigError, merge, parse_override, read_tree
from internevo.config.schema import ModelConfig, RunConfig, StageConfig
from internevo.config.typed import build, did_you_mean, lacking, typed_tree

RUN_ONLY = ("name", "runs", "stages")
"""Keys that a stage does not inherit."""
SOURCES = ["data", "sources"]
"""The path of the list whose items an override can name."""


def load_config(
    path: str | Path, overrides: Sequence[str] = (), check_data: bool = True, check_values: bool = True
) -> RunConfig:
    """Read, merge and check a configuration.

    `stages` of the result are complete trees, and there is at least one. Relative paths inside the configuration
    are relative to the working directory. `check_data=False` leaves out whether the token stores and the tokenizer
    that it names exist, `check_values=False` all but names, types, ranges and presets. Raises
    ConfigError with everything that is wrong.
    """
    tree = read_tree(Path(path))
    check_kind(Path(path), tree, RUN)
    for override in overrides:
        _override(tree, override)
    problems: list[str] = []
    config = _resolve(tree, problems)
    if not problems and check_values:
        problems += check(config, check_data)
    if problems:
        raise ConfigError(f"{path}:\n  " + "\n  ".join(problems))
    return config


def _override(tree: dict[str, Any], text: str) -> None:
    """Lay `key=value` on the tree. A stage, and a source, is named: `stages.long.data.sources.web.weight=0.3`."""
    keys, value = parse_override(text)
    target, stages = tree, tree.get("stages")
    if keys[0] == "stages" and len(keys) > 2 and isinstance(stages, list):
        number, keys = _named(stages, keys[1:], f"override {text!r}: there is no stage")
        target = stages[number]
    elif keys[0] not in RUN_ONLY and isinstance(stages, list) and stages:
        within = keys[:2] if keys[:2] == SOURCES else keys
        if all(_has(stage, within) for stage in stages):
            example = f"stages.{stages[0].get('name', '...')}.{text}"
            raise ConfigError(f"override {text!r} changes nothing: every stage sets it. Name the stage: {example}")
    if keys[:2] == SOURCES and len(keys) > 3:
        # a stage that names no sources has those of the run
        found = _get(target, SOURCES) or _get(tree, SOURCES)
        sources = deepcopy(found) if isinstance(found, list) else []
        number, keys = _named(sources, keys[2:], f"override {text!r}: there is no source")
        sources[number] = merge(sources[number], _layer(keys, value))
        keys, value = SOURCES, sources
    target.update(merge(target, _layer(keys, value)))


def _named(items: list[Any], keys: list[str], missing: str) -> tuple[int, list[str]]:
    """The number of the item that the first of the keys name, and the other keys. A name may have dots.

    Raises ConfigError, which begins with `missing`, when no item has the name.
    """
    names = [_called(one, number) for number, one in enumerate(items)]
    for length in range(1, len(keys)):
        if (name := ".".join(keys[:length])) in names:
            return names.index(name), keys[length:]
    raise ConfigError(f"{missing} {keys[0]!r}{did_you_mean(keys[0], names)}")


def _called(item: Any, number: int) -> str:
    """An item's name, else the last part of its path, else its number."""
    found = item if isinstance(item, dict) else {}
    return str(found.get("name") or Path(str(found.get("path") or number)).name)


def _layer(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def _get(tree: Any, keys: list[str]) -> Any:
    for key in keys:
        if not isinstance(tree, dict):
            return None
        tree = tree.get(key)
    return tree


def _has(tree: Any, keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True


def _resolve(tree: dict[str, Any], problems: list[str]) -> RunConfig:
    """The configuration, whole only if `problems` stays empty."""
    stages = tree.pop("stages", None) or []
    if not isinstance(stages, list):
        problems.append("stages: expected a list of stages, each a mapping with a name")
        stages = []
    base = typed_tree(RunConfig, tree, "", problems)
    overlays = [typed_tree(StageConfig, stage, f"{_label(i, stage)}.", problems) for i, stage in enumerate(stages)]
    problems += [f"stages[{i}].name: every stage needs a name" for i, one in enumerate(overlays) if "name" not in one]
    if "name" not in tree:
        problems.append("name: every run needs a name; its folder is called so")
    inherited = {key: value for key, value in base.items() if key not in RUN_ONLY}
    resolved = [merge(inherited, overlay) for overlay in overlays] or [inherited]
    _complete_model(base, "", problems)
    for i, stage in enumerate(resolved):
        if not problems:  # what is wrong with the base model would be said again for each stage
            _complete_model(stage, f"{_label(i, stage)}.", problems)
    if problems:
        return RunConfig()
    base["stages"] = resolved
    return build(RunConfig, base)


def _label(number: int, stage: Any) -> str:
    name = stage.get("name") if isinstance(stage, dict) else None
    return f"stages[{number}]" if name is None else f"stages.{name}"


def _complete_model(tree: dict[str, Any], path: str, problems: list[str]) -> None:
    """Fill the model's fields from its preset, and `head_dim` from the others."""
    model = dict(tree.get("model", {}))
    preset = model.get("preset")
    if preset is not None and preset not in PRESETS:
        problems.append(f"{path}model.preset: unknown preset {preset!r}; known are {', '.join(PRESETS)}")
        return
    model = merge({"attention": {}, **deepcopy(PRESETS.get(preset or "", {}))}, model)
    missing = list(lacking(ModelConfig, model))
    if set(missing) - {"attention.head_dim"}:
        named = ", ".join(f"{path}model.{key}" for key in missing if key != "attention.head_dim")
        problems.append(f"{named}: missing; set them, or choose a model.preset")
    elif missing and model["hidden"] % model["attention"]["heads"]:
        problems.append(
            f"{path}model.attention.heads: hidden {model['hidden']} is not divisible by "
            f"{model['attention']['heads']} heads; change one of them or set model.attention.head_dim"
        )
    elif missing:
        model["attention"] = {**model["attention"], "head_dim": model["hidden"] // model["attention"]["heads"]}
    tree["model"] = model
