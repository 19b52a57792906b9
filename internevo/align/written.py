"""What a rendered text has to hold of its conversation, and where: answers in their places, all else outside of them.

A template may leave something out, change it, or write it where it does not belong. So every message is looked for:

    text      <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎Hello<|im_end|>⏎<|im_start|>user⏎...
    answers                                                       ^^^^^^^^^^^^^^^
    looked for here    user: Hi                                   assistant: Hello        user: ...

What stands at different places is counted: a call of `weather` is not there because the answer says "weather". Counts
are lower bounds, so that nothing is refused that is written whole.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from itertools import pairwise
from typing import Any

from internevo.align.conversation import Call, Conversation, Message, NotAConversation, Speaker


def check_written(conversation: Conversation, text: str, answers: Mapping[int, tuple[int, int]]) -> None:
    """Raise NotAConversation unless the text holds every message, each after the one before.

    `answers` has the characters of the text that are trained, by the numbers of the messages; `(begin, end)`. Thoughts
    may be left out.
    """
    borders = [0, *(place for number in sorted(answers) for place in answers[number]), len(text)]
    if any(before > after for before, after in pairwise(borders)):
        raise NotAConversation("the template writes answers in another order")
    place = 0
    for number, one in enumerate(conversation.messages):
        if number in answers:
            begin, end = answers[number]
            where, place = text[begin:end], end
        else:
            until = next((answers[later][0] for later in sorted(answers) if later > number), len(text))
            where = text[place:until]
            place += _end_of(one, where, number)
        if one.speaker is Speaker.assistant:
            _check_answer(one, where, number)
    outside = "\n".join(text[begin:end] for begin, end in zip(borders[::2], borders[1::2], strict=True))
    _check_tools(conversation, answers, outside)


def _end_of(one: Message, where: str, number: int) -> int:
    """The place in `where` after a message."""
    forms = _forms(one.split[1].strip()) if one.speaker is Speaker.tool else [one.split[1].strip()]
    found = [at + len(form) for form in forms if (at := where.find(form)) >= 0]
    if not found:
        raise NotAConversation(
            f"the template changes what message {number + 1} says, leaves it out, or writes it elsewhere"
        )
    return min(found)


def _check_answer(one: Message, where: str, number: int) -> None:
    """Whether a text holds what the assistant says and what it calls."""
    thought, content = one.split
    said = [content, *([thought] if thinks(one, where) else []), *(call.name for call in one.calls)]
    values = Counter(value for call in one.calls for value in _values(call.arguments))
    if content and where.count(content) < sum(each.count(content) for each in said) + _within(values, content):
        raise NotAConversation(
            f"the template changes what message {number + 1} says, leaves it out, or writes it elsewhere"
        )
    for call in one.calls:
        if where.count(call.name) < sum(each.count(call.name) for each in said) + _within(values, call.name):
            raise NotAConversation(f"the template leaves out that message {number + 1} calls {call.name}")
        _check_not_python(call, where, number)
    for value, times in values.items():
        if not any(where.count(form) >= times + sum(each.count(form) for each in said) for form in _forms(value)):
            raise NotAConversation(
                f"the template leaves out the argument {value[:40]!r} of a call in message {number + 1}"
            )


def _check_not_python(call: Call, where: str, number: int) -> None:
    if call.arguments and str(call.arguments) in where:
        raise NotAConversation(
            f"the template writes the arguments of message {number + 1} as Python, {str(call.arguments)[:40]}. Let it "
            "write `arguments | tojson`."
        )


def _check_tools(conversation: Conversation, answers: Container[int], outside: str) -> None:
    """Whether the text outside the answers describes every tool, by its name."""
    names = [tool["function"]["name"] for tool in conversation.tools]
    others = [one for number, one in enumerate(conversation.messages) if number not in answers]
    said = Counter(one.split[1].strip() for one in others) + Counter(call.name for one in others for call in one.calls)
    for name in names:
        if outside.count(name) < sum(each.count(name) for each in names) + _within(said, name):
            raise NotAConversation(f"the template leaves out the tool {name}")


def thinks(one: Message, where: str) -> bool:
    """Whether a text holds the thoughts of a message, beside what the message says."""
    thought, content = one.split
    return bool(thought) and where.count(thought) > content.count(thought)


def _within(values: Mapping[str, int], text: str) -> int:
    """How often a text stands in some values at least, however these are written."""
    return sum(times * min(form.count(text) for form in _forms(value)) for value, times in values.items())


def _values(arguments: Any) -> Iterator[str]:
    """The texts and numbers in a tree of plain values, as texts."""
    if isinstance(arguments, dict | list):
        for one in arguments.values() if isinstance(arguments, dict) else arguments:
            yield from _values(one)
    elif isinstance(arguments, str):
        yield from filter(None, [arguments.strip()])
    elif arguments is not None and not isinstance(arguments, bool):
        yield json.dumps(arguments)


def _forms(text: str) -> list[str]:
    """How a text may stand in another: as it is, or within quotes in JSON or Python."""
    return list(
        dict.fromkeys([text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1], repr(text)[1:-1]])
    )
