"""Includes in C and C++.

Build files, which say where compilers look, are not read: a file is looked for beside the one that includes it, then
at the top of the repository and in its usual folders for headers, then anywhere by the end of its path.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from internevo.refine.code.imports.tree import FileTree, Import, join, without_comments

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*(?:include|import)[ \t]*(?:"([^"\n]+)"|<([^>\n]+)>)', re.MULTILINE)
_FOLDERS = ("", "include", "src", "inc")


def imports(path: str, text: str, tree: FileTree) -> Iterator[Import]:
    """The headers of the repository that a file includes."""
    for quoted, angled in _INCLUDE.findall(without_comments(text)):
        name = quoted or angled
        places = [join(folder, name) for folder in _FOLDERS]
        if quoted:
            places.insert(0, join(posixpath.dirname(path), name))
        # <string.h> is the system's, whatever the repository has of that name somewhere
        somewhere = tree.ending(join(name), path) if quoted or "/" in name else None
        if found := tree.first(places) or somewhere:
            yield Import(found)
