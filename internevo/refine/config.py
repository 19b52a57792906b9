"""The configuration of a refinery: where from, where to, which steps, and who does the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from internevo.config.bounds import Between
from internevo.config.kind import REFINERY, check_kind
from internevo.config.names import name_problem
from internevo.config.read import ConfigError, merge, parse_override, read_tree
from internevo.config.typed import build, did_you_mean, typed_tree
from internevo.files.errors import UserError
from internevo.refine.step import Step
from internevo.refine.steps import STEPS


@dataclass
class ExecutorConfig:
    """Who does the work. It may change whenever a refinery resumes: no result depends on it."""

    kind: Literal["local", "slurm"] = "local"
    """`local`: processes on this machine; `slurm`: an array of jobs for each phase."""
    workers: Annotated[int, Between(0, 10**5)] = 0
    """Tasks side by side. 0: one for each core of this machine; with Slurm, as many as it gives."""
    partition: str | None = None
    """Slurm's partition; required there."""
    time: str = "24:00:00"
    """Slurm's limit for a job."""
    cpus: Annotated[int, Between(1, 10**5)] = 1
    """Cores of a job."""
    memory_gib: Annotated[int, Between(1, 10**6)] = 4
    """Memory of a job for each core."""
    account: str | None = None
    """Slurm's account."""
    qos: str | None = None
    """Slurm's quality of service."""
    tasks_per_job: Annotated[int, Between(1, 10**6)] = 1
    """Tasks that a job does one after the other: with many short ones, Slurm has less to do."""
    setup: str = ""
    """What a job's shell does first, such as `module load python`. Without it, it uses this Python."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of sbatch: `{constraint: cpu, reservation: data}`."""


@dataclass
class RefineConfig:
    """One YAML file describes a refinery: what is refined, in which steps, and where the results go."""

    name: str = ""
    """Its name. The results go to `refined/NAME` unless `output` says otherwise."""
    input: list[str] = field(default_factory=list)
    """Files and folders: `.warc`, `.wet` (also `.gz`), `.jsonl` and `.ndjson` (also `.gz`, `.zst`), `.parquet`,
    `.arrow` and `.feather`; or folders of repositories."""
    output: str = ""
    """The folder to work in: one folder a step, `kept` and `report.html`."""
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    """Who does the work."""
    steps: list[Any] = field(default_factory=list)
    """The steps in order, each a mapping of its name to its keys: `- language: {keep: [en]}`."""


@dataclass(frozen=True)
class NamedStep:
    """A step of a chain."""

    name: str
    step: Step


@dataclass(frozen=True)
class Refinery:
    """A configuration that has been checked."""

    name: str
    inputs: tuple[Path, ...]
    output: Path
    executor: ExecutorConfig
    steps: tuple[NamedStep, ...]


def load_refinery(path: Path, overrides: Sequence[str] = (), check_files: bool = True) -> Refinery:
    """Read and check a configuration; `overrides` are `key=value`, but not of the steps.

    Raises ConfigError with everything that is wrong, missing files included if `check_files`.
    """
    tree = read_tree(path)
    check_kind(path, tree, REFINERY)
    for override in overrides:
        keys, value = parse_override(override)
        for key in reversed(keys):
            value = {key: value}
        tree = merge(tree, value)
    problems: list[str] = []
    config = build(RefineConfig, typed_tree(RefineConfig, tree, "", problems))
    steps = [_step(place, one, problems) for place, one in enumerate(config.steps)]
    chain = tuple(one for one in steps if one is not None)
    problems += _problems(config, tree, chain)
    if check_files and not problems:
        problems += _missing(config, chain)
    if problems:
        raise ConfigError(f"{path}:\n  " + "\n  ".join(problems))
    output = Path(config.output or f"refined/{config.name}")
    return Refinery(config.name, tuple(map(Path, config.input)), output, config.executor, chain)


def _step(place: int, tree: Any, problems: list[str]) -> NamedStep | None:
    """The step, or None with what is wrong with it added to `problems`."""
    path = f"steps[{place}]"
    tree = {tree: {}} if isinstance(tree, str) else tree
    if not isinstance(tree, dict) or len(tree) != 1:
        problems.append(f"{path}: expected one name with its keys, such as `language: {{keep: [en]}}`, found {tree!r}")
        return None
    ((name, options),) = tree.items()
    if (kind := STEPS.get(name)) is None:
        problems.append(f"{path}: unknown step {name!r}{did_you_mean(str(name), STEPS)}")
        return None
    before = len(problems)
    values = typed_tree(kind, {} if options is None else options, f"{path}.{name}.", problems)
    if len(problems) > before:
        return None
    try:
        return NamedStep(name, build(kind, values))
    except UserError as error:
        problems.append(f"{path}.{error}")
        return None


def _problems(config: RefineConfig, tree: dict[str, Any], chain: Sequence[NamedStep]) -> list[str]:
    problems = []
    if "name" not in tree:
        problems.append("name: every refinery needs a name; its folder is called so")
    elif wrong := name_problem(config.name):
        problems.append(f"name: {config.name!r} {wrong}")
    if not tree.get("input"):
        problems.append("input: no file or folder is named")
    if not tree.get("steps"):
        problems.append(f"steps: there is none; known are {', '.join(STEPS)}")
    readers = [name for name, kind in STEPS.items() if kind.reads_input]
    must = f"the first step reads the input: one of {', '.join(readers)}"
    for place, one in enumerate(chain if len(chain) == len(config.steps) else ()):
        if one.step.reads_input != (place == 0):
            problems.append(f"steps[{place}]: {must}" if place == 0 else f"steps[{place}].{one.name}: only {must}")
    if config.executor.kind == "slurm" and not config.executor.partition:
        problems.append("executor.partition: missing; Slurm needs one")
    return problems


def _missing(config: RefineConfig, chain: Sequence[NamedStep]) -> list[str]:
    problems = [f"input: {path} does not exist" for path in config.input if not Path(path).exists()]
    for place, one in enumerate(chain):
        missing = [file for file in one.step.files() if not file.is_file()]
        problems += [f"steps[{place}].{one.name}: {file} does not exist" for file in missing]
    return problems
