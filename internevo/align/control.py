"""Control tokens, and texts that spell one: such a text could end its message and begin another speaker's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from internevo.align.conversation import Speaker

THINK_TAGS = frozenset({"<think>", "</think>"})
"""In which thoughts stand in front of a content; a text may name them."""


class ControlTokens:
    """The tokens of a tokenizer that a text may not spell."""

    def __init__(self, fast: Any, written: Iterable[int], own: Iterable[int], template: str):
        """Of the added tokens of a `tokenizers.Tokenizer`: special ones, and those that a template writes, be it that
        they are among `written` or stand in its source. The assistant may spell those of its `own` answers."""
        added = fast.get_added_tokens_decoder()
        written, own = set(written), set(own)
        control = {
            number: one
            for number, one in added.items()
            if one.special or number in written or (one.content in template and one.content not in THINK_TAGS)
        }
        assistants = {
            number: one
            for number, one in control.items()
            if one.content not in THINK_TAGS and (one.special or number not in own)
        }
        others = {number: one for number, one in control.items() if one.special or one.content not in THINK_TAGS}
        self._of_assistant, self._of_others = _finder(fast, assistants.values()), _finder(fast, others.values())

    def spelled(self, speaker: Speaker, text: str) -> str | None:
        """The first control token in a text."""
        return (self._of_assistant if speaker is Speaker.assistant else self._of_others)(text)


def _finder(fast: Any, tokens: Iterable[Any]) -> Callable[[str], str | None]:
    """Finds the first of some tokens in a text, as the tokenizer would: some of them after it is normalised."""
    as_it_is = _pattern(one.content for one in tokens)
    changed = fast.normalizer.normalize_str if fast.normalizer is not None else None
    normalised = _pattern(changed(one.content) for one in tokens if one.normalized) if changed else None

    def find(text: str) -> str | None:
        found = as_it_is.search(text) if as_it_is else None
        if found is None and changed is not None and normalised is not None:
            found = normalised.search(changed(text))
        return found[0] if found else None

    return find


def _pattern(texts: Iterable[str]) -> re.Pattern[str] | None:
    names = sorted(set(texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names))) if names else None
