"""The chat template of a tokenizer, tried out on short conversations before anything is made with it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from internevo.align.control import ControlTokens
from internevo.align.conversation import Call, Conversation, Message, NotAConversation, Speaker
from internevo.align.template import ChatTemplate
from internevo.files.errors import UserError
from internevo.hf.tokenizer_files import fast_from_sentencepiece
from internevo.tokens.tokenizer import Tokenizer, load_tokenizer

INTERNLM2 = "internlm2"
"""The name of the template that comes with the package."""


def load_template(
    tokenizer: Path, template: str | None = None, variables: Mapping[str, str] | None = None, day: date | None = None
) -> ChatTemplate:
    """The chat template of a tokenizer; or of a file, or the one called `internlm2`.

    `variables` are more that the template knows; `day` is the one that it writes, today when absent.

    Raises UserError where there is none, where it cannot be told what the assistant writes, and where no token that
    ends a turn would be trained: such a model never stops.
    """
    loaded = load_tokenizer(tokenizer)
    settings = _json_beside(loaded.path, "tokenizer_config.json")
    found = _with_tokenizer(_template_text(loaded.path, settings, template), loaded, settings, variables or {}, day)
    return _tried_out(found, {loaded.eos_id, *_declared_stops(loaded.path), _end_of_turn(found)})


def recorded_template(tokenizer: Path, text: str, variables: Mapping[str, Any], stops: Iterable[int]) -> ChatTemplate:
    """A template as `data chat` recorded it in a store. Raises UserError as `load_template` does."""
    loaded = load_tokenizer(tokenizer)
    settings = _json_beside(loaded.path, "tokenizer_config.json")
    return _tried_out(_with_tokenizer(text, loaded, settings, variables), stops)


def has_template(tokenizer: Path) -> bool:
    """Whether the tokenizer brings a chat template."""
    file = load_tokenizer(tokenizer).path
    return _own_template(file, _json_beside(file, "tokenizer_config.json")) is not None


def _with_tokenizer(
    text: str, loaded: Tokenizer, settings: Mapping[str, Any], variables: Mapping[str, Any], day: date | None = None
) -> ChatTemplate:
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
    return ChatTemplate(text, fast, {**names, **variables}, day=day or date.today())


def _tried_out(found: ChatTemplate, stops: Iterable[int]) -> ChatTemplate:
    """The template with what can be seen of it only as it writes. Raises UserError as `load_template` does."""
    found.stops = frozenset(stops)
    found.thinks = "reasoning_content" in found.text or _writes_thoughts(found)
    written, own = _try_out(found)
    found.control = ControlTokens(found.fast, written, found.stops, own, found.text)
    return found


def _template_text(tokenizer: Path, settings: Mapping[str, Any], template: str | None) -> str:
    if template == INTERNLM2:
        return Path(__file__).with_name("internlm2.jinja").read_text(encoding="utf-8")
    if template is not None:
        file = Path(template)
        if not file.is_file():
            raise UserError(f"the template {template} is no file; {INTERNLM2!r} is the name of one that is built in")
        return _read(file)
    if (found := _own_template(tokenizer, settings)) is None:
        raise UserError(
            f"{tokenizer.parent} has no chat template. Name a file of one with --template, or --template {INTERNLM2} "
            "for InternLM2's."
        )
    return found


def _own_template(tokenizer: Path, settings: Mapping[str, Any]) -> str | None:
    """The template beside a tokenizer's file; None where there is none."""
    if (file := tokenizer.with_name("chat_template.jinja")).is_file():
        return _read(file)
    found = settings.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        if (found := named.get("default")) is None:
            raise UserError(
                f"{tokenizer.with_name('tokenizer_config.json')} has several chat templates and none is called "
                "'default'. Name a file of the one to use with --template."
            )
    return found if isinstance(found, str) else None


def _read(template: Path) -> str:
    try:
        return template.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"the template {template} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None


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


_ASKED = (Message(Speaker.user, "Asked first"), Message(Speaker.user, "Asked second"))
_ANSWERED = (
    Message(Speaker.assistant, "Answered first", trained=True),
    Message(Speaker.assistant, "Answered second", trained=True),
)
_PROBE = Conversation((_ASKED[0], _ANSWERED[0], _ASKED[1], _ANSWERED[1]))
_TOOL = {"type": "function", "function": {"name": "lookup", "description": "Described", "parameters": {}}}
_CALL = Message(Speaker.assistant, "", calls=(Call("lookup", {"key": "Called first"}, "callnr001"),), trained=True)
_RESULT = Message(Speaker.tool, "Returned first", name="lookup", call_id="callnr001")
_MORE_PROBES = (
    replace(_PROBE, messages=(Message(Speaker.system, "Told first"), *_PROBE.messages)),
    Conversation((_ASKED[0], _CALL, _RESULT, _ANSWERED[0], _ASKED[1], _ANSWERED[1]), (_TOOL,)),
    Conversation((_ASKED[0], replace(_ANSWERED[0], thinking="Thought first"))),
    Conversation((_ASKED[0], replace(_CALL, thinking="Thought first"), _RESULT, _ANSWERED[0]), (_TOOL,)),
)
"""What some templates refuse, or cannot write so that it is plain what the assistant writes."""


def _end_of_turn(template: ChatTemplate) -> int:
    """The control token that follows the answers of a conversation, the last and the one before."""
    try:
        text, _ = template.write(_PROBE, len(_PROBE.messages), prompt=False)
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


def _writes_thoughts(template: ChatTemplate) -> bool:
    """Whether it does where it is given them apart, by whatever name it calls them."""
    for probe in _MORE_PROBES:
        try:
            text, _ = template.write(probe, len(probe.messages), prompt=False)
        except NotAConversation:
            continue
        if "Thought first" in text:
            return True
    return False


def _try_out(template: ChatTemplate) -> tuple[set[int], set[int]]:
    """The added tokens that the template writes, and those that are in answers of the assistant and end none.

    Raises UserError unless what a model writes can be told in a simple conversation, its end included.
    """
    try:
        found = [_try(template, _PROBE)]
    except NotAConversation as error:
        hint = " Put {% generation %} and {% endgeneration %} around it in the template, its end included."
        raise UserError(
            f"it cannot be told from this chat template what the assistant writes: {error}."
            + ("" if template.marked else hint)
        ) from None
    for probe in _MORE_PROBES:
        try:
            found.append(_try(template, probe))
        except NotAConversation:
            continue  # conversations like this are refused later, each with its reason
    written, own = (set().union(*sets) for sets in zip(*found, strict=True))
    return written, own - template.stops


def _try(template: ChatTemplate, probe: Conversation) -> tuple[set[int], set[int]]:
    """The added tokens of a conversation, and those that stand in answers. Raises UserError for wrong marks."""
    rendered = template.render(probe)
    encoded = template.fast.encode(rendered.text, add_special_tokens=False)
    if template.marked:
        _check_marks(template, probe, rendered.text, rendered.marks)
    answers = template.answers(rendered, encoded)
    added = set(template.fast.get_added_tokens_decoder())
    within = {token for one in answers.values() for token in encoded.ids[one.first : one.last]}
    return added & set(encoded.ids), added & within


def _check_marks(template: ChatTemplate, probe: Conversation, text: str, marks: Sequence[tuple[int, int]]) -> None:
    """Raise UserError where a template marks more than the assistant writes, or less."""
    marked = "".join(text[begin:end] for begin, end in marks)
    for one in probe.messages:
        if one.speaker is not Speaker.assistant and one.content in marked:
            raise UserError(
                f"the chat template marks {one.content!r}, which the {one.speaker} says, as what the assistant writes. "
                "Put {% generation %} and {% endgeneration %} around the answers alone."
            )
        if one.thinking and one.thinking in text and one.thinking not in marked:
            raise UserError(
                "the chat template writes what the assistant thinks outside of what it marks. Put {% generation %} "
                "before it, or leave thoughts out."
            )
    for number, (begin, _) in zip(probe.answers, marks, strict=False):
        prompt, _ = template.write(probe, number, prompt=True)
        if text.startswith(prompt) and begin < len(prompt):
            raise UserError(
                f"the chat template marks {text[begin : len(prompt)]!r} as what the assistant writes, and it is given "
                "that with the question. Put {% generation %} after it."
            )
