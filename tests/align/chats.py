"""Random conversations of very different lengths, and what is to be learnt of each: by plain Python, from their text.

It shares nothing with the package: the text and who writes what of it are `formats.py`'s, tokens are the `tokenizers`
library's.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tests.align.formats import FORMATS, TEXT
from tests.align.test_masks import WEATHER, call, said

FORMAT = FORMATS["Llama 3"]
WORDS = TEXT.split()


@dataclass(frozen=True)
class Learnt:
    """A conversation's tokens, and the trained ones of each message: the same number for those of one, else 0."""

    ids: list[int]
    message: list[int]

    def weights(self, average: str) -> list[float]:
        """How much the loss of predicting each token counts, under each of `train.average`. Token 0 is predicted by
        none."""
        sizes = {one: self.message.count(one) for one in set(self.message)}
        total = sum(one > 0 for one in self.message)
        every = {"token": lambda one: 1.0, "message": lambda one: 1 / sizes[one], "conversation": lambda one: 1 / total}
        return [every[average](one) if one else 0.0 for one in self.message]


def random_chats(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Each is another one. Some have a system message, some a tool, and some an answer that is not to be trained."""
    draw = random.Random(seed)

    def text(most: int) -> str:
        return " ".join(draw.choices(WORDS, k=round(most ** draw.random())))

    chats = []
    for number in range(count):
        messages = [said("system", text(9))] * (draw.random() < 0.3)
        for turn in range(draw.choice((1, 1, 1, 2, 4))):
            messages.append(said("user", f"{number}: {text(30)}?"))
            skipped = {"loss": False} if turn and draw.random() < 0.4 else {}
            messages.append(said("assistant", text(90), **skipped))
        tools = []
        if draw.random() < 0.3:
            tools = [WEATHER]
            messages[-1:] = [said("assistant", "", tool_calls=[call("weather", city=text(5))]), said("tool", text(20))]
            messages.append(said("assistant", text(40)))
        chats.append({"messages": messages, "tools": tools})
    return chats


def learnt(chat: dict[str, Any], tokenizer: Path) -> Learnt:
    """What is to be learnt of a conversation."""
    fast = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    trained = iter([one.get("loss", True) for one in chat["messages"] if one["role"] == "assistant"])
    text, spans = "", []
    for part, answers in FORMAT.segments(chat["messages"], chat["tools"]):
        if answers and next(trained):
            spans.append((len(text), len(text) + len(part)))
        text += part
    encoded = fast.encode(text, add_special_tokens=False)
    message = [
        next((number for number, (begin, end) in enumerate(spans, 1) if begin <= first and last <= end), 0)
        for first, last in encoded.offsets
    ]
    return Learnt(encoded.ids, message)


def write_chats(path: Path, chats: list[dict[str, Any]]) -> Path:
    """As JSON lines."""
    path.write_text("".join(json.dumps(one) + "\n" for one in chats), encoding="utf-8")
    return path
