"""Imports in Rust, inside a crate alone: `mod x;`, and `use` from `crate`, `self` and `super`."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from internevo.refine.code.imports.tree import FileTree, Import, above, join, without_comments

_PUB = r"^[ \t]*(?:pub(?:\([^)\n]*\))?[ \t]+)?"
_MOD = re.compile(_PUB + r"mod[ \t]+(?:r#)?(\w+)[ \t]*;", re.MULTILINE)
# a keyword stands before `::`, `as` or the end: a line of prose, `use self-made tools;`, is none of the language
_USE = re.compile(_PUB + r"use[ \t]+(?:::)?((?:crate|self|super)\s*(?:::|\bas\b|(?=[{;]))[^;]*+);", re.MULTILINE)
_TREE = re.compile(r"[{},]|[^{},]+")
_OWN = ("mod.rs", "lib.rs", "main.rs")  # files that are the module of the folder that they are in
_DEEPEST = 16  # names of a path that are looked at; no module lies deeper


def imports(path: str, text: str, tree: FileTree) -> Iterator[Import]:
    """The modules of the crate that a file declares or uses."""
    text = without_comments(text)
    folder, name = posixpath.split(path)
    inside = folder if name in _OWN else join(folder, name.removesuffix(".rs"))
    crate = next((up for up in above(path) if join(up, "lib.rs") in tree or join(up, "main.rs") in tree), folder)
    for child in _MOD.findall(text):
        if found := tree.first(_files(join(inside, child))):
            yield Import(found)
    # after the last `;` a search would continue to the end each time
    for used in _USE.findall(text[: text.rfind(";") + 1]):
        for first, *rest in _expand(used):
            base = {"crate": crate, "self": inside, "super": posixpath.dirname(inside)}.get(first)
            if base is None:
                continue
            while rest[:1] == ["super"]:
                base, rest = posixpath.dirname(base), rest[1:]
            if (found := _longest(base, rest, tree)) and found != path:
                yield Import(found)


def _expand(tree: str) -> Iterator[list[str]]:
    """`a::{b, c::{d, e}}` -> `a::b`, `a::c::d`, `a::c::e`, each as a list of names."""
    heads: list[list[str]] = [[]]  # what stands before each brace that is open
    names: list[str] = []
    for part in _TREE.findall(tree + ","):
        if part == "{":
            heads.append((heads[-1] + names)[:_DEEPEST])
            names = []
        elif part in ("}", ","):
            if names:
                yield (heads[-1] + names)[:_DEEPEST]
            names = []
            if part == "}" and len(heads) > 1:
                heads.pop()
        else:
            names = [name.split()[0] for name in part.split("::") if name.split()]


def _files(base: str) -> tuple[str, str]:
    """The files that a module may be."""
    return f"{base}.rs", f"{base}/mod.rs"


def _longest(base: str, names: list[str], tree: FileTree) -> str | None:
    """The longest beginning of a path of names that is a module; the last names are things inside it."""
    modules = (join(base, *names[:length]) for length in range(len(names), 0, -1))
    found = tree.first(file for module in modules for file in _files(module))
    return found or tree.first((f"{base}.rs", *(join(base, own) for own in _OWN)))
