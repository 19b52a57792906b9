"""`internevo chat`: a conversation in a terminal, or of lines that come through a pipe."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated

from internevo.cli.shared import (
    ModelArgument,
    SeedOption,
    StepOption,
    TemperatureOption,
    TemplateOption,
    TopPOption,
    app,
    console,
    note,
    option,
    out,
    plain,
    stream,
)
from internevo.files.signals import stops_noted

if TYPE_CHECKING:
    from internevo.align.chat import Chat, Reply

_HELP = """/system TEXT   give the model a system message; without TEXT it has none
/reset         begin anew, with the same system message
/help          show this
/quit          leave, as Ctrl-D does
Ctrl-C stops an answer. A message that begins with / is sent with //."""


@app.command()
def chat(
    model: ModelArgument,
    system: Annotated[str, option("The system message.", "TEXT")] = "",
    template: TemplateOption = None,
    temperature: TemperatureOption = 0.8,
    top_p: TopPOption = 0.95,
    max_tokens: Annotated[int, option("Maximum tokens of an answer.", "N", least=1, most=2**20)] = 512,
    seed: SeedOption = 0,
    step: StepOption = None,
    device: Annotated[str, option("auto, cpu or cuda.", "DEVICE")] = "auto",
) -> None:
    """Talk to a model that was trained on conversations.

    Answers stop where the chat template that it learned ends the assistant's turn. `/help` lists the commands. Through
    a pipe, each line is a message, and only the answers go to standard output.

    Example: `internevo chat runs/chat --system "Answer in one sentence."`
    """
    from internevo.align.chat import Chat, Sampling
    from internevo.align.talking import talking_template
    from internevo.train.build import choose_device
    from internevo.train.stored_model import open_model

    stored = open_model(model, step)
    note(stored.notes)
    found = talking_template(stored, template)
    sampling = Sampling(temperature, top_p, max_tokens, seed)
    talk = Chat(stored, found, sampling, system, choose_device(device))
    _tell(f"{stored.name}, {talk.context:,} tokens of context. /help lists the commands.")
    with _ctrl_c_at_the_prompt():
        for line in _lines():
            if line == "/quit":
                break
            if not _command(talk, line):
                _ask(talk, line.removeprefix("/") if line.startswith("//") else line)
    _tell(f"next: internevo export {model} DIR, or internevo serve {model}")


def _command(talk: Chat, line: str) -> bool:
    """Do what a line that begins with / asks for; False for a message."""
    if not line.startswith("/") or line.startswith("//"):
        return False
    name, _, text = line.partition(" ")
    if name == "/reset":
        talk.reset()
        _tell("a new conversation" + (", with the system message" if talk.system else ""))
    elif name == "/system":
        talk.system = text.strip()
        _tell("the system message is set; /reset begins anew" if talk.system else "no system message")
    elif name == "/help":
        _tell(_HELP)
    else:
        _tell(f"there is no command {name}. {_HELP}")
    return True


def _ask(talk: Chat, text: str) -> None:
    from internevo.align.chat import CannotAsk

    try:
        reply = talk.ask(text)
    except CannotAsk as error:
        _tell(f"not sent: {error}")
        return
    if reply.dropped:
        _tell(f"the context is full: the oldest {reply.dropped} messages were dropped, and the model does not see them")
    with _ctrl_c_stops() as came, closing(iter(reply)) as pieces:
        for piece in pieces:
            stream(piece)
            if came:
                break
    out.print()
    if said := _ended(talk, reply):
        _tell(said)


def _ended(talk: Chat, reply: Reply) -> str | None:
    from internevo.align.chat import End

    return {
        End.stop: None,
        End.max_tokens: f"cut after {talk.sampling.max_tokens:,} tokens (--max-tokens)",
        End.context: f"cut: the context of {talk.context:,} tokens is full; the next message drops the oldest turns",
        End.stopped: "stopped; what was said by then stays in the conversation",
    }[reply.end]


def _tell(text: str) -> None:
    """Print what the model does not say, beside the conversation."""
    console("stderr", soft_wrap=True).print(f"[dim]{plain(text)}[/]")


def _lines() -> Iterator[str]:
    """What a person types, or what comes through a pipe: lines that are not empty."""
    if sys.stdin is None:
        return
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is no UTF-8 is refused, the next one is read
    if not sys.stdin.isatty():
        yield from filter(None, map(str.strip, sys.stdin))
        return
    import readline  # noqa: F401, gives `input` its editing and its history

    while True:
        try:
            if line := input("> ").strip():
                yield line
        except EOFError:
            out.print()
            return
        except KeyboardInterrupt:
            _tell("\nCtrl-D leaves")


@contextmanager
def _ctrl_c_at_the_prompt() -> Iterator[None]:
    """Let Ctrl-C do no more than raise KeyboardInterrupt, when a person types; where it was ignored it stays so."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _ctrl_c_stops() -> Iterator[list[int]]:
    """The list has something after Ctrl-C, of a person at a terminal; the second one interrupts at once."""
    if sys.stdin is None or not sys.stdin.isatty() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield []
        return

    def again() -> None:
        if len(came) > 1:
            raise KeyboardInterrupt

    with stops_noted(again, signals=(signal.SIGINT,)) as came:
        yield came
