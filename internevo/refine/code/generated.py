"""Files that nobody wrote: a program's output, and code packed for machines."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from internevo.refine.code.languages import Language

_HEAD_LINES = 15
"""Programs say at the top what they have made."""

_SAYS_SO = re.compile(
    r"@generated\b"
    r"|\bauto-?generated\b(?!\s+(?:id|key|name|value)s?\b)"
    r"|\bautomatically (?:generated|created)\s+(?:by|from|with|using|file|code|on)\b"
    r"|\b(?:this|the) (?:file|code|module) (?:is|was|has been) (?:automatically )?generated\b"
    r"|\bgenerated (?:by|from)\b.*\bdo not (?:edit|modify|change)\b"
    r"|\bdo not (?:edit|modify|change) (?:this file|by hand|manually|it by hand)\b",
    re.IGNORECASE,
)
_NAMES = re.compile(
    r"\.min\.(?:js|css|mjs)$|\.bundle\.js$|[._]pb2?(?:_grpc)?\.(?:pyi?|go|cc|h|js|d\.ts)$"
    r"|^(?:package-lock|npm-shrinkwrap|composer-lock)\.json$|^pnpm-lock\.yaml$|\.designer\.cs$|\.g\.(?:cs|dart)$",
    re.IGNORECASE,
)


def is_generated(path: str, text: str) -> bool:
    """Whether a file's name or one of its first lines says that a program made it."""
    if _NAMES.search(PurePosixPath(path).name):
        return True
    head = text[:4000].split("\n", _HEAD_LINES)[:_HEAD_LINES]
    return any(_SAYS_SO.search(line) for line in head)


def is_minified(text: str, language: Language, max_mean_line: float, max_line: int) -> bool:
    """Whether the lines are longer than a person writes them. Prose is left alone: its lines may be paragraphs."""
    if language.prose:
        return False
    lines = text.splitlines()
    return len(text) / len(lines) > max_mean_line or max(map(len, lines)) > max_line
