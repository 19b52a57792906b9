"""Writes docs/config.md and docs/refinery-keys.md: every key with its type, default and docstring.

python tools/config_reference.py           write them
python tools/config_reference.py --check   exit with 1 if they are not up to date
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import sys
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from internevo.config import schema
from internevo.config.bounds import Between
from internevo.config.choices import OrYours
from internevo.config.presets import PRESETS, model_preset
from internevo.config.schema import MISSING
from internevo.config.typed import flatten
from internevo.refine.config import RefineConfig
from internevo.refine.rules import Rules, Thresholds
from internevo.refine.steps import STEPS

DOCS = Path(__file__).parents[1] / "docs"
HEAD = """# The config

<!-- generated from internevo/config/schema.py by tools/config_reference.py; change the docstrings there -->

One YAML file describes a run. Any key can be changed on the command line as `key=value`; in a list of stages,
`stages.NAME.key=value` changes one stage, and `data.sources.NAME.weight=0.3` one source by its name. Unknown keys,
wrong types and impossible combinations stop the run before anything is loaded. `internevo config CONFIG` prints the
resolved tree and what it comes to (parameters, steps, tokens), or what is wrong with it.

- **Numbers.** They may end in K, M, B or T (decimal): `batch_tokens: 4M`. Every number has a range, which stands beside
  its type. `010` is ten and `1:30` is text, although YAML 1.1 says eight and ninety.
- **Bases.** `_base_: other.yaml`, or a list of files, lies under the file that names it; later ones win. Paths of bases
  are relative to that file; all other paths to the working directory.
- **Stages.** A stage is the same tree with some keys changed: it inherits all that it does not set. It may change
  everything but the model's shape (of `model`, only `rope`), `tokenizer`, `optimizer.name`,
  `train.seed`, `train.init_from`, `train.lora` and `data.block`.
- **Interpolation.** `${name}` is the value of another key, `${oc.env:SCRATCH}` that of an environment variable.
"""
REFINERY_HEAD = """# The refinery's keys

<!-- generated from the steps in internevo/refine by tools/config_reference.py; change the docstrings there -->

[The refinery](refinery.md) says how it is run and why its steps are as they are. Numbers may end in K, M, B or T;
unknown keys and wrong types stop it before anything begins. A step is a mapping of its name to its keys,
`- language: {keep: [en]}`, or its name alone.
"""


def docstrings(cls: type) -> dict[str, str]:
    """The text under each field of a dataclass; a derived class has those of its base too."""
    (body,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(body, ast.ClassDef)
    texts = {} if cls.__base__ in (object, None) else docstrings(typing.cast(type, cls.__base__))
    for one, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(one, ast.AnnAssign) and isinstance(after, ast.Expr):
            assert isinstance(one.target, ast.Name)
            texts[one.target.id] = " ".join(ast.literal_eval(after.value).split())
    return texts


def section(cls: type, path: str) -> list[str]:
    """The table of one dataclass, then those of the dataclasses in it."""
    lines, inner = [], []
    texts, hints = docstrings(cls), typing.get_type_hints(cls, include_extras=True)
    intro = " ".join(inspect.cleandoc(cls.__doc__ or "").split())
    lines += [f"## {f'`{path}`' if path else 'The run'}", "", intro, ""]
    head = ["| key | type | default | meaning |", "|---|---|---|---|"]
    rows = []
    for field in dataclasses.fields(cls):
        hint, key = hints[field.name], f"{path}.{field.name}".lstrip(".")
        if hint is Thresholds:
            continue
        if dataclasses.is_dataclass(hint):
            inner += section(typing.cast(type, hint), key)
            continue
        if hint == list[schema.SourceConfig]:
            inner += section(schema.SourceConfig, f"{key}[]")
        rows.append(f"| `{key}` | {kind(hint)} | {default(field, key)} | {texts[field.name]} |")
    table = [*head, *rows, ""] if rows else []
    return [*lines, *table, *inner]


def kind(hint: Any) -> str:
    """A type as a person would say it, with its range."""
    if typing.get_origin(hint) is Annotated:
        ranges = [f", {note}" for note in hint.__metadata__ if isinstance(note, Between)]
        yours = [" or `PACKAGE.MODULE:NAME`" for note in hint.__metadata__ if isinstance(note, OrYours)]
        return "".join([kind(hint.__origin__), *ranges, *yours])
    if typing.get_origin(hint) is Literal:
        return " or ".join(f"`{choice}`" for choice in typing.get_args(hint))
    if typing.get_origin(hint) is dict:
        return "mapping"
    if typing.get_origin(hint) is list:
        item = typing.get_args(hint)[0]
        return "list" if item is Any else f"list of {kind(item)}s"
    if typing.get_args(hint):
        hint = typing.get_args(hint)[0]
    names = {int: "whole number", float: "number", bool: "true or false", str: "text", Any: "`auto` or whole number"}
    return names.get(hint) or hint.__name__.removesuffix("Config").lower()


def default(field: dataclasses.Field[Any], key: str) -> str:
    """The default as YAML."""
    value = field.default
    if value is dataclasses.MISSING:
        assert field.default_factory is not dataclasses.MISSING
        value = field.default_factory()
    if value == MISSING:
        return "from the preset" if key.startswith("model.") else "required"
    return shown(value)


def shown(value: Any) -> str:
    """A value as YAML."""
    if value is None or value == "":
        return ""
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def presets() -> list[str]:
    """The table of named shapes."""
    keys = ["hidden", "layers", "attention.heads", "attention.kv_heads", "feed_forward.width", "vocab", "rope.base"]
    lines = ["## Model presets", "", f"| preset | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
    for name in PRESETS:
        shape = flatten(dataclasses.asdict(model_preset(name)))
        lines.append(f"| `{name}` | {' | '.join(f'{shape[key]:,.0f}' for key in keys)} |")
    return [*lines, ""]


def reference() -> str:
    """The whole page."""
    return "\n".join([HEAD, *section(schema.RunConfig, ""), *presets()]).rstrip() + "\n"


def thresholds() -> list[str]:
    """The rules' table, with a default for each language."""
    texts, hints = docstrings(Thresholds), typing.get_type_hints(Thresholds, include_extras=True)
    lines = ["## `rules.en` and `rules.zh`", "", " ".join(inspect.cleandoc(Thresholds.__doc__ or "").split()), ""]
    lines += ["| key | type | en | zh | meaning |", "|---|---|---|---|---|"]
    english, chinese = Rules().en, Rules().zh
    for one in dataclasses.fields(Thresholds):
        values = (shown(getattr(language, one.name)) or "`null`" for language in (english, chinese))
        lines.append(f"| `{one.name}` | {kind(hints[one.name])} | {' | '.join(values)} | {texts[one.name]} |")
    return [*lines, ""]


def refinery() -> str:
    """The page of the refinery's keys."""
    lines = [REFINERY_HEAD, *section(RefineConfig, "")]
    for name, step in STEPS.items():
        lines += section(step, name)
        if step is Rules:
            lines += thresholds()
    return "\n".join(lines).replace("## The run\n", "## The file\n").rstrip() + "\n"


def main() -> int:
    """Write or check; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is stale")
    check = parser.parse_args().check
    stale = 0
    for name, page in (("config.md", reference()), ("refinery-keys.md", refinery())):
        file = DOCS / name
        if not check:
            file.write_text(page, encoding="utf-8")
        elif not file.is_file() or file.read_text(encoding="utf-8") != page:
            print(f"{file} is stale: run `make docs`", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
