"""What runs, stages, sources, sweeps and refineries may be called."""

from __future__ import annotations

import unicodedata

MOST_BYTES = 200
"""Of a name in UTF-8: a file system's 255, less what is put after it."""
RESERVED = ("heldout",)
"""The documents that are kept from training are called so."""
_MARKS = "-_.+"


def name_problem(name: str) -> str | None:
    """What is wrong with a name, to be put after it; None when nothing is.

    A name becomes a folder, a part of a chart's name, and a word on a console. So it has letters and digits of any
    script and the marks `- _ . +`, begins with a letter, a digit or `_`, is not long, and is no word that means
    something else here.
    """
    if not name:
        return "is empty"
    if name in RESERVED:
        return "is what the documents kept from training are called; choose another name"
    if len(name.encode(errors="replace")) > MOST_BYTES:
        return f"is longer than {MOST_BYTES} bytes; choose a shorter name"
    # letters, what is written above and below them, digits
    strange = [one for one in name if one not in _MARKS and unicodedata.category(one)[0] not in "LMN"]
    if strange:
        return f"has {strange[0]!a}; use letters and digits of any script, and - _ . +"
    if name[0] != "_" and unicodedata.category(name[0])[0] not in "LN":
        return "must begin with a letter, a digit or _"
    return None
