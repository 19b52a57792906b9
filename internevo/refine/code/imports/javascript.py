"""Imports in JavaScript and TypeScript: relative ones. Names of packages and aliases of bundlers are not resolved."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from internevo.refine.code.imports.tree import FileTree, Import, indented, join, without_comments

_NAME = r"""["'](\.{1,2}(?:/[^"'\n]*)?)["']"""
_IMPORT = re.compile(
    # not across another one: in code without semicolons, each would be looked for to the end of the text
    rf"(?:^|[;}}\s])(?:import|export)\b(?:(?!\b(?:import|export)\b)[^;\"'`()])*?\bfrom\s*{_NAME}"
    rf"|(?:^|[;\s])import\s*{_NAME}"
    rf"|\b(?:require|import)\s*\(\s*{_NAME}\s*\)",
)
_ENDINGS = (".ts", ".tsx", ".d.ts", ".mts", ".cts", ".js", ".jsx", ".mjs", ".cjs", ".json")
_COMPILED = re.compile(r"\.([mc]?)js(x?)$")


def imports(path: str, text: str, tree: FileTree) -> Iterator[Import]:
    """The files that a file imports, exports from, or requires. A call on an indented line may run later."""
    text = without_comments(text)
    for match in _IMPORT.finditer(text):
        static, bare, called = match.groups()
        if found := _resolve(join(posixpath.dirname(path), static or bare or called), tree):
            yield Import(found, at_once=not (called and indented(text, match.start(3))))


def _resolve(base: str, tree: FileTree) -> str | None:
    # TypeScript's modules name the file that the compiler will write
    written = _COMPILED.sub(r".\1ts\2", base)
    return tree.first((base, written, *(base + end for end in _ENDINGS), *(join(base, "index" + e) for e in _ENDINGS)))
