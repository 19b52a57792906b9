"""Pairs of answers, one chosen and one rejected, to a token store: `internevo data pairs`.

A line holds `chosen` and `rejected`, as answers to its `prompt` or as whole conversations:

    {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"}
    {"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Hello"}], ...}
    {"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [...], "domain": "manners"}

A pair is one document of the store with two sequences, the chosen side and the rejected one. Each is a conversation of
its own, with its own copy of what both begin with. Trained is what the assistant says from the first message on in
which the sides differ:

    chosen     <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎Hello<|im_end|>⏎
    rejected   <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎Go away<|im_end|>⏎
    trained                                                       Hello<|im_end|> and Go away<|im_end|>
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from internevo.align.chat_store import LEFT_OUT, TOGETHER, chat_job
from internevo.align.choices import ChatOptions, Longer, Thinking, Turns
from internevo.align.conversation import Conversation, Message, NotAConversation, Speaker, read_conversation
from internevo.align.encoder import DTYPE, ChatEncoder, Document
from internevo.align.load_template import load_template
from internevo.files.errors import UserError
from internevo.files.hashing import share_of
from internevo.text.batches import in_batches
from internevo.text.documents import Reject
from internevo.text.pieces import PIECE_BYTES, Piece
from internevo.tokens.build import BytesDone, Manifest, build_store
from internevo.tokens.tokenise import Record, TokenisedPiece

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """Two conversations, of which the answers that differ are trained."""

    chosen: Conversation
    rejected: Conversation
    common: tuple[Message, ...]
    """The messages that both begin with: the prompt."""


def prepare_pairs(
    inputs: Sequence[Path | str],
    output: Path | str,
    tokenizer: Path | str,
    *,
    template: str | None = None,
    options: ChatOptions = ChatOptions(),  # noqa: B008, it is frozen
    day: date | None = None,
    domain: str | None = None,
    held_out: float = 0.0,
    workers: int = 1,
    max_rejects: float = 0.01,
    shard_tokens: int = 2**30,
    piece_bytes: int = PIECE_BYTES,
    progress: Callable[[BytesDone], None] = lambda done: None,
) -> Manifest:
    """Make the token store folder `output` of pairs, in files as `prepare_chat` reads them.

    `options.max_tokens` is for both sides together: a pair is never cut. With `domain`, only pairs whose `domain` is
    that. Pairs with the same prompt are held out together.

    Raises UserError as `prepare_chat` does.
    """
    if options.longer is not Longer.refuse or options.turns is not Turns.together:
        raise UserError("a pair is one document, which is never cut: longer must be refuse, and turns together")
    day = day or date.today()
    job = chat_job(
        inputs,
        output,
        tokenizer,
        template,
        options,
        day,
        partial(_encoder, Path(tokenizer), template, options, day, domain, held_out),
        more={"pairs": True, "domain": domain},
        held_out=held_out,
        max_rejects=max_rejects,
        shard_tokens=shard_tokens,
        piece_bytes=piece_bytes,
        sequences=2,
    )
    return build_store(job, workers, progress)


def read_pair(value: Mapping[str, Any], without_thinking: bool = False) -> Pair:
    """The pair that a line or row holds. Raises NotAConversation, which says why it cannot be used."""
    if missing := [side for side in SIDES if value.get(side) is None]:
        raise NotAConversation(f"has no {' and no '.join(missing)}")
    sides = []
    for side in SIDES:
        try:
            one = read_conversation(_side(value, side))
        except NotAConversation as error:
            raise NotAConversation(f"{side}: {error}") from None
        sides.append(one.without_thinking() if without_thinking else one)
    chosen, rejected = sides
    common = _common(chosen, rejected)
    pair = Pair(_trained_from(chosen, common), _trained_from(rejected, common), chosen.messages[:common])
    for side, one in zip(SIDES, (pair.chosen, pair.rejected), strict=True):
        if not any(message.trained for message in one.messages):
            raise NotAConversation(f"{side} has no message that is to be trained after what both sides begin with")
    return pair


def _side(value: Mapping[str, Any], side: str) -> dict[str, Any]:
    """One side as a conversation is written."""
    found, prompt = value[side], value.get("prompt")
    beside = {key: value.get(key) for key in ("system", "tools")}
    if prompt is None:
        if not isinstance(found, list):
            raise NotAConversation("there is no prompt, and it is not a list of messages")
        return {"messages": found, **beside}
    if isinstance(prompt, str) and _is_whole(found):
        if not any(isinstance(one, dict) and one.get("content", one.get("value")) == prompt for one in found):
            raise NotAConversation("it is a whole conversation, in which the prompt beside it is not said")
        return {"messages": found, **beside}
    if isinstance(prompt, str) and value.get("system") is not None:
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and value.get("system") is not None:
        prompt = [{"role": "system", "content": value["system"]}, *prompt]
    return {"prompt": prompt, "completion": found, "tools": value.get("tools")}


def _is_whole(messages: Any) -> bool:
    """Whether it begins with a question, not with an answer."""
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, dict) and first.get("role", first.get("from")) in ("system", "user", "human")


def _common(chosen: Conversation, rejected: Conversation) -> int:
    """How many messages both begin with. Raises NotAConversation unless the assistant makes the first difference."""
    if chosen.tools != rejected.tools:
        raise NotAConversation("the sides have different tools")
    sides = [[replace(message, trained=False) for message in one.messages] for one in (chosen, rejected)]
    if sides[0] == sides[1]:
        raise NotAConversation("both sides are the same")
    common = 0
    for one, other in zip(*sides, strict=False):
        if one != other:
            break
        common += 1
    else:
        raise NotAConversation("one side is the beginning of the other")
    if any(side[common].speaker is not Speaker.assistant for side in sides):
        raise NotAConversation(f"the sides differ in message {common + 1}, before the assistant says anything else")
    return common


def _trained_from(one: Conversation, first: int) -> Conversation:
    """The conversation without anything trained before its message `first`."""
    begin = (replace(message, trained=False) for message in one.messages[:first])
    return replace(one, messages=(*begin, *one.messages[first:]))


def _encoder(
    tokenizer: Path, template: str | None, options: ChatOptions, day: date, domain: str | None, held_out: float
) -> Callable[[Piece, bool], TokenisedPiece]:
    found = load_template(tokenizer, template, dict(options.variables), day)
    encode = ChatEncoder(found, replace(options, max_tokens=None))
    return partial(_encode_piece, PairEncoder(encode, options.max_tokens), options, domain, held_out)


class PairEncoder:
    """Pairs to the tokens of both sides. `max_tokens` is how many they may have together."""

    def __init__(self, encode: ChatEncoder, max_tokens: int | None):
        self.encode, self.max_tokens = encode, max_tokens

    def __call__(self, pairs: Sequence[Pair]) -> list[tuple[Document, Document] | str]:
        """The two sides of each pair, or why there are none."""
        sides = self.encode([side for pair in pairs for side in (pair.chosen, pair.rejected)])
        return [self._pair(sides[at], sides[at + 1]) for at in range(0, len(sides), 2)]

    def _pair(self, *sides: list[Document] | str) -> tuple[Document, Document] | str:
        for name, side in zip(SIDES, sides, strict=True):
            if isinstance(side, str):
                return f"{name}: {side}"
        chosen, rejected = (one for side in sides for one in side if isinstance(one, Document))
        if np.array_equal(chosen.tokens, rejected.tokens):
            return "both sides are the same, as the template writes them"
        length = len(chosen.tokens) + len(rejected.tokens)
        if self.max_tokens is not None and length > self.max_tokens:
            return f"its sides have {length:,} tokens together, more than {self.max_tokens:,}"
        return chosen, rejected


def _encode_piece(
    encode: PairEncoder,
    options: ChatOptions,
    domain: str | None,
    held_out: float,
    piece: Piece,
    all_held_out: bool,
) -> TokenisedPiece:
    record, tallies = Record(), Counter[str]()
    found: list[tuple[np.ndarray, bool]] = []
    read = partial(read_pair, without_thinking=options.thinking is Thinking.drop)
    for pairs in in_batches(_pairs(piece, read, domain, record, tallies), lambda one: 1, TOGETHER):
        for (place, pair), sides in zip(pairs, encode([one for _, one in pairs]), strict=True):
            if isinstance(sides, str):
                record.reject(replace(place, reason=sides))
                continue
            held = all_held_out or (held_out > 0 and share_of(_identity(pair)) < held_out)
            for name, document in zip(SIDES, sides, strict=True):
                found.append((document.tokens, held))
                trained = int((document.tokens >= 0).sum())
                tallies[f"trained tokens of {name} sides"] += trained
                record.counts.masked_tokens += len(document.tokens) - trained
                record.counts.characters += document.characters
    record.counts.tallies = dict(tallies)
    return TokenisedPiece.of(record, found, DTYPE, sequences=2)


def _identity(pair: Pair) -> bytes:
    """By which it is held out: what both sides answer, so that no prompt is on both sides of the split."""
    return json.dumps([message.for_template() for message in pair.common], sort_keys=True).encode()


def _pairs(
    piece: Piece,
    read: Callable[[Mapping[str, Any]], Pair],
    domain: str | None,
    record: Record,
    tallies: Counter[str],
) -> Iterator[tuple[Reject, Pair]]:
    """What can be read of a piece, each with the reject that it would be; what cannot goes into the record."""
    for file, record.lines, value in piece.rows():
        if isinstance(value, Reject):
            record.reject(value)
        elif value is not None:
            place = Reject(str(file), record.lines, "")
            here = value.get("domain")
            if not isinstance(here, str | None):
                record.reject(replace(place, reason=f"its domain is {type(here).__name__}, not text"))
                continue
            if domain is not None and here != domain:
                tallies["pairs of other domains, left out"] += 1
                continue
            try:
                pair = read(value)
            except NotAConversation as error:
                record.reject(replace(place, reason=str(error)))
                continue
            tallies[LEFT_OUT] += pair.chosen.left_out + pair.rejected.left_out
            yield place, pair
