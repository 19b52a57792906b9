"""Imports in Java, Kotlin and Scala: `a.b.C` is the file `a/b/C` below some folder of sources.

Classes of one package see each other without a word; that is not an import.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from internevo.refine.code.imports.tree import FileTree, Import, without_comments

_IMPORT = re.compile(
    r"^[ \t]*import[ \t]+(?:static[ \t]+)?([\w.]+?)(?:\.([*_])|\.\{([^}\n]*)\})?[ \t]*(?:as\b|;|$)", re.MULTILINE
)
_ENDINGS = (".java", ".kt", ".scala")


def imports(path: str, text: str, tree: FileTree) -> Iterator[Import]:
    """The files of the classes that a file imports; with `.*`, all that the package's folder has."""
    for name, star, group in _IMPORT.findall(without_comments(text)):
        inside = name.replace(".", "/")
        names = [f"{inside}/{one.split()[0]}" for one in group.split(",") if one.split()] if group else [inside]
        for one in names:
            if found := _class(one, path, tree):
                yield Import(found)
            elif star and (folder := tree.folder_ending(one, path)) is not None:
                yield from (Import(file) for file in tree.in_folder(folder) if file.endswith(_ENDINGS))


def _class(name: str, near: str, tree: FileTree) -> str | None:
    """The file of a class, or of the class around a nested one or a static member."""
    parts = name.split("/")
    classes = ("/".join(parts[:length]) for length in range(len(parts), max(len(parts) - 3, 1), -1))
    found = (tree.ending(one + ending, near) for one in classes for ending in _ENDINGS)
    return next(filter(None, found), None)
