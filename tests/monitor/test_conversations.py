"""Conversations on a run's page: counted right, escaped, and damaged files told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from internevo.monitor.conversations import CONVERSATIONS, conversations


def talk(answer: str, expected: str, end: str = "stop") -> list[dict[str, str]]:
    said = {"role": "assistant", "content": answer, "expected": expected, "end": end}
    return [{"role": "user", "content": "<b>Who?</b>"}, said]


def test_what_was_said_and_how_it_ended(tmp_path: Path) -> None:
    assert conversations(tmp_path) == ""
    talks = [talk("I.", "I."), talk("You <i>", "I."), talk("I. I.", "I.", "max_tokens")]
    (tmp_path / CONVERSATIONS).write_text(json.dumps(talks), encoding="utf-8")
    page = conversations(tmp_path)
    assert "2 of 3 answers ended by themselves. 1 of 3 are word for word what was expected." in page
    assert "&lt;b&gt;Who?&lt;/b&gt;" in page
    assert "You &lt;i&gt;" in page
    assert "<b>Who" not in page
    assert page.count('class="assistant other"') == 2
    assert "ended by max_tokens" in page
    assert "expected: I." in page


def test_of_many_the_first_are_shown(tmp_path: Path) -> None:
    (tmp_path / CONVERSATIONS).write_text(json.dumps([talk("I.", "I.")] * 30), encoding="utf-8")
    page = conversations(tmp_path)
    assert page.count('class="talk"') == 12
    assert "30 of 30 are word for word" in page
    assert "The first 12 of 30 conversations" in page


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", "[[1]]", '[[{"role": 1, "content": "a"}]]', "\x00"])
def test_damage_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / CONVERSATIONS).write_text(text, encoding="utf-8")
    assert "conversations.json is damaged." in conversations(tmp_path)
