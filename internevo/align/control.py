"""Control tokens, and texts that spell one: such a text could end its message and begin another speaker's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from internevo.align.conversation import Speaker

THINK_TAGS = frozenset({"<think>", "</think>"})
"""In which thoughts stand in front of a content; a text may name them."""


class ControlTokens:
    """The tokens of a tokenizer that a text may not spell."""

    def __init__(self, fast: Any, written: Iterable[int], stops: Iterable[int], own: Iterable[int], template: str):
        """Of the added tokens of a `tokenizers.Tokenizer`: special ones, `stops`, and tags that a template writes: they
        are among `written`, or stand in its source. The assistant may spell those of its `own` answers."""
        written, stops, own = set(written), set(stops), set(own)
        added = fast.get_added_tokens_decoder().items()
        ends = [one for number, one in added if one.special or number in stops]
        tags = {
            number: one
            for number, one in added
            if (number in written and _is_tag(one.content)) or _stands_in(template, one.content)
        }
        tags = {number: one for number, one in tags.items() if one.content not in THINK_TAGS}
        of_others = [one for number, one in tags.items() if number not in own]
        self._of_others = _finder(fast, [*ends, *tags.values()])
        self._of_assistant = _finder(fast, [*(one for one in ends if one.content not in THINK_TAGS), *of_others])

    def spelled(self, speaker: Speaker, text: str) -> str | None:
        """The first control token in a text."""
        return (self._of_assistant if speaker is Speaker.assistant else self._of_others)(text)


def _is_tag(token: str) -> bool:
    """Whether a token has both letters and signs: some tokenizers add words, white space and punctuation too."""
    return any(map(str.isalnum, token)) and not all(one.isalnum() or one.isspace() for one in token)


def _stands_in(template: str, token: str) -> bool:
    """Whether a template's source has a tag such as `<|user|>`; its own words and signs are none."""
    return _is_tag(token) and not token[0].isalnum() and not token[-1].isalnum() and token in template


def _finder(fast: Any, tokens: Sequence[Any]) -> Callable[[str], str | None]:
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
    names = sorted({*texts} - {""}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names))) if names else None
