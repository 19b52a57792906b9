"""Imports in Python.

`import a.b` needs `a/b.py` or `a/b/__init__.py`, or what there is of the folders before; `from a import b` the module
`a.b` if there is one, else `a`. A package that is only passed through is not counted: every module would need its own.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterator

from internevo.refine.code.imports.tree import FileTree, Import, above, indented, join

_MASKED = re.compile(
    r'''("""|\'\'\')(?:\\.|.)*?(?:\1|\Z)'''
    r"""|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?"""
    r"""|\#[^\n]*""",
    re.DOTALL,
)
"""Strings and comments."""
_CONTINUED = re.compile(r"\\\n")
_IMPORT = re.compile(
    r"(?:^|[:;])[ \t]*"
    r"(?:import[ \t]+(?P<modules>\w[\w., \t]*)"
    r"|from\b(?P<dots>[. \t]{0,999}+)(?P<module>(?!import\b)\w[\w.]{0,999}+)?[ \t]*+\bimport\b[ \t]*+"
    r"(?:\((?P<block>[^)]*+)(?:\)|\Z)|(?P<line>[^\n;]*)))",
    re.MULTILINE,
)
"""Possessive, so that no text takes more time than in proportion to its length; but not around a group, whose text
Python 3.11.2 then loses. Where a module stands, `import` does not: trying without it costs one look."""
_DEEPEST = 16  # names of a dotted one that are looked at; no module lies deeper
_SOURCES = ("", "src", "lib", "python")  # folders at the top of a repository that modules are found in


def imports(path: str, text: str, tree: FileTree) -> Iterator[Import]:
    """The modules of the repository that a file imports. Code that is indented may run later."""
    if not path.endswith((".py", ".pyi", ".pyw")):
        return
    text = _CONTINUED.sub(" ", _MASKED.sub(_blank, text))
    roots = _roots(path, tree)
    for match in _IMPORT.finditer(text):
        at_once = not indented(text, match.start())
        if match["modules"]:
            wanted = [_named(name, _places(name, roots, tree), tree) for name in _names(match["modules"])]
        else:
            module = match["module"] or ""
            names = _names(match["block"] if match["block"] is not None else match["line"])
            if dots := match["dots"].count("."):
                folder = posixpath.dirname(path)
                base = join(folder, *[".."] * (dots - 1), module.replace(".", "/"))
                wanted = [_from(base, name, tree) for name in names]
            else:
                wanted = [_from_roots(module, name, _places(module, roots, tree), tree) for name in names]
        yield from (Import(found, at_once) for found in wanted if found is not None)


def _blank(match: re.Match[str]) -> str:
    found = match[0]
    # a string that stands where a name could must not vanish: `x = ""` on a line of its own would join the next
    return "\n" * found.count("\n") if found[0] == "#" else "''" + "\\\n" * found.count("\n")


def _names(listed: str) -> list[str]:
    """`a as b, c` -> `a`, `c`."""
    return [words[0] for part in listed.split(",") if (words := part.split())]


def _roots(path: str, tree: FileTree) -> list[str]:
    """The folders that absolute imports are looked up in. A package's own folder is not one of them."""
    around = [folder for folder in above(path) if join(folder, "__init__.py") not in tree]
    return list(dict.fromkeys((*around, *_SOURCES)))


def _places(module: str, roots: list[str], tree: FileTree) -> list[str]:
    """The roots that a module is looked up in. One of Python's own library is never taken for its namesake in a
    package, as `import subprocess` in `asyncio`, whose repository may have the package's files at its top."""
    if module.partition(".")[0] not in sys.stdlib_module_names:
        return roots
    return [root for root in roots if join(root, "__init__.py") not in tree]


def _files(base: str) -> tuple[str, ...]:
    """The files that a module may be."""
    package = join(base, "__init__.py")
    return package, f"{base}.py", f"{package}i", f"{base}.pyi"


def _named(name: str, roots: list[str], tree: FileTree) -> str | None:
    """`import a.b.c`: the longest beginning of it that is a module, in the first root that has any."""
    parts = name.split(".", _DEEPEST)[:_DEEPEST]
    modules = (join(root, *parts[:length]) for root in roots for length in range(len(parts), 0, -1))
    return tree.first(file for module in modules for file in _files(module))


def _from(base: str, name: str, tree: FileTree) -> str | None:
    return tree.first((*(_files(join(base, name)) if name.isidentifier() else ()), *_files(base)))


def _from_roots(module: str, name: str, roots: list[str], tree: FileTree) -> str | None:
    """`from a.b import c`, in the first root that has a part of it."""
    path = module.replace(".", "/")
    found = (_from(join(root, path), name, tree) or _named(module, [root], tree) for root in roots)
    return next(filter(None, found), None)
