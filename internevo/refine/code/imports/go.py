"""Imports in Go: a package is a folder, and `go.mod` says what its module is called."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from internevo.refine.code.imports.tree import FileTree, Import, join, without_comments

_IMPORT = re.compile(r"^import\s*(?:\(([^)]*+)(?:\)|\Z)|([^\n]*))", re.MULTILINE)
_PATH = re.compile(r'["`]([^"`\n]+)["`]')
_MODULE = re.compile(r"^[ \t]*module[ \t]+\"?([^\s\"]+)", re.MULTILINE)


def imports(path: str, text: str, tree: FileTree) -> Iterator[Import]:
    """The files of the packages that a file imports, tests aside. Without a `go.mod` nothing is resolved."""
    modules = {
        match[1]: posixpath.dirname(file)
        for file, content in tree.settings.items()
        if (match := _MODULE.search(content))
    }
    for block, line in _IMPORT.findall(without_comments(text)):
        for name in _PATH.findall(block or line):
            if inside := [module for module in modules if name == module or name.startswith(module + "/")]:
                module = max(inside, key=len)
                folder = join(modules[module], name[len(module) :].strip("/"))
                for file in tree.in_folder("" if folder == "." else folder):
                    if file.endswith(".go") and not file.endswith("_test.go"):
                        yield Import(file)
