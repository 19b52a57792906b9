"""Chat templates: a conversation as the text that a model sees, and what of that text its answers are.

A template is Jinja, as Hugging Face's tokenizers have it, and their own engine renders it. Which part of the text a
model is to write is never guessed:

- where the template marks it with `{% generation %}`, that is it;
- else the beginning of a conversation is rendered twice: as the model gets it before it answers, with the prompt for
  an answer, and with the answer as its last message. If the whole conversation begins with exactly the first text, the
  answer is what follows, up to the first token that ends a turn. That has to stand where the second text agrees as
  well. If it is otherwise, as where a template drops thoughts later on, the conversation is refused.

    whole                    <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎Hello<|im_end|>⏎<|im_start|>user⏎...
    before the answer        <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎
    with the answer          <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎Hello<|im_end|>⏎
    trained                                                                     Hello<|im_end|>
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time
from typing import Any

import numpy as np

from internevo.align.control import ControlTokens
from internevo.align.conversation import Conversation, Message, NotAConversation, Speaker
from internevo.align.written import check_written

_MARKED = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


@dataclass(frozen=True)
class Answer:
    """What the assistant writes of a text, the token that ends it included."""

    begin: int
    end: int
    """In characters."""
    first: int
    last: int
    """In tokens. A token across the beginning is left out: a model that is asked sees another one there."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text."""

    conversation: Conversation
    """As it was given to the template."""
    text: str
    marks: list[tuple[int, int]]
    """Characters of the text that the template marks as the assistant's."""


@dataclass
class ChatTemplate:
    """A template and the tokenizer whose control tokens it writes."""

    text: str
    fast: Any
    """The `tokenizers.Tokenizer`, which turns control tokens in a rendered text into their ids."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """What the template knows beside the conversation, such as `bos_token`."""
    stops: frozenset[int] = frozenset()
    """Ids that end the assistant's turn."""
    control: ControlTokens | None = None
    """The tokens that no text may spell."""
    thinks: bool = True
    """Whether it writes what the assistant thinks, or knows of it; else thoughts are given to it within the answers."""
    day: date = field(default_factory=date.today)
    """The day that templates write into conversations, with `strftime_now`."""

    @property
    def marked(self) -> bool:
        """Whether the template itself says what the assistant writes."""
        return bool(_MARKED.search(self.text))

    def render(self, conversation: Conversation) -> Rendered:
        """The conversation as text. Raises NotAConversation where the template refuses it."""
        if not self.thinks:
            conversation = conversation.with_inline_thinking()
        return Rendered(conversation, *self.write(conversation, len(conversation.messages), prompt=False))

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text after which the assistant answers. Raises NotAConversation where the template refuses it."""
        conversation = Conversation(tuple(messages))
        if not self.thinks:
            conversation = conversation.with_inline_thinking()
        return self.write(conversation, len(messages), prompt=True)[0]

    def answers(self, rendered: Rendered, encoding: Any) -> dict[int, Answer]:
        """What the assistant writes, by the numbers of its messages; all that are trained are among them.

        `encoding` is the tokenizer's, of the text. Raises NotAConversation where it is not plain what the assistant
        writes, where no token ends it, and where the template leaves out or changes what a message says.
        """
        ids = np.array(encoding.ids, np.int64)
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        stops = np.flatnonzero(np.isin(ids, sorted(self.stops)))
        found: dict[int, Answer] = {}
        for number, (begin, end) in self._places(rendered).items():
            first = int(np.searchsorted(offsets[:, 0], begin))
            within = stops[(stops >= first) & (offsets[stops, 0] < end)]
            if self.marked:
                within = within[-1:]  # only white space may be marked after the end
                within = [at for at in within if not rendered.text[offsets[at, 1] : end].strip()]
            else:
                within = within[offsets[within, 1] <= end]
            if not len(within):
                raise NotAConversation(self._endless(number, rendered.text[begin:end]))
            last = int(within[0])
            found[number] = Answer(begin, int(offsets[last, 1]), first, last + 1)
        places = {number: (one.begin, one.end) for number, one in found.items()}
        check_written(rendered.conversation, rendered.text, places)
        for number, (begin, end) in places.items() if not self.marked else ():
            self._check_prompted(rendered.conversation, number, rendered.text[begin:end])
        return found

    def _endless(self, number: int, text: str) -> str:
        if not self.marked:
            return f"message {number + 1}: no token ends the assistant's turn where it should"
        return (
            f"message {number + 1}: the template marks {text[:40]!r} as what the assistant writes, without the token "
            "that ends its turn: a model trained on it would never stop. Move {% endgeneration %} after that token"
        )

    def _places(self, rendered: Rendered) -> dict[int, tuple[int, int]]:
        """In which characters of the text each message of the assistant stands; its end is within, perhaps before."""
        numbers = rendered.conversation.answers
        if self.marked:
            if len(rendered.marks) != len(numbers):
                raise NotAConversation(f"the template marks {len(rendered.marks)} answers and there are {len(numbers)}")
            return dict(zip(numbers, rendered.marks, strict=True))
        messages = rendered.conversation.messages
        return {n: self._place(rendered.conversation, n, rendered.text) for n in numbers if messages[n].trained}

    def _place(self, conversation: Conversation, number: int, whole: str) -> tuple[int, int]:
        """Where a message is written in the whole text, and up to where that is certain."""
        begin, end = len(self._asked(conversation, number, whole)), len(whole)
        if number + 1 < len(conversation.messages):
            until = replace(conversation, messages=conversation.messages[: number + 1])
            asked = replace(until, messages=(*until.messages, Message(Speaker.user, "?")))
            end = 0
            for one in (until, asked):  # some templates write the last answer otherwise than one before a question
                with suppress(NotAConversation):
                    text, _ = self.write(one, len(one.messages), prompt=False)
                    end = max(end, _agree(text, whole))
        return begin, end

    def _check_prompted(self, conversation: Conversation, number: int, answer: str) -> None:
        """Raise NotAConversation where an answer begins with words that only a prompt could have in front of it."""
        one = conversation.messages[number]
        thought, content = one.split
        before = answer[: max(answer.find(content), 0)]
        if one.calls or thought or not any(map(str.isalnum, before)):
            return
        asked = self.write(conversation, number, prompt=True)
        if asked == self.write(conversation, number, prompt=False):
            raise NotAConversation(
                f"the template has no prompt for message {number + 1}, which begins with {before[:40]!r}: that would "
                "be trained. Let it write that where `add_generation_prompt` is true"
            )

    def _asked(self, conversation: Conversation, answer: int, whole: str) -> str:
        """The text after which the assistant answers, with which the whole text has to begin."""
        text, _ = self.write(conversation, answer, prompt=True)
        if (at := _agree(text, whole)) < len(text):
            at = max(text.rfind("\n", 0, at) + 1, at - 20)
            raise NotAConversation(
                f"before message {answer + 1} the template writes {text[at : at + 40]!r}, and in the whole "
                f"conversation {whole[at : at + 40]!r}"
            )
        return text

    def write(self, conversation: Conversation, messages: int, prompt: bool) -> tuple[str, list[tuple[int, int]]]:
        """The first messages, and what of them the template marks. Raises NotAConversation where it refuses them."""
        from jinja2.exceptions import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        wrong = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
        try:
            with _clock(self.text, self.day):
                texts, spans = render_jinja_template(  # type: ignore[str-unpack]
                    [[one.for_template() for one in conversation.messages[:messages]]],
                    tools=list(conversation.tools) or None,
                    chat_template=self.text,
                    return_assistant_tokens_mask=self.marked,
                    add_generation_prompt=prompt,
                    **self.variables,
                )
        except wrong as error:
            raise NotAConversation(f"the template refuses it: {error}") from None
        return texts[0], list(spans[0]) if spans else []  # type: ignore[arg-type]


@contextmanager
def _clock(template: str, day: date) -> Iterator[None]:
    """Let a template see the beginning of a day as the time that it is. It has no other way in: a function among the
    variables would reach the template as a text."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    if "strftime_now" not in template:
        yield
        return
    known = _compile_jinja_template(template).globals  # of this template alone; it is kept compiled
    known["strftime_now"] = datetime.combine(day, time()).strftime
    try:
        yield
    finally:
        del known["strftime_now"]


def _agree(one: str, other: str) -> int:
    """How many characters both begin with."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:  # the first `low` agree, the first `high` do not
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low
