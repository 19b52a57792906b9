"""Which files of its repository a file imports: a regular expression or two per language, resolved to paths."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from internevo.refine.code.imports import c, go, javascript, jvm, python, rust
from internevo.refine.code.imports.tree import FileTree, Import

Finder = Callable[[str, str, FileTree], Iterator[Import]]

FINDERS: dict[str, Finder] = {
    "python": python.imports,
    "c": c.imports,
    "cpp": c.imports,
    "java": jvm.imports,
    "kotlin": jvm.imports,
    "scala": jvm.imports,
    "javascript": javascript.imports,
    "typescript": javascript.imports,
    "go": go.imports,
    "rust": rust.imports,
}
"""By language: given a file's path, its text and its repository's files, what it imports."""
