"""Writes docs/config.md from the schema: every key with its type, default and docstring.

python tools/config_reference.py           write it
python tools/config_reference.py --check   exit with 1 if it is not up to date
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import sys
import typing
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from internevo.config import schema
from internevo.config.check import CHOICES
from internevo.config.presets import PRESETS

OUTPUT = Path(__file__).parents[1] / "docs" / "config.md"
HEAD = """# The config

<!-- generated from internevo/config/schema.py by tools/config_reference.py; change the docstrings there -->

One YAML file describes a run. Any key can be changed on the command line as `key=value`; in a list of stages,
`stages.NAME.key=value` changes one stage. Unknown keys, wrong types and impossible combinations stop the run before
anything is loaded. `internevo config CONFIG` prints the resolved tree, or what is wrong with it.

- **Units.** Numbers may end in K, M, B or T (decimal): `batch_tokens: 4M`.
- **Bases.** `_base_: other.yaml`, or a list of files, lies under the file that names it; later ones win. Paths of bases
  are relative to that file; all other paths to the working directory.
- **Stages.** A stage is the same tree with some keys changed: it inherits all that it does not set. It may change
  everything but the model's shape (of `model`, only `rope_base` and `rope_scaling`), `tokenizer`, `optimizer.name`,
  `train.seed` and `train.init_from`.
- **Interpolation.** `${name}` is the value of another key, `${oc.env:SCRATCH}` that of an environment variable.
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
    texts, hints = docstrings(cls), typing.get_type_hints(cls)
    intro = " ".join(inspect.cleandoc(cls.__doc__ or "").split())
    lines += [f"## {f'`{path}`' if path else 'The run'}", "", intro, ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        hint, key = hints[field.name], f"{path}.{field.name}".lstrip(".")
        if dataclasses.is_dataclass(hint):
            inner += section(typing.cast(type, hint), key)
            continue
        if hint == list[schema.SourceConfig]:
            inner += section(schema.SourceConfig, f"{key}[]")
        lines.append(f"| `{key}` | {kind(hint, key)} | {default(field)} | {texts[field.name]} |")
    return [*lines, "", *inner]


def kind(hint: Any, key: str) -> str:
    """A type as a person would say it."""
    if key in CHOICES:
        return " or ".join(f"`{choice}`" for choice in CHOICES[key])
    if typing.get_origin(hint) is list:
        item = typing.get_args(hint)[0]
        return f"list of {kind(item, '')}s"
    if typing.get_args(hint):
        hint = typing.get_args(hint)[0]
    names = {int: "whole number", float: "number", bool: "true or false", str: "text", Any: "`auto` or whole number"}
    return names.get(hint) or hint.__name__.removesuffix("Config").lower()


def default(field: dataclasses.Field[Any]) -> str:
    """The default as YAML."""
    value = field.default
    if value is dataclasses.MISSING:
        assert field.default_factory is not dataclasses.MISSING
        value = field.default_factory()
    if value == MISSING:
        return "from the preset" if field.name in PRESETS["tiny"] or field.name == "head_dim" else "required"
    if value is None:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def presets() -> list[str]:
    """The table of named shapes."""
    keys = ["hidden", "layers", "heads", "kv_heads", "ffn", "vocab", "rope_base"]
    lines = ["## Model presets", "", f"| preset | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
    for name, shape in PRESETS.items():
        values = (f"{shape.get(key, schema.ModelConfig.rope_base):,.0f}" for key in keys)
        lines.append(f"| `{name}` | {' | '.join(values)} |")
    return [*lines, ""]


def reference() -> str:
    """The whole page."""
    return "\n".join([HEAD, *section(schema.RunConfig, ""), *presets()]).rstrip() + "\n"


def main() -> int:
    """Write or check; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is stale")
    if not parser.parse_args().check:
        OUTPUT.write_text(reference())
    elif not OUTPUT.is_file() or OUTPUT.read_text() != reference():
        print(f"{OUTPUT} is stale: run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
