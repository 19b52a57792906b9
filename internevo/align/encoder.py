"""Conversations to documents of tokens, in which all is masked but what the assistant writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from internevo.align.choices import ChatOptions, Longer, Thinking, Turns
from internevo.align.conversation import Conversation, NotAConversation, Speaker
from internevo.align.template import ChatTemplate, Rendered
from internevo.align.turns import in_turns, most_that_fit
from internevo.align.written import thinks

DTYPE = np.dtype(np.int32)
"""Of the tokens: signed, for masked ids."""


@dataclass(frozen=True)
class Document:
    """The tokens of one, int32, complements where they are masked; and what is to be counted of it."""

    tokens: np.ndarray
    characters: int
    tallies: dict[str, int]

    @property
    def trained(self) -> bool:
        """Whether anything is: the first token of a document is never predicted."""
        return bool((self.tokens[1:] >= 0).any())


class ChatEncoder:
    """Conversations to documents of tokens, some of which are masked."""

    def __init__(self, template: ChatTemplate, options: ChatOptions):
        self.template, self.options = template, options

    def __call__(self, conversations: Sequence[Conversation]) -> list[list[Document] | str]:
        """The documents of each, or why there are none."""
        found: list[list[Document] | str] = [[] for _ in conversations]
        todo: list[tuple[int, Rendered]] = []
        for number, whole in enumerate(conversations):
            try:
                self._check_spelling(whole)
                todo += [(number, self.template.render(one)) for one in self._parts(whole)]
            except NotAConversation as error:
                found[number] = str(error)
        encoded = self.template.fast.encode_batch([one.text for _, one in todo], add_special_tokens=False)
        for (number, rendered), tokens in zip(todo, encoded, strict=True):
            documents = found[number]
            if isinstance(documents, str):
                continue
            try:
                documents += self._fitting(rendered, tokens)
            except NotAConversation as error:
                found[number] = str(error)
        return found

    def _parts(self, whole: Conversation) -> Iterator[Conversation]:
        if self.options.thinking is Thinking.drop:
            whole = whole.without_thinking()
        if self.options.turns is Turns.together:
            yield whole
        else:
            yield from (whole.begin(number + 1) for number in whole.answers if whole.messages[number].trained)

    def _check_spelling(self, one: Conversation) -> None:
        """A text that spells a control token would become one: a message could begin another speaker's."""
        texts = [(message.speaker, text) for message in one.messages for text in _texts(message.for_template())]
        texts += [(Speaker.system, text) for text in _texts(list(one.tools))]
        for speaker, text in texts:
            if self.template.control is not None and (spelled := self.template.control.spelled(speaker, text)):
                raise NotAConversation(f"its text spells the control token {spelled}")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise NotAConversation("holds half of a surrogate pair") from None

    def _fitting(self, rendered: Rendered, tokens: Any) -> list[Document]:
        """The document, or several for one that is too long. Raises NotAConversation where there is none."""
        most = self.options.max_tokens
        if most is None or len(tokens.ids) <= most:
            document = self._document(rendered, tokens)
            if not document.trained:
                raise NotAConversation("has nothing that would be trained")
            return [document]
        if self.options.longer is Longer.cut:
            cut = self._document(rendered, tokens, most)
            if not cut.trained:
                raise NotAConversation(f"nothing of it would be trained when cut to {most:,} tokens")
            return [replace(cut, tallies={**cut.tallies, "conversations cut": 1})]
        if self.options.longer is Longer.in_parts:
            return self._split(rendered.conversation, most)
        raise NotAConversation(f"has {len(tokens.ids):,} tokens, more than {most:,}")

    def _split(self, whole: Conversation, most: int) -> list[Document]:
        """As many turns in each document as fit, each after the system messages in front."""
        head, turns = in_turns(whole.messages)

        def part(first: int, last: int) -> Rendered:
            messages = (*head, *(message for turn in turns[first:last] for message in turn))
            return self.template.render(replace(whole, messages=messages))

        def fits(first: int, last: int) -> bool:
            return len(self._encode(part(first, last).text).ids) <= most

        found: list[Document] = []
        parts = first = 0
        while first < len(turns):
            last = most_that_fit(fits, first, len(turns))
            if last == first:
                raise NotAConversation(f"a single turn of it has more than {most:,} tokens")
            rendered = part(first, last)
            document = self._document(rendered, self._encode(rendered.text))
            found += [document] if document.trained else []
            parts, first = parts + 1, last
        if not found:
            raise NotAConversation("has nothing that would be trained")
        made = [replace(one, tallies={**one.tallies, "parts of conversations": 1}) for one in found]
        made[0].tallies["parts of conversations of which nothing is trained, left out"] = parts - len(made)
        return made

    def _encode(self, text: str) -> Any:
        return self.template.fast.encode(text, add_special_tokens=False)

    def _document(self, rendered: Rendered, tokens: Any, most: int | None = None) -> Document:
        """Tokens of the rendered text, all masked but the answers that are trained; the first `most`."""
        ids = np.array(tokens.ids, DTYPE)
        begins = np.array(tokens.offsets, np.int64).reshape(-1, 2)[:, 0]
        trained, calls, thoughts = (np.zeros(len(ids), bool) for _ in range(3))
        answers = self.template.answers(rendered, tokens)
        left_out = 0
        for number, one in enumerate(rendered.conversation.messages):
            answer = answers.get(number)
            where = rendered.text[answer.begin : answer.end] if answer else rendered.text
            left_out += bool(one.split[0]) and not thinks(one, where)
            if answer is None or not one.trained:
                continue
            trained[answer.first : answer.last] = True
            calls[answer.first : answer.last] = bool(one.calls)
            if thinks(one, where):
                at = answer.begin + where.find(one.split[0])
                first, last = np.searchsorted(begins, (at, at + len(one.split[0])))
                thoughts[max(first, answer.first) : last] = True
        ids, trained, calls, thoughts = (each[:most] for each in (ids, trained, calls, thoughts))
        tallies = {
            "trained tokens": trained,
            "trained tokens of messages that call tools": calls,
            "trained tokens of thoughts": thoughts,
        }
        counted = {name: int(each.sum()) for name, each in tallies.items()}
        return Document(
            np.where(trained, ids, ~ids).astype(DTYPE),
            len(rendered.text),
            {**counted, "thoughts that the template leaves out": left_out},
        )


def _texts(value: Any) -> Iterator[str]:
    """Every text in a tree of plain values, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield str(key)
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
