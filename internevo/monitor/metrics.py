"""What is measured: the lines of `metrics.jsonl` and `evals.jsonl`, and the device's ceilings."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch

from internevo.files.durable import write_durable
from internevo.monitor.records import split_records

METRICS, EVALS = "metrics.jsonl", "evals.jsonl"


@dataclass(frozen=True)
class Shown:
    """How a number of a step is shown: a curve in wandb and TensorBoard; in console and report as its fields say."""

    title: str = ""  # of its chart in the report; without a title there is no chart
    unit: str = ""
    label: str = "each step"
    colour: int = 0
    smooth: bool = False  # whether the chart has a smoothed line too
    options: Mapping[str, Any] | None = None  # of the chart, as `report.js` knows them: zero, log, percent, height
    column: tuple[str, int, str] | None = None
    """Head, width and format of its column in the console; None for no column."""
    share: bool = False  # whether it is a share of a peak. Above 1 it is not shown: the peak was measured too low


_ZERO = {"zero": True}


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer step: one line of `metrics.jsonl`."""

    step: int  # counted from 1 over the whole run
    stage: str
    tokens: Annotated[int, Shown()]  # real tokens trained on in the run so far; padding does not count
    loss: Annotated[
        float,
        Shown("Training loss", "nats per token", smooth=True, options={"height": 300}, column=("loss", 9, "{:.4f}")),
    ]
    """Nats per real label."""
    grad_norm: Annotated[
        float, Shown("Gradient norm", "before clipping", "norm", 3, options={"log": True}, column=("grad", 8, "{:.3f}"))
    ]
    lr: Annotated[
        float, Shown("Learning rate", label="learning rate", colour=4, options=_ZERO, column=("lr", 10, "{:.2e}"))
    ]
    seq_len: Annotated[int, Shown()]
    step_s: Annotated[float, Shown()]  # seconds from asking for the batch to the updated weights
    data_s: Annotated[float, Shown()]  # seconds of these spent waiting for data
    tokens_per_s: Annotated[
        float,
        Shown(
            "Speed", "real tokens per second", colour=2, smooth=True, options=_ZERO, column=("tokens/s", 12, "{:,.0f}")
        ),
    ]
    tokens_per_s_per_gpu: Annotated[float, Shown()]
    mfu: Annotated[float | None, Shown(column=("mfu", 8, "{:.1%}"), share=True)]
    """Share of the device's peak, attention counted causally inside documents. None where no peak is known, as on a
    CPU, and where the step did more than the peak, which was measured too low."""
    mfu_full: Annotated[float | None, Shown(share=True)]
    """The same in the older convention: attention counted as full squares of `seq_len`. With packed documents it may
    be above 1, as most of a square is then never computed."""
    memory_gib: Annotated[float, Shown("Peak memory", "GiB", "peak", 5, options=_ZERO, column=("mem", 9, "{:.2f}G"))]
    """Peak so far: allocated on a GPU, resident on a CPU."""
    skipped: bool  # whether the update was left out because something was not finite
    digest: str  # hash of all that the step's data gives to the gradient, on all ranks: `data/batch.py` says of what
    sources: dict[str, int]  # real tokens of this step by source
    padding: int  # places of this step without a real token
    documents: int  # documents that ended in this step ...
    cut_documents: int  # ... and of these, the ones that no single row held whole
    recorded: dict[str, float | None] | None = None
    """What parts of the model, the engine or the trainer recorded, by name; null where that was not finite."""


@dataclass(frozen=True)
class EvalMetrics:
    """Held-out loss of one source: one line of `evals.jsonl`."""

    step: int
    stage: str
    when: str  # `start`, `middle` or `end` of the stage
    source: str
    seq_len: int
    tokens: int  # labels evaluated
    loss: float  # nats per label
    frequencies: float | None
    """The loss on the same labels of a model that knows only how often each token occurs in the source's training
    documents. None where nothing of the source is trained on, and in old records."""
    by_position: list[tuple[int, int, float, int]]  # (first position, last exclusive, loss, labels)
    recorded: dict[str, float | None] | None = None
    """What the stage's objective reports besides, by name; null where that was not finite."""


@cache
def shown(schema: type) -> dict[str, Shown]:
    """The numbers of a dataclass that are shown, by field."""
    hints = typing.get_type_hints(schema, include_extras=True).items()
    return {name: one for name, hint in hints for one in getattr(hint, "__metadata__", ()) if isinstance(one, Shown)}


class JsonLines:
    """A file that grows by one JSON object a line, flushed line by line."""

    def __init__(self, path: Path):
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: StepMetrics | EvalMetrics) -> None:
        """Append a record; numbers that are not finite become null."""
        values = _finite(asdict(record))
        if not values.get("recorded"):
            values.pop("recorded", None)
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


_SCHEMAS: dict[str, type] = {METRICS: StepMetrics, EVALS: EvalMetrics}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of a metrics or evals file, or of another of lines with a `step`; none when it does not exist.

    Others, such as the half line that a killed process leaves at the end, are passed over: see `damaged_lines`.
    """
    return [record for _, record in split_records(path, _SCHEMAS.get(path.name))[0]]


def damaged_lines(path: Path) -> int:
    """The number of lines of the file that are no records."""
    return len(split_records(path, _SCHEMAS.get(path.name))[1])


def rewind(run: Path, step: int) -> None:
    """Bring a run's records back to `step`, from which it resumes.

    Lines of later steps, which will be trained again, and lines that are no records are moved to
    `metrics.replaced.jsonl` and `evals.replaced.jsonl`, so that the main files hold each step once and nothing is lost.
    """
    for name, schema in _SCHEMAS.items():
        path = run / name
        if not path.exists():
            continue
        records, others = split_records(path, schema)
        later = [line for line, record in records if record["step"] > step]
        if later or others:
            with path.with_suffix(".replaced.jsonl").open("ab") as file:
                file.writelines(line + b"\n" for line in (*later, *others))
        write_durable(path, b"".join(line + b"\n" for line, record in records if record["step"] <= step))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Dense bf16 peaks in FLOP/s from the makers' data sheets. The first name found in the device's name counts.
BF16_PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "B300": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "MI300X": 1307e12,
    "MI325X": 1307e12,
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str] | None:
    """The device's ceiling for matrix products in FLOP/s, and whether it is from a `datasheet` or `measured`.

    For a GPU without a known data sheet figure, a large product is timed: MFU is then the share of what this GPU's own
    matrix product reaches. None for a CPU: other processes share it, so its peak changes from moment to moment.
    """
    if device.type != "cuda":
        return None
    if dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, peak in BF16_PEAKS.items():
            if known in name:
                return peak, "datasheet"
    return _measured_flops(device, dtype), "measured"


def _measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    size = 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, deadline = math.inf, time.perf_counter() + 0.5
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        a @ b
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def memory_gib(device: torch.device) -> float:
    """The peak of memory so far in GiB: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
