"""From the base model to one that talks: conversations, finetuning, and questions that were never asked like this."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from internevo.align.chat import Chat, End, Sampling
from internevo.align.chat_store import prepare_chat
from internevo.align.load_template import INTERNLM2
from internevo.align.talking import talking_template
from internevo.config.load import load_config
from internevo.files.durable import write_durable
from internevo.monitor.conversations import CONVERSATIONS
from internevo.monitor.report import write_report
from internevo.quickstart.conversations import CHATS, QUESTIONS, write_conversations
from internevo.quickstart.steps import step, write_config
from internevo.train.run import train
from internevo.train.stored_model import open_model

STEPS = 3
"""Of it."""
_SHOWN = 2  # conversations that are printed


def talk(folder: Path, out: Console, first: int) -> signal.Signals | None:
    """Do it in the folder of a quickstart that is done; its steps are counted from `first`. Returns the signal that
    stopped the training early, or None."""
    last, corpus, tokens = first + STEPS - 1, folder / "conversations", folder / "tokens" / "chat"
    with step(out, f"{first}/{last}  conversations about modules of the library, only the answers trained"):
        if not tokens.exists():
            write_conversations(corpus)
            made = prepare_chat([corpus / CHATS], tokens, folder / "tokenizer.model", template=INTERNLM2)
            out.print(f"     {made.documents:,} conversations, {made.tallies['trained tokens']:,} tokens trained")
    config = write_config(folder, "chat.yaml")
    same = escape(f"{config}; `internevo train {config}` does the same")
    out.print(f"[bold]{first + 1}/{last}  finetuning the base model[/]  ({same})")
    if (stopped := train(load_config(config), sys.argv)) is not None:
        return stopped
    run = folder / "runs" / "chat"
    with step(out, f"{last}/{last}  questions in a way that was not in the conversations"):
        answered = ask(run, json.loads((corpus / QUESTIONS).read_text(encoding="utf-8")))
        write_durable(run / CONVERSATIONS, (json.dumps(answered, indent=1) + "\n").encode())
    for one in answered[:_SHOWN]:
        for message in one:
            out.print(f"     [dim]{message['role']:>9}[/]  {escape(message['content'])}")
    answers = [message for one in answered for message in one if message["role"] == "assistant"]
    right = sum(message["content"] == message["expected"] for message in answers)
    ended = sum(message["end"] == End.stop for message in answers)
    out.print(f"{right} of {len(answers)} answers word for word; it ended {ended} of them by itself")
    write_report(run)
    return None


def ask(run: Path, conversations: Sequence[list[dict[str, str]]]) -> list[list[dict[str, Any]]]:
    """The conversations with the model's own answers in place of the expected ones, which stand beside them, with why
    each ended. The likeliest token at every place."""
    stored = open_model(run)
    chat = Chat(stored, talking_template(stored), Sampling(temperature=0, max_tokens=64))
    answered = []
    for one in conversations:
        chat.reset()
        said: list[dict[str, Any]] = []
        for question, expected in zip(one[::2], one[1::2], strict=True):
            reply = chat.ask(question["content"])
            answer = {"role": "assistant", "content": "".join(reply), "expected": expected["content"]}
            said += [question, {**answer, "end": str(reply.end)}]
        answered.append(said)
    return answered
