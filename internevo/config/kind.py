"""Which verb a YAML file is for, by its keys. A file given to another verb is refused with the name of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from internevo.config.read import ConfigError

RUN, SWEEP, REFINERY = "a run", "a sweep", "a refinery"
_VERBS = {RUN: "internevo train", SWEEP: "internevo sweep", REFINERY: "internevo data refine"}


def check_kind(path: Path, tree: dict[str, Any], wanted: str) -> None:
    """Raise ConfigError when the file describes something else than is `wanted`, one of the kinds above."""
    found = _kind(tree)
    if found is None or found == wanted:
        return
    if found not in _VERBS:
        raise ConfigError(f"{path} is {found}, and describes no run")
    raise ConfigError(f"{path} describes {found}, not {wanted}: `{_VERBS[found]} {path}`")


def _kind(tree: dict[str, Any]) -> str | None:
    if "model_type" in tree or "architectures" in tree:
        return "the config.json of a Hugging Face model, which `internevo import FOLDER OUTPUT` reads"
    if isinstance(tree.get("config"), str) and tree.keys() & {"grid", "list", "random"}:
        return SWEEP
    if isinstance(tree.get("steps"), list) and tree.keys() & {"input", "output", "executor"}:
        return REFINERY
    return RUN if tree.keys() & {"model", "train", "data", "stages", "optimizer"} else None
