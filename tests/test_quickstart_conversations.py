"""The quickstart's planted conversations say what the modules say, and keep back what is asked afterwards."""

from __future__ import annotations

import json
import re
import sysconfig
from pathlib import Path

from internevo.quickstart.conversations import CHATS, FOLLOWING, QUESTIONS, WAYS, write_conversations


def test_answers_are_true_and_questions_are_new(tmp_path: Path) -> None:
    count = write_conversations(tmp_path)
    chats = [json.loads(line)["messages"] for line in (tmp_path / CHATS).read_text(encoding="utf-8").splitlines()]
    asked = json.loads((tmp_path / QUESTIONS).read_text(encoding="utf-8"))
    assert len(chats) == count
    questions = {message["content"] for chat in chats for message in chat if message["role"] == "user"}
    for talk in asked:
        assert [message["role"] for message in talk] == ["user", "assistant"] * 2
        assert talk[0]["content"] not in questions
        assert talk[2]["content"] == FOLLOWING
        (name,) = {one for way in WAYS if (one := _module(way, talk[0]["content"]))}
        assert {way.format(name) for way in WAYS} - questions == {talk[0]["content"]}  # asked in all the other ways
        source = source_of(name)
        assert talk[1]["content"].removesuffix(".") in " ".join(source.split())
        for defined in talk[3]["content"].removesuffix(".").split(" and "):
            assert re.search(rf"^(def|class|async def) {defined}\b", source, re.MULTILINE)
    answers = {talk[0]["content"]: talk[1]["content"] for talk in (chat[:2] for chat in chats)}
    for way in WAYS:
        for question, answer in answers.items():
            if name := _module(way, question):
                assert answer.removesuffix(".") in " ".join(source_of(name).split())


def test_the_same_each_time(tmp_path: Path) -> None:
    for name in "ab":
        write_conversations(tmp_path / name)
    for file in (CHATS, QUESTIONS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def source_of(name: str) -> str:
    return Path(sysconfig.get_path("stdlib"), f"{name}.py").read_text(encoding="utf-8")


def _module(way: str, question: str) -> str:
    before, after = way.split("{}")
    return question[len(before) : -len(after)] if question.startswith(before) and question.endswith(after) else ""
