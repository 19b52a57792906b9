"""No text of the size that is read takes the finders of imports more than moments, however little it is like code.

The limit is there for what never ends: looking on to the end of the text from each of its lines takes minutes.
"""

from __future__ import annotations

import pytest

from internevo.refine.code.imports import FINDERS
from internevo.refine.code.imports.tree import FileTree, without_comments
from internevo.refine.code.languages import NAMED

SIZE = 2**20
"""Bytes of the largest files that `repositories` reads by default."""


def filled(begin: str, again: str, end: str = "") -> str:
    return begin + again * ((SIZE - len(begin) - len(end)) // len(again)) + end


TEXTS = {
    "python, spaces": ("python", filled("from", " ", "x")),
    "python, dots": ("python", filled("from .", " .", "x")),
    "python, a name": ("python", filled("from x", ".x", " imports")),
    "python, a long name": ("python", filled("import x", ".x")),
    "python, open brackets": ("python", filled("", "from x import (\n")),
    "python, open strings": ("python", filled("", "x = \"\"\"'''\n")),
    "typescript, no semicolons": ("typescript", filled("", "export const x = 1\n")),
    "typescript, from": ("typescript", filled("export ", "from \n")),
    "javascript, open comments": ("javascript", filled("", "/* ")),
    "javascript, quotes": ("javascript", filled("", '\\"', "\n")),
    "javascript, quotes on lines": ("javascript", filled("", "\"'\\'\n")),
    "javascript, open templates": ("javascript", filled("", "\\`")),
    "go, open brackets": ("go", filled("", "import (\n")),
    "rust, no semicolons": ("rust", filled("", "use crate::x\n")),
    "rust, open brackets": ("rust", filled("", "pub(\n")),
    "rust, nested": ("rust", filled("use crate::", "{x::", ";")),
    "rust, nested names": ("rust", filled("use crate::", "{x,", ";")),
    "java, open braces": ("java", filled("import x", ".{", ";")),
    "c, spaces": ("c", filled("#", " ", "include")),
}


@pytest.mark.timeout(100)
@pytest.mark.parametrize("name", TEXTS)
def test_it_ends(name: str) -> None:
    language, text = TEXTS[name]
    path = "a" + NAMED[language].endings[0]
    tree = FileTree([path, "x.py", "lib.rs"], {"go.mod": "module m\n"})
    list(FINDERS[language](path, text, tree))


@pytest.mark.timeout(100)
def test_settings_end() -> None:
    list(FINDERS["go"]("a.go", 'import "x"', FileTree(["a.go"], {"go.mod": filled("", "\n")})))


def test_what_is_behind_a_backslash_begins_nothing() -> None:
    assert without_comments('a = /\\/*x/ // gone\nb = /\\"/ /* gone */ + 1') == 'a = /\\/*x/ \nb = /\\"/  + 1'
    assert without_comments("x /* never ends\nmod y;\n") == "x \n\n"
