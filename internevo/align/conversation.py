"""Conversations, in the ways in which people write them, read into one form.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "tools": [...]}
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "system": "..."}   ShareGPT
    {"prompt": "Hi", "completion": "Hello"}
    {"instruction": "Translate", "input": "Hi", "output": "Salut"}                                              Alpaca

A message of the assistant may have `tool_calls`, and may say with `loss: false` or `weight: 0` that it is not trained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any


class NotAConversation(ValueError):
    """Why something cannot be used as one."""


class Speaker(StrEnum):
    """Whose message it is; the values are what templates call the roles."""

    system = "system"
    user = "user"
    assistant = "assistant"
    tool = "tool"


SPEAKERS = {
    **dict.fromkeys(("system", "developer"), Speaker.system),
    **dict.fromkeys(("user", "human", "prompter"), Speaker.user),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "function_call"), Speaker.assistant),
    **dict.fromkeys(("tool", "environment", "function", "observation", "ipython"), Speaker.tool),
}
"""What they are called."""


_THINKING = ("reasoning_content", "thinking", "reasoning")
"""What data and templates call what the assistant thinks."""
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """A tool that the assistant calls."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None


@dataclass(frozen=True)
class Message:
    """What one of them says."""

    speaker: Speaker
    content: str
    thinking: str = ""
    """What the assistant thought before it answered."""
    calls: tuple[Call, ...] = ()
    name: str | None = None
    """Of the tool that answers."""
    call_id: str | None = None
    trained: bool = False

    @property
    def split(self) -> tuple[str, str]:
        """What the assistant thought, and what it then says; thoughts may also stand in front of the content."""
        if self.speaker is not Speaker.assistant:
            return "", self.content
        inline = _THOUGHT.match(self.content)
        thought = self.thinking or (inline[1] if inline else "")
        return thought.strip(), (self.content[inline.end() :] if inline else self.content).strip()

    def for_template(self) -> dict[str, Any]:
        """As chat templates take it."""
        found: dict[str, Any] = {"role": str(self.speaker), "content": self.content}
        if self.thinking:
            found |= dict.fromkeys(_THINKING, self.thinking)
        if self.calls:
            found["tool_calls"] = [
                {
                    **({"id": one.id} if one.id else {}),
                    "type": "function",
                    "function": {"name": one.name, "arguments": one.arguments},
                }
                for one in self.calls
            ]
        named = {"name": self.name, "tool_call_id": self.call_id}
        return found | {key: value for key, value in named.items() if value}


@dataclass(frozen=True)
class Conversation:
    """Messages in order; the last is an answer of the assistant."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    """What the assistant may call, as JSON schemas."""
    left_out: int = field(default=0, compare=False)
    """How many messages stood after its last answer."""

    @property
    def answers(self) -> list[int]:
        """Which messages are the assistant's."""
        return [number for number, one in enumerate(self.messages) if one.speaker is Speaker.assistant]

    def begin(self, messages: int) -> Conversation:
        """Its first messages, of which the last alone is trained."""
        *before, last = self.messages[:messages]
        return replace(self, messages=(*(replace(one, trained=False) for one in before), last), left_out=0)

    def without_thinking(self) -> Conversation:
        """The answers alone."""
        messages = [replace(one, thinking="", content=one.split[1]) if one.split[0] else one for one in self.messages]
        return replace(self, messages=tuple(messages))

    def with_inline_thinking(self) -> Conversation:
        """Thoughts in front of each answer, for templates that know of none."""
        messages = [
            replace(one, thinking="", content=f"<think>\n{one.thinking}\n</think>\n\n{one.content}")
            if one.thinking
            else one
            for one in self.messages
        ]
        return replace(self, messages=tuple(messages))


def read_conversation(value: Mapping[str, Any]) -> Conversation:
    """The conversation that a line or row holds. Raises NotAConversation, which says why it cannot be used."""
    ways = [read for keys, read in _WAYS if all(value.get(key) is not None for key in keys)]
    if len(ways) != 1:
        names = ", or ".join(" and ".join(keys) for keys, _ in _WAYS)
        raise NotAConversation(f"is written in {len(ways)} ways" if ways else f"has none of: {names}")
    messages = list(ways[0](value))
    answers = [number for number, one in enumerate(messages) if one.speaker is Speaker.assistant]
    if not answers:
        raise NotAConversation("has no message of the assistant")
    if answers[0] == 0:
        raise NotAConversation("begins with the assistant")
    if not any(one.trained for one in messages):
        raise NotAConversation("has no message that is to be trained")
    whole = messages[: answers[-1] + 1]
    return Conversation(tuple(whole), tuple(_tools(value.get("tools"))), len(messages) - len(whole))


def _listed(key: str) -> Callable[[Mapping[str, Any]], Iterator[Message]]:
    """Messages one after the other, after a system message that may stand beside them."""

    def read(value: Mapping[str, Any]) -> Iterator[Message]:
        if system := _text(value.get("system"), "system"):
            yield Message(Speaker.system, system)
        found = value[key]
        if not isinstance(found, list):
            raise NotAConversation(f"{key} is not a list")
        for number, one in enumerate(found, 1):
            if not isinstance(one, dict):
                raise NotAConversation(f"message {number} is not a mapping")
            yield _message(one, f"message {number}")

    return read


def _completion(value: Mapping[str, Any]) -> Iterator[Message]:
    """`prompt` and `completion`: texts, or lists of messages."""
    for key, speaker in (("prompt", Speaker.user), ("completion", Speaker.assistant)):
        if isinstance(value[key], list):
            for one in _listed(key)({**value, "system": None}):
                yield replace(one, trained=one.trained and key == "completion")
        else:
            yield _said(speaker, _text(value[key], key), key)


def _alpaca(value: Mapping[str, Any]) -> Iterator[Message]:
    """`instruction`, which may have `input` and a `history` of pairs before it, and `output`."""
    if system := _text(value.get("system"), "system"):
        yield Message(Speaker.system, system)
    history = value.get("history") or []
    if not isinstance(history, list) or not all(isinstance(one, list) and len(one) == 2 for one in history):
        raise NotAConversation("history is not a list of pairs")
    for asked, answered in history:
        yield _said(Speaker.user, _text(asked, "history"), "history")
        yield _said(Speaker.assistant, _text(answered, "history"), "history")
    asked = "\n".join(filter(None, (_text(value[key], key) for key in ("instruction", "input") if key in value)))
    yield _said(Speaker.user, asked, "instruction")
    yield _said(Speaker.assistant, _text(value["output"], "output"), "output")


_WAYS: tuple[tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Iterator[Message]]], ...] = (
    (("messages",), _listed("messages")),
    (("conversations",), _listed("conversations")),
    (("prompt", "completion"), _completion),
    (("instruction", "output"), _alpaca),
)


def _said(speaker: Speaker, text: str, where: str) -> Message:
    if not text.strip():
        raise NotAConversation(f"{where} has no text")
    return Message(speaker, text, trained=speaker is Speaker.assistant)


def _message(value: Mapping[str, Any], where: str) -> Message:
    called = value.get("role", value.get("from"))
    speaker = SPEAKERS.get(called) if isinstance(called, str) else None
    if speaker is None:
        raise NotAConversation(f"{where} is by {called!r}, who is none of {', '.join(SPEAKERS)}")
    content = _text(value.get("content", value.get("value")), where)
    found = value.get("tool_calls")
    if called == "function_call":
        found, content = _json(content, where), ""
    elif found is None and value.get("function_call"):
        found = value["function_call"]
    calls = tuple(_calls(found, where))
    thinking = next((text for key in _THINKING if (text := value.get(key))), None)
    answers = speaker is Speaker.assistant
    if (calls or thinking) and not answers:
        raise NotAConversation(f"{where}: only the assistant thinks and calls tools")
    if not content.strip() and not calls and speaker is not Speaker.tool:
        raise NotAConversation(f"{where} has no text")
    return Message(
        speaker,
        content,
        _text(thinking, where),
        calls,
        _text(value.get("name"), where) or None,
        _text(value.get("tool_call_id"), where) or None,
        trained=_trained(value, answers, where),
    )


def _trained(value: Mapping[str, Any], answers: bool, where: str) -> bool:
    for key in ("loss", "weight"):
        if (found := value.get(key)) is None:
            continue
        if found not in (0, 1):
            raise NotAConversation(f"{where}: {key} {found!r} is neither 0 nor 1; others are not supported")
        if not answers and key == "loss" and found:
            raise NotAConversation(f"{where}: only what the assistant says is trained")
        answers = answers and bool(found)
    return answers


def _text(value: Any, where: str) -> str:
    """A text, or the texts of a list of parts, in one; empty for None."""
    if isinstance(value, list):
        kinds = {one.get("type", "text") if isinstance(one, dict) else "text" for one in value}
        if kinds - {"text"}:
            raise NotAConversation(f"{where} holds {', '.join(sorted(map(str, kinds - {'text'})))}, not only text")
        return "".join(_text(one.get("text") if isinstance(one, dict) else one, where) for one in value)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise NotAConversation(f"{where} holds {type(value).__name__} where text should be")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise NotAConversation(f"{where} holds half of a surrogate pair") from None
    return value


def _calls(value: Any, where: str) -> Iterator[Call]:
    """One call or a list of them: `{name, arguments}`, perhaps within `{type: function, function: ...}`."""
    for one in value if isinstance(value, list) else [value] if value is not None else []:
        found = one.get("function", one) if isinstance(one, dict) else one
        if not isinstance(found, dict) or not isinstance(found.get("name"), str) or not found["name"]:
            raise NotAConversation(f"{where} calls a tool without a name")
        arguments = found.get("arguments", found.get("parameters"))
        arguments = _json(arguments, where) if isinstance(arguments, str) else {} if arguments is None else arguments
        if not isinstance(arguments, dict):
            raise NotAConversation(f"{where} calls {found['name']} with arguments that are no JSON object")
        yield Call(found["name"], arguments, one.get("id") if isinstance(one.get("id"), str) else None)


def _tools(value: Any) -> Iterator[dict[str, Any]]:
    found = _json(value, "tools") if isinstance(value, str) and value.strip() else value or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise NotAConversation("tools is not a list of JSON schemas")
    for one in found:
        described = one.get("function", one)
        if not isinstance(described, dict) or not isinstance(described.get("name"), str):
            raise NotAConversation("tools has one without a name")
        yield {"type": "function", "function": described}


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise NotAConversation(f"{where} holds {text[:40]!r} where JSON should be") from None
