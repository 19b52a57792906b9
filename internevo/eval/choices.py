"""Multiple choice with circular evaluation: a question counts only if it is answered right in every rotation.

The choices of a question are shown under letters, and the letter with the least loss is the answer. A model that
guesses, or prefers a letter, is sometimes right, but not in all rotations (MMBench, arXiv 2307.06281).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from string import ascii_uppercase

import numpy as np

from internevo.eval.scorer import Scorer
from internevo.files.errors import UserError
from internevo.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Question:
    """A question with its choices."""

    question: str
    choices: tuple[str, ...]
    answer: int  # the number of the right choice, from 0


@dataclass(frozen=True)
class ChoiceResult:
    """How a set of questions was answered."""

    questions: int
    accuracy: float  # right with the choices in their own order
    circular: float  # right in every rotation
    letters: dict[str, float]
    """The share of each letter among the answers in all rotations: equal for a model that prefers none."""


def read_questions(path: Path) -> list[Question]:
    """Questions from JSON lines `{"question": ..., "choices": [...], "answer": 0 or "A"}`.

    Raises UserError with the number of a line that is something else.
    """
    questions = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            choices = tuple(str(one) for one in found["choices"])
            answer = found["answer"]
            answer = ascii_uppercase.index(answer) if isinstance(answer, str) else int(answer)
            questions.append(Question(str(found["question"]), choices, answer))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'{path}, line {number}: expected {{"question": text, "choices": [text, ...], "answer": a number from '
                f"0 or a letter}}; {type(error).__name__} {error}"
            ) from None
        if not (2 <= len(choices) <= 26 and 0 <= answer < len(choices)):
            raise UserError(f"{path}, line {number}: {len(choices)} choices, and the answer is number {answer}")
    if not questions:
        raise UserError(f"{path} has no questions")
    return questions


def answer_choices(scorer: Scorer, tokenizer: Tokenizer, questions: Sequence[Question]) -> ChoiceResult:
    """Ask every question in every rotation of its choices."""
    rows, lengths = [], []
    for one in questions:
        for turn in range(len(one.choices)):
            prompt = _prompt(one, turn)
            asked = tokenizer.encode(prompt)
            for letter in ascii_uppercase[: len(one.choices)]:
                said = tokenizer.encode(f"{prompt} {letter}")
                common = takewhile(lambda pair: pair[0] == pair[1], zip(asked, said, strict=False))
                rows.append(np.array([tokenizer.bos_id, *said], np.int64))
                lengths.append(len(said) - len(list(common)))
    scored = zip(scorer.score(rows), lengths, strict=True)
    losses = (float(result.losses[-length:].sum()) for result, length in scored)
    chosen: list[int] = []
    right: list[list[bool]] = []  # of each question, in each rotation
    for one in questions:
        count = len(one.choices)
        letters = [int(np.argmin(list(islice(losses, count)))) for _ in range(count)]
        chosen += letters
        right.append([letter == (one.answer - turn) % count for turn, letter in enumerate(letters)])
    shares = np.bincount(chosen, minlength=max(len(one.choices) for one in questions)) / len(chosen)
    return ChoiceResult(
        len(questions),
        accuracy=float(np.mean([one[0] for one in right])),
        circular=float(np.mean([all(one) for one in right])),
        letters=dict(zip(ascii_uppercase, shares.tolist(), strict=False)),
    )


def _prompt(question: Question, turn: int) -> str:
    """The question with its choices turned: under A stands choice number `turn`."""
    turned = question.choices[turn:] + question.choices[:turn]
    shown = "\n".join(f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, turned, strict=False))
    return f"{question.question}\n{shown}\nAnswer:"
