"""Damaged files of pairs: each line makes two sides that it says, with the same beginning, or is a reject."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from internevo.align.choices import ChatOptions, Thinking
from internevo.align.encoder import ChatEncoder
from internevo.align.load_template import load_template
from internevo.align.pairs import PairEncoder, _encode_piece
from internevo.text.pieces import LineRange
from tests.align.formats import FORMATS, write_tokenizer
from tests.align.test_masks import call, said
from tests.align.test_mutated import STRANGE, in_one, places

FILES, LINES = 1500, 3
END = "<|im_end|>"


def originals() -> list[dict[str, Any]]:
    begin = [said("system", "sys"), said("user", "ask"), said("assistant", "tell"), said("user", "more")]
    return [
        {"prompt": "ask", "chosen": "tell", "rejected": "lie", "domain": "d"},
        {"prompt": begin, "chosen": [said("assistant", "good")], "rejected": [said("assistant", "bad")]},
        {"chosen": [*begin, said("assistant", "good")], "rejected": [*begin, said("assistant", "bad")]},
        {"chosen": [*begin, said("assistant", "look", tool_calls=[call("f", x=1)]), said("tool", "result"),
                    said("assistant", "good")],
         "rejected": [*begin, said("assistant", "bad")], "tools": [{"name": "f"}]},
    ]  # fmt: skip


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
            names = ["role", "content", "loss", "prompt", "chosen", "rejected", "system", "tools", "value"]
            container[draw.choice(names)] = container[key]
        elif isinstance(container[key], str):
            at = draw.randint(0, len(container[key]))
            container[key] = container[key][:at] + str(draw.choice(STRANGE)) + container[key][at:]
    line = bytearray(json.dumps(value).encode())
    if draw.randrange(4) == 0:
        line[draw.randrange(len(line))] = draw.randrange(256)
    return bytes(line).replace(b"\n", b" ") + b"\n"


def texts(value: Any) -> set[str]:
    """What a side may say: every text below it, found by walking it, whatever it means."""
    found = {in_one(value)} if isinstance(value, str | list) else set()
    if isinstance(value, dict):
        found |= {in_one(value.get(key)) for key in ("content", "value")}
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        found |= texts(one)
    return found


@pytest.mark.slow
def test_nothing_is_trained_that_its_side_does_not_say(tmp_path: Path) -> None:
    template = load_template(write_tokenizer(tmp_path, FORMATS["ChatML"]))
    draw = random.Random(11)
    kept = rejected = 0
    for number in range(FILES):
        options = ChatOptions(max_tokens=draw.choice([None, 400]), thinking=draw.choice(list(Thinking)))
        encode = PairEncoder(ChatEncoder(template, ChatOptions(thinking=options.thinking)), options.max_tokens)
        file = tmp_path / f"{number}.jsonl"
        lines = [mutated(draw) for _ in range(LINES)]
        file.write_bytes(b"".join(lines))
        made = _encode_piece(encode, options, None, 0.0, LineRange(file, 0, file.stat().st_size), False)
        file.unlink()
        may: dict[str, set[str]] = {"chosen": set(), "rejected": set()}
        for line in lines:
            with contextlib.suppress(ValueError, AttributeError):
                for side, found in may.items():
                    found |= {one.strip() for one in texts(json.loads(line).get(side))}
        for found in may.values():
            found |= {one.rpartition("</think>")[2].strip() for one in found}
        sides = np.split(made.train, np.cumsum(made.train_lengths)[:-1]) if len(made.train) else []
        assert len(sides) == 2 * made.record.counts.documents
        for at, (name, tokens) in enumerate(zip(("chosen", "rejected") * (len(sides) // 2), sides, strict=True)):
            said_by_it = template.fast.decode([i for i in tokens.tolist() if i >= 0], skip_special_tokens=False)
            *answers, rest = said_by_it.split(END)
            assert (rest, bool(answers)) == ("", True)
            assert {one.strip() for one in answers} <= may[name], (lines, name, answers)
            if name == "rejected":
                chosen, other = (np.where(one < 0, ~one, one) for one in (sides[at - 1], tokens))
                first = int(np.flatnonzero(tokens >= 0)[0])
                assert np.array_equal(chosen[:first], other[:first])
                assert not np.array_equal(chosen, other)
        kept += made.record.counts.documents
        rejected += made.record.counts.rejected
        assert made.record.counts.documents + made.record.counts.rejected <= LINES
        assert all(one.reason and one.line for one in made.record.rejects)
    assert kept > FILES * LINES / 4
    assert rejected > FILES * LINES / 4
