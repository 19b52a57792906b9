"""Files that others wrote where token ids are expected: what one is, and what to do with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_HEAD = 512
_LLM_C = (
    (20240326, "a model"),
    (20240327, "a model's activations"),
    (20240328, "a tokenizer"),
    (20240522, "questions"),
    (20240527, "an optimizer's state"),
)
"""The first numbers of llm.c's files of other things than token ids (llm.c, train_gpt2.py, dev/data)."""
_MAGIC = (
    (b"PAR1", "a parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"\x1f\x8b", "a .gz archive"),
    (b"(\xb5/\xfd", "a .zst archive"),
    (b"PK\x03\x04", "a .zip archive or a file of torch.save"),
    (b"\x80\x02", "a pickle"),
    (b"\x89HDF", "an HDF5 file"),
    (b"MMIDIDX", "the index of a Megatron pair"),
    (b"GGUF", "a GGUF file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\xff\xff\xff\xff", "an Arrow stream"),
    *((number.to_bytes(4, "little"), f"llm.c's file of {what}") for number, what in _LLM_C),
)
"""How files of other kinds begin."""
_TAR = (257, b"ustar")
_AS_LINES = (
    'which are not read. Write its documents as lines of {"tokens": [...]} into a file and make a store of that: '
    "`internevo data import FILE --from internevo`"
)


def described(file: Path) -> str | None:
    """What a file that should hold token ids is instead, with an article; None when it may be ids as well."""
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[_TAR[0] :].startswith(_TAR[1]):
        return "a .tar archive"
    if head.lstrip()[:1] == b"{" and b'"tokens"' in head:
        return "InternEvo's JSON lines of ids: `internevo data import` makes a store of them"
    if head and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "text: `internevo data prepare` makes a store of it"
    return None


def other_store(folder: Path) -> str | None:
    """What a folder of shards that another loader reads is, and what to do; None for any other folder."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if _lists(index, "chunks", "filename"):
        return f"{folder} holds litdata's chunks, {_AS_LINES}"
    if _lists(index, "shards", "format"):
        return f"{folder} holds shards of MosaicML's streaming, {_AS_LINES}"
    return None


def _lists(index: Any, key: str, of: str) -> bool:
    items = index.get(key) if isinstance(index, dict) else None
    return isinstance(items, list) and bool(items) and all(isinstance(one, dict) and of in one for one in items)
