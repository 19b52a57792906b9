"""How a model talks: the chat template, its variables and the tokens that end its turn."""

from __future__ import annotations

from internevo.align.conversation import Message, Speaker
from internevo.align.load_template import INTERNLM2, has_template, load_template, recorded_template
from internevo.align.template import ChatTemplate
from internevo.files.errors import UserError
from internevo.hf.tokenizer_files import ChatFiles
from internevo.train.own_files import StoreChat
from internevo.train.stored_model import StoredModel


def talking_template(stored: StoredModel, template: str | None = None) -> ChatTemplate:
    """The chat template of a model, and the ids that end its turn.

    That is, in this order: `template`, a file or the name `internlm2`; that of the conversations which the model was
    last trained on; its tokenizer's own. Raises UserError where there is none, and where the model was trained on
    stores whose templates, variables or stops differ.
    """
    tokenizer = stored.needs_tokenizer().path
    if template is None and stored.chats:
        chat = _last(stored)
        return recorded_template(tokenizer, chat.template, chat.variables, chat.stops)
    if template is None and not has_template(tokenizer):
        raise UserError(
            f"{stored.name} has not learned to talk: up to this step it was trained on no store of conversations, and "
            "its tokenizer has no chat template. Make a store with `internevo data chat`, and train on it in a stage, "
            "or in a run that begins from this one (train.init_from). For a model that knows a format already, name it "
            f"with --template FILE, or --template {INTERNLM2}."
        )
    return load_template(tokenizer, template)


def talks(stored: StoredModel) -> bool:
    """Whether there is a format to talk to a model in."""
    return bool(stored.chats) or (stored.tokenizer_path is not None and has_template(stored.tokenizer_path))


def exported_chat(stored: StoredModel, template: str | None = None) -> ChatFiles | None:
    """What an export says about how the model talks.

    None where it was not trained to talk and `template` is not given: its tokenizer's own files are exported as they
    are. Raises UserError as `talking_template` does.
    """
    if template is None and not stored.chats:
        return None
    found = talking_template(stored, template)
    given = dict(stored.chats[-1].variables) if template is None else {}
    asked = [Message(Speaker.user, "Hi"), Message(Speaker.assistant, "Hello"), Message(Speaker.user, "Bye")]
    messages = [one.for_template() for one in asked]
    return ChatFiles(found.text, given, tuple(sorted(found.stops)), messages, found.prompt(asked))


def _last(stored: StoredModel) -> StoreChat:
    """That of the last stage which trained on conversations. Raises UserError where its stores differ."""
    last = stored.chats[-1]
    for one in stored.chats:
        if one.stage == last.stage and one.way != last.way:
            raise UserError(
                f"{stored.name} talks in two ways: stage {last.stage!r} trained on {one.store} and on {last.store}, "
                f"which differ in {_difference(one, last)}. Choose one with --template FILE, or --template "
                f"{INTERNLM2}."
            )
    return last


def _difference(one: StoreChat, other: StoreChat) -> str:
    if one.template != other.template:
        return "their chat templates"
    if one.variables != other.variables:
        return f"their template's variables, {one.variables} and {other.variables}"
    return f"the ids that end a turn, {list(one.stops)} and {list(other.stops)}"
