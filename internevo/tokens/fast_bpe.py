"""Byte-level BPE by tiktoken, which encodes several times faster than the tokenizers library, where both must agree.

tiktoken joins any two neighbours whose bytes together are a token, the token of the lowest rank first; tokenizers joins
only pairs that its list of merges names, the earliest first. The two do the same when

1. merges stand in the order of the ids that they make: then "lowest" and "earliest" mean the same pair; and
2. the bytes of every token, encoded by the merges alone, become that token. Suppose that tiktoken joins `x` and `y` to
   `t` somewhere in a text. Tokens are never split, so all joins inside these bytes so far were between bytes of `t`, in
   the order in which they are done when `t` stands alone. Alone, `t` is made by a named merge, which must be this one.

Both are checked for every token, and so is the splitting of text into words, on a text that holds every character below
U+3100 and some above. A tokenizer for which anything else holds is left to the tokenizers library.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How the `ByteLevel` step itself splits text (GPT-2's pattern)."""


def tiktoken_of(path: Path, fast: tokenizers.Tokenizer) -> tiktoken.Encoding | None:
    """What encodes as `fast`, which was loaded from the `tokenizer.json` at `path`; None where that is not certain."""
    try:
        import tiktoken
    except ImportError:
        return None
    definition = json.loads(path.read_text(encoding="utf-8"))
    pattern, model = _words(definition), definition["model"]
    if pattern is None or not _is_plain(definition):
        return None
    vocabulary: dict[str, int] = model["vocab"]
    byte_of = _byte_of_character()
    added = {token["content"] for token in definition.get("added_tokens", [])}
    tokens = {text: number for text, number in vocabulary.items() if text not in added}
    if not all(character in byte_of for text in tokens for character in text):
        return None
    ranks = {bytes(byte_of[character] for character in text): number for text, number in tokens.items()}
    if any(bytes([byte]) not in ranks for byte in range(256)) or not _merges_agree(model, tokens):
        return None
    encoding = tiktoken.Encoding(path.parent.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    probe = _probe()
    same = encoding.encode_ordinary(probe) == fast.encode(probe, add_special_tokens=False).ids
    return encoding if same else None


def _is_plain(definition: dict[str, Any]) -> bool:
    """Byte-level BPE with nothing that changes text, and no tokens but special ones outside the merges."""
    model = definition["model"]
    unusual = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    return (
        model.get("type") == "BPE"
        and not any(model.get(key) for key in unusual)
        and definition.get("normalizer") is None
        and all(token["special"] for token in definition.get("added_tokens", []))
    )


def _words(definition: dict[str, Any]) -> str | None:
    """The regular expression that splits text into words; None for what is not just that."""
    steps = definition.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", []) if steps.get("type") == "Sequence" else [steps]
    match steps:
        case [{"type": "ByteLevel", "add_prefix_space": False, **rest}] if rest.get("use_regex", True):
            return _GPT2_WORDS
        case [
            {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": behavior, "invert": inverted},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ] if (behavior, inverted) in (("Isolated", False), ("Removed", True)):
            return pattern
    return None


def _merges_agree(model: dict[str, Any], tokens: dict[str, int]) -> bool:
    """The two conditions above."""
    from tokenizers.models import BPE

    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    made = [tokens.get(left + right, -1) for left, right in merges]
    if -1 in made or any(after < before for before, after in pairwise(made)):
        return False
    alone = BPE(model["vocab"], merges)
    return all([one.id for one in alone.tokenize(text)] == [number] for text, number in tokens.items())


def _byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for: printable ones for themselves, the others for
    the bytes that are not printable, in order, from U+0100 on (GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _probe() -> str:
    """Every character below U+3100, some above, among letters, digits, spaces and ends of lines."""
    characters = [chr(code) for code in range(0x3100)] + list("中文字，。！？한국어𝒳🙂👩‍👩‍👧\ufeff\ufffd\U0010ffff")
    return "".join(f"a{c}b {c}7{c}{c}\n{c} {c}'{c}  {c}X" for c in characters) + "1234567 don't I'LL  \n\n \t x   "
