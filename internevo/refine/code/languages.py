"""What language a file is in, by its name, and how the language marks comments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any


@dataclass(frozen=True)
class Language:
    """A kind of text that repositories hold."""

    name: str
    endings: tuple[str, ...]
    line: tuple[str, ...] = ()  # what begins a comment that ends with the line
    block: tuple[tuple[str, str], ...] = ()  # what begins and ends a comment of several lines
    code: bool = True  # false for prose, settings and data, which come before the code in a repository's document
    prose: bool = False  # whether a line may be a paragraph

    def comment(self, text: str) -> str:
        """A line that says `text` and means nothing to a program. `#` where the language has no comments."""
        if self.line or not self.block:
            return f"{self.line[0] if self.line else '#'} {text}"
        begin, end = self.block[0]
        return f"{begin} {text} {end}"


_C = ("//",), (("/*", "*/"),)
_HASH = (("#",),)
_MARKUP = ((), (("<!--", "-->"),))

LANGUAGES = (
    Language("python", (".py", ".pyi", ".pyw"), ("#",), (('"""', '"""'), ("'''", "'''"))),
    Language("c", (".c", ".h"), *_C),
    Language("cpp", (".cc", ".cpp", ".cxx", ".hh", ".hpp", ".hxx", ".inl", ".cu", ".cuh"), *_C),
    Language("java", (".java",), *_C),
    Language("kotlin", (".kt", ".kts"), *_C),
    Language("scala", (".scala",), *_C),
    Language("javascript", (".js", ".jsx", ".mjs", ".cjs"), *_C),
    Language("typescript", (".ts", ".tsx", ".mts", ".cts"), *_C),
    Language("go", (".go",), *_C),
    Language("rust", (".rs",), *_C),
    Language("csharp", (".cs",), *_C),
    Language("swift", (".swift",), *_C),
    Language("php", (".php",), ("//", "#"), (("/*", "*/"),)),
    Language("ruby", (".rb",), ("#",), (("=begin", "=end"),)),
    Language("perl", (".pl", ".pm"), *_HASH),
    Language("shell", (".sh", ".bash", ".zsh"), *_HASH),
    Language("lua", (".lua",), ("--",), (("--[[", "]]"),)),
    Language("r", (".r",), *_HASH),
    Language("julia", (".jl",), ("#",), (("#=", "=#"),)),
    Language("haskell", (".hs",), ("--",), (("{-", "-}"),)),
    Language("ocaml", (".ml", ".mli"), (), (("(*", "*)"),)),
    Language("sql", (".sql",), ("--",), (("/*", "*/"),)),
    Language("css", (".css", ".scss"), (), (("/*", "*/"),)),
    Language("make", ("makefile", ".mk"), *_HASH, code=False),
    Language("cmake", ("cmakelists.txt", ".cmake"), *_HASH, code=False),
    Language("docker", ("dockerfile",), *_HASH, code=False),
    Language("markdown", (".md", ".markdown"), *_MARKUP, code=False, prose=True),
    Language("rst", (".rst",), ("..",), code=False, prose=True),
    Language("tex", (".tex",), ("%",), code=False, prose=True),
    Language("html", (".html", ".htm"), *_MARKUP, code=False),
    Language("xml", (".xml",), *_MARKUP, code=False),
    Language("json", (".json",), code=False),
    Language("yaml", (".yaml", ".yml"), *_HASH, code=False),
    Language("toml", (".toml",), *_HASH, code=False),
    Language("ini", (".ini", ".cfg"), *_HASH, code=False),
    Language("go module", ("go.mod",), ("//",), code=False),
    Language("text", (".txt", "readme", "license", "copying", "authors", "changelog", "news"), code=False, prose=True),
)
"""The languages that are read. Of two that fit a name, the longer ending wins."""

NAMED = {language.name: language for language in LANGUAGES}
_ENDINGS = {ending: language for language in LANGUAGES for ending in language.endings}


def language_of(path: str) -> Language | None:
    """The language of a file with this path; None for one that is not known."""
    name = PurePosixPath(path).name.lower()
    return _ENDINGS.get(name) or _ENDINGS.get(PurePosixPath(name).suffix)


def noted_language(metadata: Mapping[str, Any]) -> Language:
    """The language of a document by its `language`, where that is one of code, else by its `path`; else text."""
    name, path = metadata.get("language"), metadata.get("path")
    found = NAMED.get(name) if isinstance(name, str) else None
    return found or (language_of(path) if isinstance(path, str) else None) or NAMED["text"]


def comment_share(text: str, language: Language) -> float:
    """Share of the lines that are not blank that begin as comments or are inside one; Python's docstrings count."""
    lines = comments = 0
    end: str | None = None
    for line in map(str.strip, text.splitlines()):
        if not line:
            continue
        lines += 1
        if end is not None:
            comments += 1
            if end in line:
                end = None
        elif opened := next((pair for pair in language.block if line.startswith(pair[0])), None):
            comments += 1
            if opened[1] not in line[len(opened[0]) :]:
                end = opened[1]
        elif line.startswith(language.line):
            comments += 1
    return comments / lines if lines else 0.0
