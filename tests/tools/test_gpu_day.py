"""A day on a GPU, tried small on a CPU: what it finds is in the file whatever becomes of its processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"

BAD = """
import os, signal, time
import torch

def no_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate everything")

def checks(part, small, records):
    yield "good", lambda: {"told": "fine", "value": float("nan")}
    yield "raises", lambda: 1 / 0
    yield "dies", lambda: os.kill(os.getpid(), signal.SIGSEGV)
    yield "hangs", lambda: time.sleep(1000)
    yield "takes too much", no_memory
    yield "process", lambda: {"told": str(os.getpid())}
    yield "last", lambda: {"status": "wrong", "told": str(os.getpid())}
"""


def lines(path: Path) -> list[dict[str, Any]]:
    """Every line; none may be torn."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(TOOLS / "gpu_day.py"), "--small", "--out", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_day_is_written_down_and_shown(tmp_path: Path) -> None:
    out = tmp_path / "day.jsonl"
    for _ in range(2):
        day = start(out, "--minutes", "6", "--parts", "facts", "internevo, tiny, 128 full")
        printed, _ = day.communicate(timeout=400)
        assert day.returncode == 0, printed
    found = lines(out)
    first, second = dict.fromkeys(one["run"] for one in found)
    for run in (first, second):
        mine = [one for one in found if one["run"] == run]
        assert {one["part"] for one in mine if one["status"] == "done"} == {"facts", "internevo, tiny, 128 full, lean"}
        (case,) = [one for one in mine if "case" in one]
        assert case["tokens_per_s"] > 0
        assert [one["loss"] for one in mine if one["status"] == "step"] == case["losses"]
        assert any(one.get("product_flops_per_s", 0) > 0 for one in mine)
    assert "128 full, lean" in printed.splitlines()[-3]
    shown = subprocess.run(
        [sys.executable, str(TOOLS / "gpu_day.py"), "--show", str(out)], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == printed[printed.index(f"day {second}") :].strip()


@pytest.mark.slow
def test_a_crash_and_a_hang_cost_one_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    from gpu_checks.parts import Part
    from gpu_checks.record import Records
    from gpu_checks.watch import Day

    (tmp_path / "bad_checks.py").write_text(BAD)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    records = Records(tmp_path / "day.jsonl", "run")
    (tmp_path / "day.jsonl").write_text('{"run": "torn", "pa')
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))}
    late = Part("late", "bad_checks", "", need=1000)
    Day(records, True, time.monotonic() + 200, environment).run([Part("bad", "bad_checks", "", check=20), late])
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torn, *found = (tmp_path / "day.jsonl").read_text().splitlines()
    assert torn == '{"run": "torn", "pa'
    checks = {one["check"]: one for one in map(json.loads, found) if one["part"] == "bad"}
    assert {name: one["status"] for name, one in checks.items()} == {
        "good": "right",
        "raises": "failed",
        "dies": "crashed",
        "hangs": "timed out",
        "takes too much": "out of memory",
        "process": "right",
        "last": "wrong",
        "all": "done",
    }
    assert checks["good"]["value"] == "nan"
    assert checks["raises"]["told"].startswith("ZeroDivisionError")
    assert "exit code -11" in checks["dies"]["told"]
    assert checks["process"]["told"] == checks["last"]["told"]
    last = json.loads(found[-1])
    assert (last["part"], last["status"], last["told"]) == ("late", "not run", "no time")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_day_that_is_ended_loses_nothing(number: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "day.jsonl"
    day = start(out, "--minutes", "6", "--parts", "pieces", "engines")
    deadline = time.monotonic() + 120
    while sum(one["status"] == "right" for one in lines(out)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    day.send_signal(number)
    printed, _ = day.communicate(timeout=60)  # returns when nobody holds the pipe: the part's process is gone too
    found = lines(out)
    assert sum(one["status"] == "right" for one in found) >= 2
    if number == signal.SIGTERM:
        assert day.returncode == 128 + number
        assert "the day was ended" in printed
        assert {one["status"] for one in found if one["part"] == "pieces"} >= {"cut", "not finished"}
        assert ("engines", "not run") in {(one["part"], one["status"]) for one in found}


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(TOOLS / "gpu_day.py"), "--out", str(tmp_path / "day.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 2
    assert "torch sees no GPU here; --small tries the tool itself" in done.stdout


def test_packages_that_were_carried_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    from gpu_checks import packages

    monkeypatch.setattr(packages, "PACKAGES", {"carried": ("carried", "a"), "absent": ("absent", "b needs it")})
    (tmp_path / packages.WHEELS).mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / packages.WHEELS / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried/__init__.py", "number = 7")
    site, told = packages.provide(tmp_path)
    assert told.startswith("carried comes from carried-1.0-py3-none-any.whl; absent is not installed")
    assert (Path(site) / "carried" / "__init__.py").read_text() == "number = 7"
