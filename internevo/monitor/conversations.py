"""Conversations with a model, on its run's page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from internevo.files.json_files import parsed
from internevo.monitor.page import note

CONVERSATIONS = "conversations.json"
"""In a run's folder: a list of conversations, lists of messages with `role` and `content`. An answer may have what was
`expected` of it, and its `end`: `stop` where the model ended its turn by itself."""
_MOST = 12  # on the page


def conversations(run: Path) -> str:
    """The section of the page; empty where there were none."""
    if not (file := run / CONVERSATIONS).is_file():
        return ""
    found = parsed(file.read_bytes())
    if not isinstance(found, list) or not all(_is_conversation(one) for one in found):
        return _section(note(f"{CONVERSATIONS} is damaged."))
    answers = [one for messages in found for one in messages if one["role"] == "assistant"]
    expected = [one for one in answers if "expected" in one]
    right = sum(one["content"] == one["expected"] for one in expected)
    told = [f"{sum(one.get('end') == 'stop' for one in answers)} of {len(answers)} answers ended by themselves."]
    if expected:
        told.append(f"{right} of {len(expected)} are word for word what was expected.")
    if len(found) > _MOST:
        told.append(f"The first {_MOST} of {len(found)} conversations:")
    talks = "".join(f'<div class="talk">{"".join(map(_message, one))}</div>' for one in found[:_MOST])
    return _section(note(" ".join(told)) + f'<div class="talks">{talks}</div>')


def _section(body: str) -> str:
    return f"<section>\n  <h2>Conversations</h2>\n  {body}\n</section>\n"


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        for one in value
    )


def _message(one: Mapping[str, Any]) -> str:
    other = " other" if one.get("expected", one["content"]) != one["content"] else ""
    remarks = [one["role"]]
    if other:
        remarks.append(f"expected: {one['expected']}")
    if one.get("end", "stop") != "stop":
        remarks.append(f"ended by {one['end']}")
    kind = "assistant" if one["role"] == "assistant" else "asked"
    return f'<p class="{kind}{other}"><span>{escape(" · ".join(remarks))}</span>{escape(one["content"])}</p>'
