"""A conversation with a model: what was said, what of it the model sees, and its answers as they come."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile

import torch

from internevo.align.conversation import Message, NotAConversation, Speaker
from internevo.align.template import ChatTemplate
from internevo.model.generate import generate
from internevo.train.sample import streamed
from internevo.train.stored_model import StoredModel


class CannotAsk(ValueError):
    """Why a message cannot be sent. The conversation is as it was."""


class End(StrEnum):
    """Why an answer ended."""

    stop = "stop"
    """The model ended its turn."""
    max_tokens = "max_tokens"
    context = "context"
    """The model was trained on no longer rows."""
    stopped = "stopped"
    """By the person."""


@dataclass(frozen=True)
class Sampling:
    """How the model's tokens are chosen, and how many there may be in an answer."""

    temperature: float = 0.8
    top_p: float = 0.95
    max_tokens: int = 512
    seed: int = 0


class Reply:
    """An answer, made piece by piece of its text while one iterates. Then it is in the conversation, with its question.

    Closing the iterator (`contextlib.closing`) stops it: what was said by then stays in the conversation.
    """

    def __init__(self, chat: Chat, turns: list[Message], prompt: list[int]):
        self._chat, self._turns, self._prompt = chat, turns, prompt
        self.dropped = len(chat.turns) + 1 - len(turns)
        """How many of the oldest messages the model does not see any more."""
        self.end = End.stopped
        """Known when the iteration is over."""

    def __iter__(self) -> Generator[str, None, None]:
        chat, sampling, said, count = self._chat, self._chat.sampling, "", 0
        most = min(sampling.max_tokens, chat.context - len(self._prompt))

        def counted() -> Iterator[int]:
            nonlocal count
            for token in chat.tokens(self._prompt, most):
                count += 1
                yield token

        try:
            for piece in streamed(chat.tokenizer, counted(), chat.begun(self._prompt)):
                said += piece
                yield piece
            self.end = End.stop if count < most else End.max_tokens if most == sampling.max_tokens else End.context
        finally:
            if said or self.end is End.stop:
                chat.turns = [*self._turns, Message(Speaker.assistant, said)]


class Chat:
    """A conversation with a model on disk, which is loaded onto `device` with fp32 weights."""

    def __init__(
        self,
        stored: StoredModel,
        template: ChatTemplate,
        sampling: Sampling = Sampling(),
        system: str = "",
        device: torch.device | str = "cpu",
    ):
        self.template, self.sampling, self.system = template, sampling, system
        self.context = stored.seq_len
        """Tokens that the model can see, its answer included."""
        self.turns: list[Message] = []
        """What was said and is not dropped, without the system message."""
        self.tokenizer = stored.needs_tokenizer()
        self._control = {i for i, one in template.fast.get_added_tokens_decoder().items() if one.special}
        self._never = self.tokenizer.unused(stored.config.vocab)
        self._model = stored.load(device)
        self._generator = torch.Generator(device).manual_seed(sampling.seed)

    def ask(self, text: str) -> Reply:
        """The reply to a message of the user. Both are added to `turns` when its iteration ends.

        When the conversation does not fit into the model's context beside an answer, its oldest turns are dropped.
        Raises CannotAsk for a message that is too long by itself, spells a control token, or that the template refuses.
        """
        self._check(Speaker.system, self.system)
        self._check(Speaker.user, text)
        turns = [*self.turns, Message(Speaker.user, text)]
        ids = self._prompt(turns)
        room = min(self.sampling.max_tokens, self.context // 4)
        while len(ids) + room > self.context and (later := _without_oldest(turns)):
            turns = later
            ids = self._prompt(turns)
        if len(ids) >= self.context:
            raise CannotAsk(
                f"the message has, with what stands around it, {len(ids):,} tokens, and the model sees "
                f"{self.context:,}. Send a shorter one."
            )
        return Reply(self, turns, ids)

    def reset(self) -> None:
        """Begin anew, with the same system message."""
        self.turns = []

    def _check(self, speaker: Speaker, text: str) -> None:
        if self.template.control is not None and (spelled := self.template.control.spelled(speaker, text)):
            raise CannotAsk(f"it spells the control token {spelled}, which could begin another speaker's message")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise CannotAsk("it is not valid UTF-8") from None

    def _prompt(self, turns: list[Message]) -> list[int]:
        system = [Message(Speaker.system, self.system)] if self.system else []
        try:
            text = self.template.prompt([*system, *turns])
        except NotAConversation as error:
            raise CannotAsk(str(error)) from None
        return self.template.fast.encode(text, add_special_tokens=False).ids

    def tokens(self, prompt: list[int], most: int) -> Iterator[int]:
        """At most that many tokens of an answer; without the one that ends the model's turn."""
        return generate(
            self._model,
            prompt,
            most,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            stops=self.template.stops,
            never=self._never,
            generator=self._generator,
        )

    def begun(self, prompt: list[int]) -> list[int]:
        """The tokens of a prompt after its last control token: decoded without them, an answer could lose a space."""
        return list(takewhile(lambda token: token not in self._control, prompt[::-1]))[::-1]


def _without_oldest(turns: list[Message]) -> list[Message]:
    """The turns after the oldest question and its answer; none where there is one question."""
    later = (number for number, one in enumerate(turns) if number and one.speaker is Speaker.user)
    first = next(later, None)
    return [] if first is None else turns[first:]
