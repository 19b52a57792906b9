"""metrics.jsonl and evals.jsonl: whole lines, rewound without loss; the environment; the device's ceiling."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from internevo.monitor.environment import capture, write_environment
from internevo.monitor.metrics import (
    EVALS,
    METRICS,
    EvalMetrics,
    JsonLines,
    StepMetrics,
    memory_gib,
    peak_flops,
    read_metrics,
    rewind,
)
from internevo.train.trainer import Peak


def step(number: int, stage: str = "base", **changes) -> StepMetrics:
    values = {
        "step": number,
        "stage": stage,
        "tokens": 100 * number,
        "loss": 5.0 / number,
        "grad_norm": 1.0,
        "lr": 1e-3,
        "seq_len": 64,
        "step_s": 0.5,
        "data_s": 0.01,
        "tokens_per_s": 200.0,
        "tokens_per_s_per_gpu": 200.0,
        "mfu": 0.4,
        "mfu_full": 0.5,
        "memory_gib": 1.5,
        "skipped": False,
        "digest": f"{number:016x}",
        "sources": {"web": 70, "code": 30},
        "padding": 4,
        "documents": 8,
        "cut_documents": 2,
    }
    return StepMetrics(**{**values, **changes})


def evaluation(number: int, when: str = "end", source: str = "web", stage: str = "base") -> EvalMetrics:
    return EvalMetrics(number, stage, when, source, 64, 1000, 3.5, 5.5, [(0, 32, 3.6, 500), (32, 64, 3.4, 500)])


def write(run: Path, steps: int) -> None:
    records = JsonLines(run / METRICS)
    for number in range(1, steps + 1):
        records.write(step(number))
    records.close()
    records = JsonLines(run / EVALS)
    for number in range(5, steps + 1, 5):
        records.write(evaluation(number))
    records.close()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path, 3)
    lines = read_metrics(tmp_path / METRICS)
    assert [line["step"] for line in lines] == [1, 2, 3]
    names = (
        "step stage tokens loss grad_norm lr seq_len step_s data_s tokens_per_s tokens_per_s_per_gpu mfu mfu_full "
        "memory_gib skipped digest sources padding documents cut_documents recorded"
    )
    assert list(lines[0]) == names.split()


def test_what_parts_recorded_is_read_back_and_no_line_without_it_changes(tmp_path: Path) -> None:
    records = JsonLines(tmp_path / METRICS)
    for number, recorded in enumerate([None, {"load": 2.5, "worst": math.inf}, {}], 1):
        records.write(step(number, recorded=recorded))
    records.close()
    lines = (tmp_path / METRICS).read_text().splitlines()
    assert ["recorded" in line for line in lines] == [False, True, False]
    read = read_metrics(tmp_path / METRICS)
    assert [line["recorded"] for line in read] == [None, {"load": 2.5, "worst": None}, None]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    records = JsonLines(tmp_path / METRICS)
    records.write(step(1, loss=math.nan, grad_norm=math.inf, skipped=True))
    text = (tmp_path / METRICS).read_text()
    json.loads(text, parse_constant=pytest.fail)  # NaN is not JSON
    assert read_metrics(tmp_path / METRICS)[0]["loss"] is None


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, 3)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 4, "sta')
    assert [line["step"] for line in read_metrics(tmp_path / METRICS)] == [1, 2, 3]
    rewind(tmp_path, 3)
    JsonLines(tmp_path / METRICS).write(step(4))
    assert [line["step"] for line in read_metrics(tmp_path / METRICS)] == [1, 2, 3, 4]


def test_rewind_moves_later_lines_aside(tmp_path: Path) -> None:
    write(tmp_path, 12)
    rewind(tmp_path, 7)
    assert [line["step"] for line in read_metrics(tmp_path / METRICS)] == list(range(1, 8))
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.replaced.jsonl")] == list(range(8, 13))
    assert [line["step"] for line in read_metrics(tmp_path / EVALS)] == [5]
    assert [line["step"] for line in read_metrics(tmp_path / "evals.replaced.jsonl")] == [10]
    rewind(tmp_path, 7)
    assert len(read_metrics(tmp_path / "metrics.replaced.jsonl")) == 5


def test_rewind_without_files(tmp_path: Path) -> None:
    rewind(tmp_path, 0)
    assert not list(tmp_path.iterdir())


def test_environment(tmp_path: Path) -> None:
    facts = capture(torch.device("cpu"), ["internevo", "train"])
    assert facts["torch"] == torch.__version__
    assert facts["device"]
    assert facts["command"] == ["internevo", "train"]
    for _ in range(3):
        write_environment(tmp_path / "environment.json", facts)
    kept = json.loads((tmp_path / "environment.json").read_text())
    assert len(kept["earlier"]) == 2
    assert "earlier" not in kept["earlier"][0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_has_no_peak(dtype: torch.dtype) -> None:
    """A product timed at one moment is no ceiling of the next, when other processes have stopped."""
    assert peak_flops(torch.device("cpu"), dtype) is None
    assert Peak().share(1e12, 1.0) is None
    assert Peak(1e12, "datasheet").share(5e11, 1.0) == 0.5


def test_memory_is_that_of_this_process() -> None:
    before = memory_gib(torch.device("cpu"))
    held = torch.ones(int((before + 0.25) * 2**30 / 4))  # more than was ever resident
    assert memory_gib(torch.device("cpu")) >= before + 0.2
    del held
