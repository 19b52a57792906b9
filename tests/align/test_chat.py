"""Talking to a model: in Python, through a pipe, and in a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from internevo.align.chat import CannotAsk, Chat, End, Sampling
from internevo.align.conversation import Message, Speaker
from internevo.align.talking import talking_template
from internevo.train.sample import streamed
from internevo.train.stored_model import open_model
from tests.align.formats import FORMATS, write_tokenizer
from tests.align.talkers import ANSWERS, SHOUTED, SYSTEM

pytestmark = pytest.mark.slow  # the model is trained first

GREEDY = Sampling(temperature=0)


def begin(run: Path, sampling: Sampling = GREEDY, **more: str) -> Chat:
    stored = open_model(run)
    return Chat(stored, talking_template(stored), sampling, **more)


def test_it_answers_and_stops(chatml_run: Path) -> None:
    chat = begin(chatml_run)
    for question, answer in ANSWERS.items():
        reply = chat.ask(question)
        pieces = list(reply)
        assert "".join(pieces) == answer
        assert "\ufffd" not in "".join(pieces)
        assert reply.end is End.stop
        assert chat.turns[-2:] == [Message(Speaker.user, question), Message(Speaker.assistant, answer)]
        if len(chat.turns) == 4:
            chat.reset()
    shouting = begin(chatml_run, system=SYSTEM)
    assert "".join(shouting.ask("Hi")) == SHOUTED["Hi"]


def test_the_text_of_tokens_as_they_come(tmp_path: Path) -> None:
    """A character of several tokens comes whole; what is cut at the end is shown, and nothing is lost."""
    from internevo.tokens.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(write_tokenizer(tmp_path, FORMATS["ChatML"]))
    text = "é数☕👩‍👩‍👧x"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode())
    assert list(streamed(tokenizer, ids, [])) == list(text)
    assert "".join(streamed(tokenizer, ids[:-2], tokenizer.encode("before"))) == text[:-2] + "\ufffd"


def test_a_space_at_the_beginning_is_kept(tmp_path: Path) -> None:
    from internevo.tokens.tokenizer import load_tokenizer
    from internevo.tokens.train_tokenizer import train_tokenizer

    tokenizer = load_tokenizer(train_tokenizer(["some words and some more words"] * 50, tmp_path / "t.model", 300))
    whole = tokenizer.encode("assistant\n words")
    begun = tokenizer.encode("assistant\n")
    assert whole[: len(begun)] == begun
    assert "".join(streamed(tokenizer, whole[len(begun) :], begun)) == " words"


def test_a_full_context_drops_the_oldest_turns(chatml_run: Path) -> None:
    chat = begin(chatml_run, system="Be kind.")
    seen = []
    for number in range(9):
        reply = chat.ask(f"Question {number} {'x' * 30}")
        seen.append(reply.dropped)
        list(reply)
        assert len(chat.turns) % 2 == 0
        assert chat.turns[0].speaker is Speaker.user
        prompt = chat.template.prompt([Message(Speaker.system, "Be kind."), *chat.turns])
        assert prompt.startswith("<|im_start|>system\nBe kind.<|im_end|>")
    assert seen[0] == 0
    assert max(seen) >= 2
    assert all(one % 2 == 0 for one in seen)
    before = list(chat.turns)
    with pytest.raises(CannotAsk, match=r"the message has, .* tokens, and the model sees 256"):
        chat.ask("y" * 300)
    assert chat.turns == before
    reply = chat.ask("y" * 150)  # nearly all of it
    assert reply.dropped == len(before)
    list(reply)
    assert reply.end in (End.stop, End.context)


@pytest.mark.parametrize("text", ["<|im_end|>", "a <|im_start|>system", "\udcff"])
def test_what_cannot_be_sent(chatml_run: Path, text: str) -> None:
    with pytest.raises(CannotAsk):
        begin(chatml_run).ask(text)
    with pytest.raises(CannotAsk):
        begin(chatml_run, system=text).ask("Hi")


def test_an_answer_that_is_cut_or_stopped(chatml_run: Path) -> None:
    chat = begin(chatml_run, Sampling(temperature=0, max_tokens=5))
    reply = chat.ask("Hi")
    assert "".join(reply) == ANSWERS["Hi"][:5]
    assert reply.end is End.max_tokens
    chat.reset()
    with closing(iter(chat.ask("Hi"))) as pieces:
        begun = next(pieces)
    assert [one.content for one in chat.turns] == ["Hi", begun]
    chat.reset()
    iter(chat.ask("Hi")).close()  # before anything was said
    assert chat.turns == []


def test_the_same_seed_says_the_same(chatml_run: Path) -> None:
    said = ["".join(begin(chatml_run, Sampling(temperature=5.0, max_tokens=30, seed=s)).ask("Hi")) for s in (1, 1, 2)]
    assert said[0] == said[1] != said[2]


def command(run: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "internevo", "chat", str(run), "--temperature", "0", "--device", "cpu", *more]


def test_through_a_pipe(chatml_run: Path) -> None:
    lines = ["Hi", "", "Who?", "/reset", f"/system {SYSTEM}", "Hi", "/nothing", "//Hi", "<|im_end|>", "/quit", "Hi"]
    sent = b"\xff\n" + "\n".join(lines).encode()
    shown = subprocess.run(command(chatml_run), input=sent, capture_output=True, timeout=120)
    told = shown.stderr.decode()
    assert shown.returncode == 0, told
    assert shown.stdout.decode().split("\n")[:3] == [ANSWERS["Hi"], ANSWERS["Who?"], SHOUTED["Hi"]]
    assert shown.stdout.decode().count("\n") == 4  # and what it says to "/Hi"
    for text in (
        "not sent: it is not valid UTF-8",
        "there is no command /nothing",
        "spells the control token",
        "next:",
    ):
        assert text in told


def test_a_model_that_cannot_talk(chatml_run: Path, tmp_path: Path) -> None:
    shutil.copytree(chatml_run, run := tmp_path / "run")
    (run / "tokenizer" / "chat_template.jinja").unlink()
    shown = subprocess.run(command(run, "--step", "2"), input=b"Hi", capture_output=True, timeout=120)
    assert shown.returncode == 2
    assert b"has not learned to talk" in shown.stderr
    assert b"Traceback" not in shown.stderr


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, arguments: list[str]):
        self._here, there = pty.openpty()
        self.process = subprocess.Popen(arguments, stdin=there, stdout=there, stderr=there, start_new_session=True)
        os.close(there)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._here, text.encode())

    def interrupt(self) -> None:
        """What a terminal does at Ctrl-C."""
        os.killpg(self.process.pid, 2)

    def until(self, pattern: str) -> str:
        """Read until something is shown that was not before; all that was since."""
        deadline = time.monotonic() + 100
        while not (found := re.search(pattern, self.shown, re.DOTALL)):
            assert time.monotonic() < deadline, self.shown
            if select.select([self._here], [], [], 1)[0]:
                self.shown += os.read(self._here, 65536).decode(errors="replace").replace("\r", "")
        said, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return said


def test_in_a_terminal(chatml_run: Path, tmp_path: Path) -> None:
    """Ctrl-C stops an answer, not the session; at the prompt it does nothing; Ctrl-D leaves."""
    shutil.copytree(chatml_run, run := tmp_path / "run")
    config = run / "config.yaml"
    config.write_text(re.sub(r"seq_len: 256", "seq_len: 16384", config.read_text()))  # for an answer that takes long
    terminal = Terminal(command(run, "--step", "2", "--max-tokens", "16000"))
    terminal.until(r"/help lists the commands.*> ")
    terminal.type("talk\n")
    terminal.until(r"talk\n.{20}")
    terminal.interrupt()
    assert "Traceback" not in terminal.until(r"stopped; what was said.*> ")
    terminal.interrupt()
    terminal.until(r"Ctrl-D leaves.*> ")
    terminal.type("/system Be kind.\n")
    terminal.until(r"the system message is set.*> ")
    terminal.type("\x04")
    terminal.until(r"next: internevo export")
    assert terminal.process.wait(30) == 0
