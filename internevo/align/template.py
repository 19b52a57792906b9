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

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from internevo.align.conversation import Conversation, Message, NotAConversation, Speaker
from internevo.files.errors import UserError
from internevo.hf.tokenizer_files import fast_from_sentencepiece
from internevo.tokens.tokenizer import Tokenizer, load_tokenizer

INTERNLM2 = "internlm2"
"""The name of the template that comes with the package."""
_MARKED = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


@dataclass(frozen=True)
class Answer:
    """Where the assistant writes a message: characters of the text."""

    begin: int
    end: int
    marked: bool
    """Whether the template says that it ends there. Else it ends before, with the first token that ends a turn."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and which parts of it the assistant writes."""

    text: str
    answers: dict[int, Answer]
    """By the numbers of the messages; all that are trained are among them."""


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

    @cached_property
    def control(self) -> re.Pattern[str] | None:
        """The tokens that no text may spell."""
        names = [one.content for one in self.fast.get_added_tokens_decoder().values() if one.special]
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True)))) if names else None

    @property
    def marked(self) -> bool:
        """Whether the template itself says what the assistant writes."""
        return bool(_MARKED.search(self.text))

    def render(self, conversation: Conversation) -> Rendered:
        """The conversation as text. Raises NotAConversation where the template refuses it, or it is not plain what the
        assistant writes."""
        answers = conversation.answers
        if "reasoning_content" not in self.text:
            conversation = conversation.with_inline_thinking()
        text, spans = self._render(conversation, len(conversation.messages), prompt=False)
        if self.marked:
            if len(spans) != len(answers):
                raise NotAConversation(f"the template marks {len(spans)} answers and there are {len(answers)}")
            found = {number: Answer(*span, marked=True) for number, span in zip(answers, spans, strict=True)}
        else:
            trained = [number for number in answers if conversation.messages[number].trained]
            found = {number: self._answer(conversation, number, text) for number in trained}
        self._check_whole(conversation, text, found)
        return Rendered(text, found)

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text after which the assistant answers. Raises NotAConversation where the template refuses it."""
        return self._render(Conversation(tuple(messages)), len(messages), prompt=True)[0]

    def _check_whole(self, conversation: Conversation, text: str, answers: Mapping[int, Answer]) -> None:
        """Raise NotAConversation where the template leaves something out, but for thoughts, or changes it."""
        for number, one in enumerate(conversation.messages):
            where = text[answers[number].begin : answers[number].end] if number in answers else text
            if one.speaker is not Speaker.tool and one.split[1].strip() not in where:
                raise NotAConversation(f"the template changes what message {number + 1} says, or leaves it out")
            if lost := [call.name for call in one.calls if call.name not in where]:
                raise NotAConversation(f"the template leaves out that message {number + 1} calls {lost[0]}")
        for tool in conversation.tools:
            if (name := tool["function"]["name"]) not in text:
                raise NotAConversation(f"the template leaves out the tool {name}")

    def _answer(self, conversation: Conversation, number: int, whole: str) -> Answer:
        """Where a message is written in the whole text, and up to where that is certain."""
        begin, end = len(self._prompt(conversation, number, whole)), len(whole)
        if number + 1 < len(conversation.messages):
            until = replace(conversation, messages=conversation.messages[: number + 1])
            asked = replace(until, messages=(*until.messages, Message(Speaker.user, "?")))
            end = 0
            for one in (until, asked):  # some templates write the last answer otherwise than one before a question
                with suppress(NotAConversation):
                    text, _ = self._render(one, len(one.messages), prompt=False)
                    end = max(end, _agree(text, whole))
        return Answer(begin, end, marked=False)

    def _prompt(self, conversation: Conversation, answer: int, whole: str) -> str:
        """The text after which the assistant answers, with which the whole text has to begin."""
        text, _ = self._render(conversation, answer, prompt=True)
        if (at := _agree(text, whole)) < len(text):
            at = text.rfind("\n", 0, at) + 1
            raise NotAConversation(
                f"before message {answer + 1} the template writes {text[at : at + 40]!r}, and in the whole "
                f"conversation {whole[at : at + 40]!r}"
            )
        return text

    def _render(self, conversation: Conversation, messages: int, prompt: bool) -> tuple[str, list[tuple[int, int]]]:
        from jinja2.exceptions import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(  # type: ignore[str-unpack]
                [[one.for_template() for one in conversation.messages[:messages]]],
                tools=list(conversation.tools) or None,
                chat_template=self.text,
                return_assistant_tokens_mask=self.marked,
                add_generation_prompt=prompt,
                **self.variables,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise NotAConversation(f"the template refuses it: {error}") from None
        return texts[0], list(spans[0]) if spans else []  # type: ignore[arg-type]


def _agree(one: str, other: str) -> int:
    """How many characters both begin with."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:  # the first `low` agree, the first `high` do not
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low


def load_template(tokenizer: Path, template: str | None = None) -> ChatTemplate:
    """The chat template of a tokenizer; or of a file, or the one called `internlm2`.

    Raises UserError where there is none, where it cannot be told what the assistant writes, and where no token that
    ends a turn would be trained: such a model never stops.
    """
    loaded = load_tokenizer(tokenizer)
    settings = _json_beside(loaded.path, "tokenizer_config.json")
    found = _with_tokenizer(_template_text(loaded.path, settings, template), loaded, settings)
    found.stops = frozenset({loaded.eos_id, *_declared_stops(loaded.path), _end_of_turn(found)})
    _check(found)
    return found


def recorded_template(tokenizer: Path, text: str, variables: Mapping[str, Any], stops: Iterable[int]) -> ChatTemplate:
    """A template as `data chat` recorded it in a store: it was checked when the store was made."""
    loaded = load_tokenizer(tokenizer)
    found = _with_tokenizer(text, loaded, _json_beside(loaded.path, "tokenizer_config.json"))
    return replace(found, variables={**found.variables, **variables}, stops=frozenset(stops))


def has_template(tokenizer: Path) -> bool:
    """Whether the tokenizer brings a chat template."""
    file = load_tokenizer(tokenizer).path
    return _own_template(file, _json_beside(file, "tokenizer_config.json")) is not None


def _with_tokenizer(text: str, loaded: Tokenizer, settings: Mapping[str, Any]) -> ChatTemplate:
    """A template with the names that it uses for the tokenizer's tokens."""
    if loaded.path.suffix == ".json":
        from tokenizers import Tokenizer as Fast

        fast = Fast.from_file(str(loaded.path))
        fast.no_truncation()
        fast.no_padding()
    else:
        fast = fast_from_sentencepiece(loaded.path)
    names: dict[str, Any] = {
        f"{kind}_token": _name(settings.get(f"{kind}_token")) for kind in ("bos", "eos", "pad", "unk")
    }
    names["bos_token"] = names["bos_token"] or (fast.id_to_token(loaded.bos_id) if loaded.prefix else "")
    names["eos_token"] = names["eos_token"] or fast.id_to_token(loaded.eos_id)
    return ChatTemplate(text, fast, names)


def _template_text(tokenizer: Path, settings: Mapping[str, Any], template: str | None) -> str:
    if template == INTERNLM2:
        return Path(__file__).with_name("internlm2.jinja").read_text(encoding="utf-8")
    if template is not None:
        file = Path(template)
        if not file.is_file():
            raise UserError(f"the template {template} is no file; {INTERNLM2!r} is the name of one that is built in")
        return file.read_text(encoding="utf-8")
    found = _own_template(tokenizer, settings)
    if found is None:
        raise UserError(
            f"{tokenizer.parent} has no chat template. Name a file of one with --template, or --template {INTERNLM2} "
            "for InternLM2's."
        )
    return found


def _own_template(tokenizer: Path, settings: Mapping[str, Any]) -> str | None:
    """The template beside a tokenizer's file."""
    if (file := tokenizer.with_name("chat_template.jinja")).is_file():
        return file.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = next((one.get("template") for one in found if one.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _json_beside(tokenizer: Path, name: str) -> dict[str, Any]:
    file = tokenizer.with_name(name)
    try:
        found = json.loads(file.read_bytes()) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}. Repair it, or fetch it again.") from None
    return found if isinstance(found, dict) else {}


def _name(token: Any) -> str:
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def _declared_stops(tokenizer: Path) -> Sequence[int]:
    """Ids that end a generation, as the model's files say."""
    found = _json_beside(tokenizer, "generation_config.json").get("eos_token_id", [])
    found = found if isinstance(found, list) else [found]
    return [one for one in found if isinstance(one, int)]


_PROBE = Conversation(
    (
        Message(Speaker.user, "Asked first"),
        Message(Speaker.assistant, "Answered first", trained=True),
        Message(Speaker.user, "Asked second"),
        Message(Speaker.assistant, "Answered second", trained=True),
    )
)


def _end_of_turn(template: ChatTemplate) -> int:
    """The control token that follows the answers of a conversation, the last and the one before."""
    try:
        text, _ = template._render(_PROBE, len(_PROBE.messages), prompt=False)
    except NotAConversation as error:
        raise UserError(f"the chat template cannot be used: {error}") from None
    encoded = template.fast.encode(text, add_special_tokens=False)
    added = template.fast.get_added_tokens_decoder()
    found = []
    for answer in (_PROBE.messages[number].content for number in _PROBE.answers):
        if text.count(answer) != 1:
            raise UserError(f"the chat template writes an answer {text.count(answer)} times, not once: {text!r}")
        end = text.index(answer) + len(answer)
        after = [(i, begin) for i, (begin, _) in zip(encoded.ids, encoded.offsets, strict=True) if begin >= end]
        token, begin = next(((i, begin) for i, begin in after if i in added), (None, end))
        if token is None or text[end:begin].strip():
            raise UserError(
                f"the chat template ends an answer with {text[end : end + 40]!r}: no control token of the tokenizer. "
                "A model trained on it would never stop."
            )
        found.append(token)
    if found[0] != found[1]:
        names = " and ".join(template.fast.id_to_token(token) for token in found)
        raise UserError(f"the chat template ends answers in two ways, with {names}: when would a model stop?")
    return found[0]


def _check(template: ChatTemplate) -> None:
    """Raise UserError unless what a model writes can be told in a simple conversation, its end included."""
    try:
        rendered = template.render(_PROBE)
    except NotAConversation as error:
        raise UserError(
            f"it cannot be told from this chat template what the assistant writes: {error}. Put {{% generation %}} and "
            "{% endgeneration %} around it in the template, its end included."
        ) from None
    encoded = template.fast.encode(rendered.text, add_special_tokens=False)
    for one in rendered.answers.values():
        marked = rendered.text[one.begin : one.end]
        if one.marked:
            places = zip(encoded.ids, encoded.offsets, strict=True)
            inside = [token for token, (begin, end) in places if one.begin <= begin and end <= one.end]
            if not inside or inside[-1] not in template.stops:
                raise UserError(
                    f"the chat template marks {marked!r} as what the assistant writes, without the token that ends its "
                    "turn: a model trained on it would never stop. Move {% endgeneration %} after that token."
                )
