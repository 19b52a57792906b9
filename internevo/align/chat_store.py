"""Conversations to a token store in which only what the assistant writes is trained: `internevo data chat`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from internevo.align.choices import ChatOptions
from internevo.align.conversation import Conversation, NotAConversation, read_conversation
from internevo.align.encoder import DTYPE, ChatEncoder
from internevo.align.load_template import load_template
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
    day: date | None = None,
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
    `day` is the one that templates write into each conversation, which some do: today when absent.

    Raises UserError as `prepare` does, and for a template from which it cannot be told what the assistant writes.
    """
    day = day or date.today()
    job = chat_job(
        inputs,
        output,
        tokenizer,
        template,
        options,
        day,
        partial(_encoder, Path(tokenizer), template, options, day, held_out),
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
    day: date,
    encoder: Callable[[], Callable[[Piece, bool], TokenisedPiece]],
    *,
    more: Mapping[str, Any] | None = None,
    **settings: Any,
) -> StoreJob:
    """What makes a store of conversations in files, each piece of which `encoder` makes tokens of.

    The manifest says `more` of how. Raises UserError as `prepare_chat` does.
    """
    loaded = load_tokenizer(tokenizer)
    found_template = load_template(Path(tokenizer), template, dict(options.variables), day)
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
        **(more or {}),
    }
    if "strftime_now" in found_template.text:
        chat["day"] = day.isoformat()
    return StoreJob(
        files=files,
        held_files=(),
        left_out=dict(left_out),
        output=output,
        cut=cut,
        encoder=encoder,
        tokenizer=loaded,
        dtype=DTYPE.name,
        options={f"chat.{name}": value for name, value in chat.items()},
        masking=COMPLEMENT,
        chat=chat,
        **settings,
    )


def _encoder(
    tokenizer: Path, template: str | None, options: ChatOptions, day: date, held_out: float
) -> Callable[[Piece, bool], TokenisedPiece]:
    encode = ChatEncoder(load_template(tokenizer, template, dict(options.variables), day), options)
    return partial(_encode_piece, encode, held_out)


def _encode_piece(encode: ChatEncoder, held_out: float, piece: Piece, all_held_out: bool) -> TokenisedPiece:
    record = Record()
    tallies: Counter[str] = Counter()
    found: list[tuple[np.ndarray, bool]] = []
    for conversations in in_batches(_conversations(piece, record), lambda one: 1, TOGETHER):
        for (reject, one), documents in zip(conversations, encode([one for _, one in conversations]), strict=True):
            if isinstance(documents, str):
                record.reject(replace(reject, reason=documents))
                continue
            tallies[LEFT_OUT] += one.left_out
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


def _conversations(piece: Piece, record: Record) -> Iterator[tuple[Reject, Conversation]]:
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
            yield place, one
