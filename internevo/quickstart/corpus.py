"""A corpus that every machine has: the running interpreter's standard library, read the way a team reads
repositories.

- `prose`: each module's docstrings and comments as running text.
- `code`: each module as it is.
- `long`: each package in one document, a module after those of the package that it imports; a large module that
  stands alone is a document too.
- `selected`: the modules of `code` that explain themselves best, for the enhancement stage; nothing of it is held
  out, since `code` is.

All kinds have the same modules, so a module's top-level name decides for all of them whether it is held out.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import io
import json
import re
import sysconfig
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
KINDS = ("prose", "code", "long")  # the kinds with held-out documents
SELECTED = "selected"
_EXPLAINED = 0.25  # the share of a module that must be prose for it to be selected
_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "encodings", "pydoc_data"}
_LEFT_OUT |= {"turtledemo", "ensurepip", "__pycache__", "lib-dynload"}
_ONE_IN = 10  # top-level names of which one is held out
_LONG_ALONE = 12_000  # characters from which a module without a package makes a long document


@dataclass(frozen=True)
class Module:
    """One source file of the library."""

    path: str  # relative to the library, with forward slashes
    source: str

    @property
    def top(self) -> str:
        """The package or module that it belongs to."""
        return self.path.split("/")[0].removesuffix(".py")

    @property
    def name(self) -> str:
        """Its dotted name."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def held_out(top: str) -> bool:
    """Whether everything below this top-level name is for evaluation only."""
    return int.from_bytes(hashlib.blake2b(top.encode(), digest_size=4).digest(), "little") % _ONE_IN == 0


def library_modules(root: Path) -> list[Module]:
    """The library's modules in the order of their paths; without tests, tables and what is not UTF-8."""
    modules, seen = [], set()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _LEFT_OUT & set(relative.parts) or relative.parts[0].startswith("config-"):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            ast.parse(source)
        except (UnicodeDecodeError, SyntaxError, ValueError):
            continue
        if source.strip() and source not in seen:
            seen.add(source)
            modules.append(Module(relative.as_posix(), source))
    return modules


def build_corpus(output: Path, root: Path = LIBRARY) -> dict[str, int]:
    """Write `KIND.jsonl` and `KIND.heldout.jsonl` for each kind into `output`; returns characters by file."""
    modules = library_modules(root)
    proses = [(module.top, module.path, prose(module.source)) for module in modules]
    code = [(module.top, module.path, module.source) for module in modules]
    chosen = [one for one, (_, _, text) in zip(code, proses, strict=True) if len(text) > _EXPLAINED * len(one[2])]
    texts = {"prose": proses, "code": code, "long": list(long_documents(modules)), SELECTED: chosen}
    output.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for kind, documents in texts.items():
        names = {f"{kind}.jsonl": False} | ({f"{kind}.heldout.jsonl": True} if kind in KINDS else {})
        for name, wanted in names.items():
            some = {where: text for top, where, text in documents if held_out(top) == wanted and text.strip()}
            lines = [json.dumps({"id": where, "text": text}) + "\n" for where, text in some.items()]
            (output / name).write_text("".join(lines), encoding="utf-8")
            sizes[name] = sum(map(len, some.values()))
    return sizes


def prose(source: str) -> str:
    """The docstrings and comments of a module, in order, as paragraphs."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                found.append((node.body[0].lineno, inspect.cleandoc(text)))
    found += _comments(source)
    paragraphs = (_without_code(text) for _, text in sorted(found))
    return "\n\n".join(text for text in paragraphs if len(text.split()) >= 4)


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Groups of neighbouring comment lines: the first line's number, and the group as one paragraph."""
    group: list[str] = []
    start = last = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.string.startswith("#!"):
            continue
        line = token.start[0]
        if group and line != last + 1:
            yield start, " ".join(group)
            group = []
        if not group:
            start = line
        group.append(token.string.lstrip("#").strip())
        last = line
    if group:
        yield start, " ".join(group)


def _without_code(text: str) -> str:
    """The text without interpreter sessions and lines of dashes."""
    lines = [line for line in text.splitlines() if not re.match(r"\s*(>>>|\.\.\. |[-=*#~]{4,}\s*$)", line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def long_documents(modules: Iterable[Module]) -> Iterator[tuple[str, str, str]]:
    """(top-level name, id, text) of each package in dependency order, and of each large module alone."""
    packages: dict[str, list[Module]] = defaultdict(list)
    for module in modules:
        packages[module.top].append(module)
    for top, members in sorted(packages.items()):
        if len(members) > 1 or len(members[0].source) >= _LONG_ALONE:
            ordered = dependency_order(members)
            yield (top, top, "\n\n".join(f"# {module.path}\n{module.source.rstrip()}" for module in ordered) + "\n")


def dependency_order(modules: Iterable[Module]) -> list[Module]:
    """Modules such that each comes after those of them that it imports; circles are broken by name."""
    by_name = {module.name: module for module in sorted(modules, key=lambda module: module.name)}
    # sorted: a set's order, and with it that of the documents, would be another in each process
    needs = {name: sorted(_imports(module, by_name) - {name}) for name, module in by_name.items()}
    while True:
        try:
            return [by_name[name] for name in TopologicalSorter(needs).static_order()]
        except CycleError as error:
            circle = error.args[1][:-1]
            first = min(circle)  # goes before the others of its circle
            needs[first] = [name for name in needs[first] if name not in circle]


def _imports(module: Module, known: dict[str, Module]) -> set[str]:
    """The names in `known` that a module imports anywhere in it."""
    package = module.name if module.path.endswith("__init__.py") else module.name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(module.source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found & set(known)
