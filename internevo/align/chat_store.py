"""Conversations to a token store in which only what the assistant writes is trained: `internevo data chat`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from internevo.align.choices import ChatOptions, Longer, Thinking, Turns
from internevo.align.conversation import Conversation, NotAConversation, Speaker, read_conversation
from internevo.align.template import ChatTemplate, Rendered, load_template
from internevo.files.errors import UserError
from internevo.files.hashing import share_of
from internevo.text.batches import in_batches
from internevo.text.corpus import input_files
from internevo.text.documents import ARROW, JSON_LINES, PARQUET, Reject
from internevo.text.pieces import PIECE_BYTES, Piece, cut
from internevo.tokens.build import BytesDone, Manifest, build_store
from internevo.tokens.prepared_folder import COMPLEMENT, check_output
from internevo.tokens.tokenise import Record, TokenisedPiece
from internevo.tokens.tokenizer import load_tokenizer
from internevo.tokens.workers import StoreJob

DTYPE = np.dtype(np.int32)
"""Of the store: signed, for masked ids."""
ENDINGS = (*JSON_LINES, *PARQUET, *ARROW, ".json")
LEFT_OUT = "messages after the last answer, left out"
TOGETHER = 256  # conversations that are rendered and encoded at a time


def prepare_chat(
    inputs: Sequence[Path | str],
    output: Path | str,
    tokenizer: Path | str,
    *,
    template: str | None = None,
    options: ChatOptions = ChatOptions(),  # noqa: B008, it is frozen
    held_out: float = 0.0,
    workers: int = 1,
    max_rejects: float = 0.01,
    shard_tokens: int = 2**30,
    piece_bytes: int = PIECE_BYTES,
    progress: Callable[[BytesDone], None] = lambda done: None,
) -> Manifest:
    """Make the token store folder `output` of conversations: JSON lines, JSON lists, parquet and arrow.

    A document is a conversation, as the chat template writes it; all of it but the assistant's answers is masked. Held
    out are conversations as `prepare` holds out texts. The manifest says how many tokens of which kind are trained.

    Raises UserError as `prepare` does, and for a template from which it cannot be told what the assistant writes.
    """
    encoder = partial(_encoder, Path(tokenizer), template, options, held_out)
    job = chat_job(
        inputs,
        output,
        tokenizer,
        template,
        options,
        encoder,
        held_out=held_out,
        max_rejects=max_rejects,
        shard_tokens=shard_tokens,
        piece_bytes=piece_bytes,
    )
    return build_store(job, workers, progress)


def chat_job(
    inputs: Sequence[Path | str],
    output: Path | str,
    tokenizer: Path | str,
    template: str | None,
    options: ChatOptions,
    encoder: Callable[[], Callable[[Piece, bool], TokenisedPiece]],
    **settings: Any,
) -> StoreJob:
    """What makes a store of conversations in files, each piece of which `encoder` makes tokens of.

    Raises UserError as `prepare_chat` does.
    """
    loaded = load_tokenizer(tokenizer)
    found_template = with_variables(load_template(Path(tokenizer), template), options)
    output = Path(output)
    given = [Path(path) for path in inputs]
    found = [input_files(path) for path in given]
    check_output(output, given)
    files = [file for one in found for file in one.files]
    left_out = sum((one.left_out for one in found), Counter[str]())
    left_out.update(file.suffix for file in files if not file.name.lower().endswith(ENDINGS))
    files = [file for file in files if file.name.lower().endswith(ENDINGS)]
    if not files:
        raise UserError(f"no conversations are there: they are read from files that end in {', '.join(ENDINGS)}")
    chat: dict[str, Any] = {
        "template": found_template.text,
        "stops": sorted(found_template.stops),
        "variables": dict(options.variables),
        **{name: getattr(options, name) for name in ("max_tokens", "longer", "thinking", "turns")},
    }
    # such a template writes the day into each conversation
    today = {"day": date.today().isoformat()} if "strftime_now" in found_template.text else {}
    return StoreJob(
        files=files,
        held_files=(),
        left_out=dict(left_out),
        output=output,
        cut=cut,
        encoder=encoder,
        tokenizer=loaded,
        dtype=DTYPE.name,
        options={"chat": chat, **today},
        masking=COMPLEMENT,
        chat=chat,
        **settings,
    )


def with_variables(template: ChatTemplate, options: ChatOptions) -> ChatTemplate:
    return replace(template, variables={**template.variables, **dict(options.variables)})


def _encoder(
    tokenizer: Path, template: str | None, options: ChatOptions, held_out: float
) -> Callable[[Piece, bool], TokenisedPiece]:
    encode = ChatEncoder(with_variables(load_template(tokenizer, template), options), options)
    return partial(_encode_piece, encode, held_out)


def _encode_piece(encode: ChatEncoder, held_out: float, piece: Piece, all_held_out: bool) -> TokenisedPiece:
    record = Record()
    tallies: Counter[str] = Counter()
    found: list[tuple[np.ndarray, bool]] = []
    for conversations in in_batches(_conversations(piece, record, tallies), lambda one: 1, TOGETHER):
        for (reject, one), documents in zip(conversations, encode([one for _, one in conversations]), strict=True):
            if isinstance(documents, str):
                record.reject(replace(reject, reason=documents))
                continue
            held = all_held_out or (held_out > 0 and share_of(_identity(one)) < held_out)
            for document in documents:
                found.append((document.tokens, held))
                tallies.update(document.tallies)
                record.counts.masked_tokens += int((document.tokens < 0).sum())
                record.counts.characters += document.characters
    record.counts.tallies = dict(tallies)
    return TokenisedPiece.of(record, found, DTYPE)


def _identity(one: Conversation) -> bytes:
    """By which it is held out, however its file was written."""
    return json.dumps([message.for_template() for message in one.messages], sort_keys=True).encode()


def _conversations(piece: Piece, record: Record, tallies: Counter[str]) -> Iterator[tuple[Reject, Conversation]]:
    """What can be read of a piece, each with the reject that it would be; what cannot goes into the record."""
    for file, record.lines, value in piece.rows():
        if isinstance(value, Reject):
            record.reject(value)
        elif value is not None:
            place = Reject(str(file), record.lines, "")
            try:
                one = read_conversation(value)
            except NotAConversation as error:
                record.reject(replace(place, reason=str(error)))
                continue
            tallies[LEFT_OUT] += one.left_out
            yield place, one


@dataclass(frozen=True)
class Document:
    """The tokens of one, int32, complements where they are masked; and what is to be counted of it."""

    tokens: np.ndarray
    characters: int
    tallies: dict[str, int]


class ChatEncoder:
    """Conversations to documents of tokens, some of which are masked."""

    def __init__(self, template: ChatTemplate, options: ChatOptions):
        self.template, self.options = template, options
        self._stops = np.array(sorted(template.stops))

    def __call__(self, conversations: Sequence[Conversation]) -> list[list[Document] | str]:
        """The documents of each, or why there are none."""
        found: list[list[Document] | str] = [[] for _ in conversations]
        todo: list[tuple[int, Conversation, Rendered]] = []
        for number, whole in enumerate(conversations):
            try:
                self._check_spelling(whole)
                todo += [(number, one, self.template.render(one)) for one in self._parts(whole)]
            except NotAConversation as error:
                found[number] = str(error)
        encoded = self.template.fast.encode_batch([one.text for *_, one in todo], add_special_tokens=False)
        for (number, one, rendered), tokens in zip(todo, encoded, strict=True):
            documents = found[number]
            if isinstance(documents, str):
                continue
            try:
                documents += self._fitting(one, rendered, tokens)
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
        control = self.template.control
        for text in _texts([*(message.for_template() for message in one.messages), *one.tools]):
            if control is not None and (spelled := control.search(text)):
                raise NotAConversation(f"its text spells the control token {spelled[0]}")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise NotAConversation("holds half of a surrogate pair") from None

    def _fitting(self, one: Conversation, rendered: Rendered, tokens: Any) -> list[Document]:
        """The document, or several for one that is too long. Raises NotAConversation where there is none."""
        most, document = self.options.max_tokens, self._document(one, rendered, tokens)
        if most is None or len(document.tokens) <= most:
            return [document]
        if self.options.longer is Longer.cut:
            kept = document.tokens[:most]
            if (kept[1:] < 0).all():
                raise NotAConversation(f"nothing of it would be trained when cut to {most:,} tokens")
            trained = int((kept >= 0).sum())
            tallies = {"conversations cut": 1, "trained tokens": trained, "masked tokens": len(kept) - trained}
            return [Document(kept, document.characters, tallies)]
        if self.options.longer is Longer.in_parts:
            return self._split(one, most)
        raise NotAConversation(f"has {len(document.tokens):,} tokens, more than {most:,}")

    def _split(self, whole: Conversation, most: int) -> list[Document]:
        """As many turns in each document as fit, each after the system message."""
        system = [one for one in whole.messages if one.speaker is Speaker.system][:1]
        rest = whole.messages[len(system) if whole.messages[0].speaker is Speaker.system else 0 :]
        begins = [
            number
            for number, one in enumerate(rest)
            if one.speaker is Speaker.user and (number == 0 or rest[number - 1].speaker is Speaker.assistant)
        ]
        turns = [rest[begin:end] for begin, end in zip(begins, [*begins[1:], len(rest)], strict=True)]
        found: list[Document] = []
        first = 0
        while first < len(turns):
            fits: Document | None = None
            last = first
            for last in range(first + 1, len(turns) + 1):
                messages = (*system, *(message for turn in turns[first:last] for message in turn))
                part = replace(whole, messages=messages)
                rendered = self.template.render(part)
                document = self._document(part, rendered, self._encode(rendered.text), trained_only=False)
                if len(document.tokens) > most:
                    last -= 1
                    break
                fits = document
            if fits is None:
                raise NotAConversation(f"a single turn of it has more than {most:,} tokens")
            if (fits.tokens[1:] >= 0).any():
                found.append(fits)
            first = last
        if not found:
            raise NotAConversation("has no message that is to be trained")
        return [replace(one, tallies={**one.tallies, "parts of conversations": 1}) for one in found]

    def _encode(self, text: str) -> Any:
        return self.template.fast.encode(text, add_special_tokens=False)

    def _document(self, one: Conversation, rendered: Rendered, tokens: Any, trained_only: bool = True) -> Document:
        """Tokens of the rendered text, all masked but the answers that are trained, each with the token that ends it.

        A token across the beginning of an answer is masked: a model that is asked sees another one there.
        """
        ids = np.array(tokens.ids, DTYPE)
        offsets = np.array(tokens.offsets, np.int64).reshape(-1, 2)
        trained = np.zeros(len(ids), bool)
        stops = np.flatnonzero(np.isin(ids, self._stops))
        calls = 0
        for number, answer in rendered.answers.items():
            first = int(np.searchsorted(offsets[:, 0], answer.begin))
            last = int(np.searchsorted(offsets[:, 1], answer.end, "right"))
            if not answer.marked:
                last = int(next(iter(stops[(stops >= first) & (stops < last)]), -1)) + 1
            if last <= first or ids[last - 1] not in self.template.stops:
                raise NotAConversation(f"message {number + 1}: no token ends the assistant's turn where it should")
            if one.messages[number].trained:
                trained[first:last] = True
                calls += last - first if one.messages[number].calls else 0
        if trained_only and not trained[1:].any():
            raise NotAConversation("has nothing that would be trained")
        lost = sum(message.split[0] not in rendered.text for message in one.messages)
        tallies = {
            "trained tokens": int(trained.sum()),
            "trained tokens of messages that call tools": calls,
            "masked tokens": int((~trained).sum()),
            "thoughts that the template leaves out": lost,
        }
        return Document(np.where(trained, ids, ~ids).astype(DTYPE), len(rendered.text), tallies)


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
