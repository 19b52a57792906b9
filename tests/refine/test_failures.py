"""Documents that a step fails on: dropped and counted when they are few, an error when they are most."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from internevo.files.errors import UserError
from internevo.refine.long.long_statistics import LongStatistics
from internevo.refine.long.perplexity_difference import PerplexityDifference
from internevo.refine.quality import Quality
from internevo.refine.safety import Safety
from internevo.refine.shards import Document
from internevo.refine.step import Place, Sift
from tests.refine.running import dropped, kept, place_of, run_phases

HERE = "tests.refine.test_failures"


@dataclass
class Odd(Sift):
    """Fails on some documents."""

    failing: Callable[[str], object]

    def judge(self, document: Document) -> str | None:
        self.failing(document.text)
        return None


def some(tmp_path: Path, *texts: str, shards: int = 1) -> Place:
    return place_of(tmp_path, [Document(text, str(number)) for number, text in enumerate(texts)], shards)


def test_one_of_five_is_dropped_with_its_error(tmp_path: Path) -> None:
    run_phases(Odd(int), place := some(tmp_path, "1", "2", "three", "4", "5"))
    assert [one.text for one in kept(place)] == ["1", "2", "4", "5"]
    (failed,) = dropped(place)
    assert (failed.text, failed.metadata["reason"]) == ("three", "failed: ValueError")
    assert failed.metadata["error"].startswith("ValueError: invalid literal")


def test_the_only_document_of_a_shard_is_dropped_too(tmp_path: Path) -> None:
    run_phases(Odd(int), place := some(tmp_path, "one", "2", shards=2))
    assert ([one.text for one in kept(place)], [one.text for one in dropped(place)]) == (["2"], ["one"])


def test_most_of_a_shard_is_too_much(tmp_path: Path) -> None:
    place = some(tmp_path, "1", "two", "3", "4", "five", "six", "7", "eight", shards=2)
    with pytest.raises(UserError, match=r"step failed on 3 of the 4 documents of .*00001\S+, first on '4': ValueError"):
        run_phases(Odd(int), place)
    assert [one.text for one in kept(place)] == ["1", "3", "4"]  # the first shard is done, the second not begun


@pytest.mark.parametrize("error", [UserError("mine"), MemoryError(), OSError("disk")])
def test_what_is_no_documents_fault_stops_the_work(tmp_path: Path, error: Exception) -> None:
    def failing(text: str) -> None:
        raise error

    with pytest.raises(type(error)):
        run_phases(Odd(failing), some(tmp_path, "1"))


def nan_of_no_digit(text: str) -> float:
    return 0.2 if text.isdigit() else math.nan


@pytest.mark.parametrize(
    "step",
    [
        Quality(classifier=f"{HERE}:nan_of_no_digit", min_score=0.1),
        Quality(classifier=f"{HERE}:nan_of_no_digit", min_score=None, max_score=0.9),
        Safety(classifier=f"{HERE}:nan_of_no_digit"),
    ],
)
def test_a_score_that_is_no_number_is_a_failure(tmp_path: Path, step: Sift) -> None:
    run_phases(step, place := some(tmp_path, "1", "two", "3"))
    assert [one.text for one in kept(place)] == ["1", "3"]
    assert [one.metadata["reason"] for one in dropped(place)] == ["failed: NotJudged"]
    assert dropped(place)[0].metadata["error"] == f"NotJudged: {HERE}:nan_of_no_digit gave the score nan"


def test_a_document_without_a_language(tmp_path: Path) -> None:
    documents = [Document("x", str(number), {"language": "de"} if number else {}) for number in range(3)]
    run_phases(LongStatistics(), place := place_of(tmp_path, documents, 1))
    assert [one.id for one in kept(place)] == ["1", "2"]
    (failed,) = dropped(place)
    assert "The step `language` finds it" in failed.metadata["error"]
    with pytest.raises(UserError, match=r"step failed on 2 of the 2 documents .*The step `language` finds it"):
        run_phases(LongStatistics(), some(tmp_path / "none", "1", "2"))


class Undecided:
    """A model that cannot tell how likely an `x` is."""

    def __init__(self, model: str, max_tokens: int, device: str):
        pass

    def encode(self, text: str) -> np.ndarray:
        return np.array([ord(sign) for sign in text], np.int64)

    def log_likelihoods(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float]:
        return [math.nan if ord("x") in ids else float(len(prefix)) for prefix, ids in pairs]


def test_a_gain_that_is_no_number_is_a_failure(tmp_path: Path) -> None:
    place = some(tmp_path, "abcdefgh", "xxxxxxxx", "hgfedcba")
    run_phases(PerplexityDifference(model="m", scorer=f"{HERE}:Undecided"), place)
    assert [one.id for one in kept(place)] == ["0", "2"]
    (failed,) = dropped(place)
    assert failed.metadata["error"] == "NotJudged: the gain is nan"
    assert "context_gain" not in failed.metadata
