"""Many runs of one configuration: which they are. `docs/sweeps.md` describes the file."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from internevo.config.bounds import Between, Seed, Size
from internevo.config.expression import evaluate
from internevo.config.kind import SWEEP, check_kind
from internevo.config.load import load_config
from internevo.config.names import name_problem
from internevo.config.read import ConfigError, number, read_tree
from internevo.config.schema import RunConfig
from internevo.config.typed import build, did_you_mean, typed_tree
from internevo.files.errors import UserError


@dataclass
class RandomConfig:
    """`random`: runs drawn from ranges."""

    count: Annotated[int, Between(1, 10**6)] = 10
    seed: Seed = 0
    keys: dict[str, Any] = field(default_factory=dict)
    """Each key's range: `{log_uniform: [1e-4, 1e-2]}`, `{uniform: [0, 1]}`, `{integer: [1, 8]}` or `[a, b, c]`."""


@dataclass
class SweepConfig:
    name: str = ""
    config: str = ""
    runs: str = "runs"
    at_once: Size = 1
    processes: Size = 1  # of each run
    set: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)
    list: Any = None
    random: RandomConfig | None = None
    where: Any = None
    derive: dict[str, Any] = field(default_factory=dict)
    rank_by: str = "heldout"


@dataclass(frozen=True)
class PlannedRun:
    name: str
    varied: dict[str, Any]  # the keys in which the runs differ, with this run's values
    overrides: tuple[str, ...]  # the arguments of `internevo train CONFIG` for it


@dataclass(frozen=True)
class Sweep:
    name: str
    folder: Path
    config: Path
    at_once: int
    processes: int
    rank_by: str
    runs: tuple[PlannedRun, ...]  # in order
    left_out: int  # how many combinations `where` excludes

    def load(self, run: PlannedRun) -> RunConfig:
        """The run's configuration. Raises ConfigError when it is wrong."""
        return load_config(self.config, run.overrides)


def read_sweep(path: Path, check_data: bool = True) -> Sweep:
    """The runs of a sweep's file, all checked; their data if `check_data`. Raises UserError, which names a bad run."""
    tree = read_tree(path)
    check_kind(path, tree, SWEEP)
    problems: list[str] = []
    values = typed_tree(SweepConfig, tree, "", problems)
    if problems:
        raise ConfigError(f"{path}:\n  " + "\n  ".join(problems))
    file = build(SweepConfig, values)
    if not file.config:
        raise ConfigError(f"{path}: config: missing; name the run's configuration, relative to this file")
    name = file.name or path.stem
    if wrong := name_problem(name):
        raise UserError(f"{path}: name: {name!r} {wrong}")
    folder = Path(file.runs) / name
    config = path.parent / file.config
    planned: list[PlannedRun] = []
    left_out = 0
    for varied in _combinations(path, file):
        called = varied.pop("name", None)
        try:
            run = _resolve(file, config=config, folder=folder, called=called, varied=varied, check_data=check_data)
        except UserError as error:
            raise UserError(f"{path}: the run {_label(varied)}: {error}") from None
        if run is None:
            left_out += 1
        else:
            planned.append(run)
    if not planned:
        raise UserError(f"{path} has no runs: give `grid`, `list` or `random`, and a `where` that leaves some")
    if twice := {run.name for run in planned if sum(one.name == run.name for one in planned) > 1}:
        raise UserError(f"{path}: two runs are called {', '.join(sorted(twice))}; give them names of their own")
    return Sweep(name, folder, config, file.at_once, file.processes, file.rank_by, tuple(planned), left_out)


def _combinations(path: Path, file: SweepConfig) -> Iterator[dict[str, Any]]:
    given = [one for one in ("grid", "list", "random") if getattr(file, one)]
    if len(given) != 1:
        raise UserError(f"{path}: give one of grid, list and random; found {' and '.join(given) or 'none'}")
    if file.grid:
        for key, choices in file.grid.items():
            if not isinstance(choices, list) or not choices:
                raise UserError(f"{path}: grid.{key}: expected a list of values, found {choices!r}")
        for values in itertools.product(*file.grid.values()):
            yield dict(zip(file.grid, values, strict=True))
    elif file.list:
        for number_, one in enumerate(file.list):
            if not isinstance(one, dict):
                raise UserError(f"{path}: list[{number_}]: expected a mapping of keys to values, found {one!r}")
            yield dict(one)
    elif file.random:
        draw = random.Random(file.random.seed)
        for _ in range(file.random.count):
            yield {key: _drawn(path, key, what, draw) for key, what in file.random.keys.items()}


def _drawn(path: Path, key: str, what: Any, draw: random.Random) -> Any:
    if isinstance(what, list) and what:
        return draw.choice(what)
    if isinstance(what, dict) and len(what) == 1:
        kind, bounds = next(iter(what.items()))
        ends = [_number(one) for one in bounds] if isinstance(bounds, list) and len(bounds) == 2 else None
        if ends and all(end is not None for end in ends):
            low, high = (float(end) for end in ends if end is not None)
            if kind == "uniform":
                return float(f"{draw.uniform(low, high):.6g}")
            if kind == "integer":
                return draw.randint(int(low), int(high))
            if kind == "log_uniform" and low > 0:
                return float(f"{math.exp(draw.uniform(math.log(low), math.log(high))):.6g}")
    raise UserError(
        f"{path}: random.keys.{key}: expected a list of values, or one of uniform, log_uniform and integer with two "
        f"bounds, found {what!r}"
    )


def _number(value: Any) -> float | int | None:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return number(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _resolve(
    file: SweepConfig, config: Path, folder: Path, called: str | None, varied: dict[str, Any], check_data: bool
) -> PlannedRun | None:
    """The run; None when `where` excludes it."""
    label = called or _label(varied)
    base = [f"name={label}", f"runs={folder.as_posix()}"]
    overrides = [*base, *(_override(key, value) for key, value in {**file.set, **varied}.items())]
    for key, text in file.derive.items():
        tree = load_config(config, overrides, check_data=False, check_values=False)
        overrides.append(_override(key, _whole(evaluate(str(text), partial(_get, tree)))))
    tree = load_config(config, overrides, check_data=False, check_values=False)
    conditions = [file.where] if isinstance(file.where, str) else (file.where or [])
    if not all(evaluate(str(one), partial(_get, tree)) for one in conditions):
        return None
    load_config(config, overrides, check_data)
    return PlannedRun(label, varied, tuple(overrides))


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value == int(value) else value


def _get(config: RunConfig, path: str) -> Any:
    """The value of a key; in a run with stages, the run's own."""
    value: Any = config
    for part in path.split("."):
        if isinstance(value, list):  # stages and sources by name
            named = {one.name or Path(one.path).name: one for one in value if hasattr(one, "name")}
            if part not in named:
                raise UserError(f"there is no {path}{did_you_mean(part, named)}")
            value = named[part]
        elif part in (known := vars(value)):
            value = known[part]
        else:
            raise UserError(f"there is no key {path}{did_you_mean(part, known)}")
    return value


def _override(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    return f"{key}={'null' if value is None else value}"


def _label(varied: dict[str, Any]) -> str:
    """A run's name, from its varied keys: `hidden-64_lr-0.003`."""
    parts = [f"{key.rpartition('.')[2]}-{value}" for key, value in varied.items()]
    return re.sub(r"[^\w.+-]+", "-", "_".join(parts)) or "run"
