"""How a model talks: the chat template, its variables and the tokens that end its turn."""

from __future__ import annotations

from internevo.align.template import INTERNLM2, ChatTemplate, has_template, load_template, recorded_template
from internevo.files.errors import UserError
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
