"""The preflight: what it sees over real ranks, and what it says of nodes that cannot train together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from internevo.config.load import load_config
from internevo.files.errors import UserError
from internevo.train.preflight import Facts, as_text, judge, preflight
from tests.parallel.jobs import ALONE
from tests.train.runs import write_config

GOOD = Facts(
    node="a",
    gpus=8,
    gpu="NVIDIA H200",
    versions={"internevo": "0.1.0, commit 1", "torch": "2.13.0", "nccl": "2.29.3"},
    free_gib=900.0,
    unusable=(),
    clock=1000.0,
    gb_per_s=180.0,
)
CUDA = torch.device("cuda")


def nodes(**changes: Any) -> list[Facts]:
    """Two nodes of two ranks, the second changed."""
    second = replace(GOOD, node="b", **changes)
    return [GOOD, GOOD, second, replace(second, gb_per_s=second.gb_per_s / 2)]


def test_one_table() -> None:
    text = as_text(judge(nodes(clock=1000.02), CUDA))
    rows = [line.split("│")[1:-1] for line in text.splitlines() if "GiB" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["a", "2", "8 NVIDIA H200", "900 GiB", "+0.00 s", "180.0 GB/s"],
        ["b", "2", "8 NVIDIA H200", "900 GiB", "+0.02 s", "90.0 GB/s"],
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus": 1}, "b has 1 GPUs for 2 ranks"),
        ({"versions": {**GOOD.versions, "torch": "2.12.0"}}, "torch on b is 2.12.0, on a 2.13.0"),
        ({"versions": {**GOOD.versions, "internevo": "0.1.0, commit 2"}}, "internevo on b is 0.1.0, commit 2"),
        ({"unusable": ("tokens/web: there is no store",)}, "on b: tokens/web: there is no store"),
    ],
)
def test_what_cannot_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        judge(nodes(**changes), CUDA)


def test_what_is_told_and_stops_nothing() -> None:
    text = as_text(judge(nodes(clock=1007.0, free_gib=3.0), CUDA))
    assert "the clock of b is +7.0 s off that of a" in text
    assert "b: 3.0 GiB are free where runs are written" in text


def look(world: Any, config: str) -> str | None:
    """A job of a rank."""
    return preflight(world, load_config(config))


def test_real_ranks(tmp_path: Path, ranks: Any) -> None:
    config = write_config(tmp_path)
    assert preflight(ALONE, load_config(config)) is None
    first, second = ranks(2).run(look, str(config))
    assert first == second
    assert first is not None
    assert first.startswith("preflight: 2 ranks; internevo ")
    assert "GB/s" in first


def fail_to_look(world: Any, config: str) -> str:
    """A job of a rank: why it stopped."""
    try:
        preflight(world, load_config(config))
    except (UserError, SystemExit) as error:
        return str(error)
    return "nothing"


def test_a_path_that_a_rank_cannot_read(tmp_path: Path, ranks: Any) -> None:
    """The main process says it; the other leaves quietly with the exit code of a user's mistake."""
    config = write_config(tmp_path)
    index = tmp_path / "tokens" / "web" / "train.idx"
    index.write_bytes(index.read_bytes()[:20])
    first, second = ranks(2).run(fail_to_look, str(config))
    assert "the nodes cannot train together" in first
    assert "tokens/web" in first
    assert second == "2"
