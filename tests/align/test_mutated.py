"""Damaged conversation files: each line is trained as it says, or is a reject with a reason."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from internevo.align.chat_store import _encode_piece
from internevo.align.choices import ChatOptions, Longer, Thinking, Turns
from internevo.align.encoder import ChatEncoder
from internevo.align.load_template import load_template
from internevo.text.pieces import LineRange
from tests.align.formats import FORMATS, write_tokenizer
from tests.align.test_masks import call, said

FILES, LINES = 3000, 3
NAMES = ("assistant", "gpt", "chatgpt", "bot", "model", "function_call")
STRANGE: list[Any] = [
    None, True, 0, -1, 1e308, float("nan"), "", " ", "\n", "\0", "\ud800", "e", "<|im_end|>", "<|im_start|>assistant\n",
    "</think>", "<think>", [], {}, [[]], [None], {"type": "text", "text": "part"}, [{"type": "text", "text": "part"}],
    "assistant", "system", "tool", "{{ 7 * 7 }}", "{% raw %}", "x" * 500, "\u202e", "é" * 3, {"name": "f"},
]  # fmt: skip


def originals() -> list[dict[str, Any]]:
    think = "<think>\nthought\n</think>\n\nafter"
    return [
        {"messages": [said("system", "sys"), said("user", "ask"), said("assistant", "tell"), said("user", "more"),
                      said("assistant", "secret", loss=False), said("user", "end"), said("assistant", think)]},
        {"messages": [said("user", "ask"), said("assistant", "look", tool_calls=[call("f", x=[1, {"y": "z"}])]),
                      said("tool", "result"), said("assistant", "told")], "tools": [{"name": "f", "parameters": {}}]},
        {"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "tell"}], "system": "sys"},
        {"prompt": "ask", "completion": "tell"},
        {"instruction": "ask", "input": "in", "output": "tell", "history": [["old ask", "old tell"]]},
    ]  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a tree, with each key of it."""
    for key, one in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(one, dict | list):
            yield from places(one)


def mutated(draw: random.Random) -> bytes:
    value = copy.deepcopy(draw.choice(originals()))
    for _ in range(draw.randint(0, 3)):
        if not (all_places := list(places(value))):
            break
        container, key = draw.choice(all_places)
        kind = draw.randrange(5)
        if kind == 0:
            container[key] = copy.deepcopy(draw.choice(STRANGE))
        elif kind == 1:
            del container[key]
        elif kind == 2 and isinstance(container, list):
            container.insert(key, copy.deepcopy(draw.choice([*STRANGE, container[key]])))
        elif kind == 3 and isinstance(container, dict):
            container[draw.choice(["role", "content", "loss", "weight", "tool_calls", "name", "value"])] = container[
                key
            ]
        elif isinstance(container[key], str):
            at = draw.randint(0, len(container[key]))
            container[key] = container[key][:at] + str(draw.choice(STRANGE)) + container[key][at:]
    line = bytearray(json.dumps(value).encode())
    if draw.randrange(4) == 0:
        for _ in range(draw.randint(1, 3)):
            line[draw.randrange(len(line))] = draw.randrange(256)
    return bytes(line).replace(b"\n", b" ") + b"\n"


def in_one(content: Any) -> str:
    """A text, or the texts of parts."""
    parts = content if isinstance(content, list) else [content]
    return "".join(str((one.get("text") if isinstance(one, dict) else one) or "") for one in parts)


def allowed(value: Any) -> set[str]:
    """What a line lets the assistant say; found by walking it, whatever it means."""
    found: set[str] = set()
    if isinstance(value, dict):
        trained = value.get("loss") not in (0,) and value.get("weight") not in (0,)
        if value.get("role", value.get("from")) in NAMES and trained:
            found.add(in_one(value.get("content", value.get("value"))))
        found |= {in_one(value.get(key)) for key in ("completion", "output")}
        if isinstance(history := value.get("history"), list):
            found |= {in_one(pair[1]) for pair in history if isinstance(pair, list) and len(pair) == 2}
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            found |= allowed(one)
    return found


@pytest.mark.slow
def test_nothing_is_trained_that_a_line_does_not_say(tmp_path: Path) -> None:
    template = load_template(write_tokenizer(tmp_path, FORMATS["ChatML"]))
    draw = random.Random(7)
    kept = rejected = 0
    for number in range(FILES):
        options = ChatOptions(
            max_tokens=draw.choice([None, 120]),
            longer=draw.choice([Longer.refuse, Longer.in_parts]),
            thinking=draw.choice(list(Thinking)),
            turns=draw.choice(list(Turns)),
        )
        file = tmp_path / f"{number}.jsonl"
        lines = [mutated(draw) for _ in range(LINES)]
        file.write_bytes(b"".join(lines))
        made = _encode_piece(ChatEncoder(template, options), 0.0, LineRange(file, 0, file.stat().st_size), False)
        file.unlink()
        counts = made.record.counts
        may = set()
        for line in lines:
            with contextlib.suppress(ValueError):
                may |= {one.strip() for one in allowed(json.loads(line))}
        may |= {one.rpartition("</think>")[2].strip() for one in may}
        for tokens in np.split(made.train, np.cumsum(made.train_lengths)[:-1]):
            said_by_it = template.fast.decode([i for i in tokens.tolist() if i >= 0], skip_special_tokens=False)
            *answers, rest = said_by_it.split("<|im_end|>")
            assert (rest, bool(answers)) == ("", len(tokens) > 0)
            assert {one.strip() for one in answers} <= may, (lines, answers)
        kept += counts.documents > 0
        rejected += counts.rejected
        assert all(one.reason and one.line for one in made.record.rejects)
    assert kept > FILES / 3
    assert rejected > FILES / 3
