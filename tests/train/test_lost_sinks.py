"""What only shows may break: the console, a log, TensorBoard, wandb, the page. The record may not."""

from __future__ import annotations

import os
import pty
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from internevo.config.load import load_config
from internevo.train.run import train
from tests.train.runs import finish, steps, write_config

LAST = 12


def config_of(folder: Path, **changes: Any) -> Path:
    return write_config(folder, **{"stages": [{"name": "only", "train": {"steps": LAST}}], **changes})


def start(
    *arguments: str | Path, limit: int | None = None, closed: bool = False, **streams: Any
) -> subprocess.Popen[str]:
    """The command, with the standard streams that are given; `limit` is the largest file that it can write.

    With `closed`, it has no standard streams.
    """

    def prepare() -> None:
        if closed:
            os.closerange(0, 3)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "internevo", *map(str, arguments)]
    return subprocess.Popen(command, text=True, env=environment, preexec_fn=prepare, **streams)


def complete(run: Path) -> None:
    assert [line["step"] for line in steps(run)] == list(range(1, LAST + 1))
    assert (run / "checkpoints" / f"step-{LAST:06d}").is_dir()


@pytest.mark.parametrize("verb", ["train", pytest.param("launch", marks=pytest.mark.slow)])
@pytest.mark.parametrize("both", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_head_reads_four_lines(tmp_path: Path, verb: str, both: bool) -> None:
    """`internevo train CONFIG | head -4`, and the same with `2>&1`."""
    several = ["--nproc", "2"] if verb == "launch" else []
    errors = tmp_path / "errors"
    with errors.open("w") as file:
        process = start(
            verb,
            config_of(tmp_path),
            *several,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if both else file,
        )
    assert process.stdout is not None
    head = [process.stdout.readline() for _ in range(4)]
    process.stdout.close()
    assert process.wait(timeout=300) == 0, (head, errors.read_text())
    run = tmp_path / "runs" / "run"
    complete(run)
    log = (run / "logs" / "rank-0000.log").read_text()
    assert log.count("the console is lost (Broken pipe)") == 1
    assert f"{LAST}/{LAST}" in log  # which goes on
    assert (run / "report.html").is_file()
    if not both:
        assert errors.read_text().count("the console is lost") == 1
        assert "Traceback" not in errors.read_text()
        assert "Exception ignored" not in errors.read_text()


def test_closed_streams_are_not_the_record(tmp_path: Path) -> None:
    """`internevo train CONFIG <&- >&- 2>&-`: what is said of a signal is no line of evals.jsonl."""
    config = config_of(tmp_path, stages=[{"name": "only", "train": {"steps": 3000}}], checkpoint={"every": 0})
    process = start("train", config, closed=True)
    run = tmp_path / "runs" / "run"
    for _ in range(600):
        if process.poll() is not None or ((run / "metrics.jsonl").exists() and len(steps(run)) > 2):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 128 + signal.SIGTERM
    for name in ("metrics.jsonl", "evals.jsonl"):
        for line in (run / name).read_text().splitlines():
            assert line.startswith("{"), (name, line)


@pytest.mark.slow
def test_a_terminal_goes_away(tmp_path: Path) -> None:
    """Not that of the session, so that nothing but an error tells of it."""
    ours, theirs = pty.openpty()
    process = start("train", config_of(tmp_path), stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    assert b"attention" in os.read(ours, 1000)
    os.close(ours)
    assert process.wait(timeout=300) == 0
    complete(tmp_path / "runs" / "run")
    assert "the console is lost (Input/output error)" in (tmp_path / "runs/run/logs/rank-0000.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_disk_under_what_is_printed(tmp_path: Path, stream: str) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        others = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
        process = start("train", config_of(tmp_path), **others)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, (out, errors)
    complete(tmp_path / "runs" / "run")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_mistake_has_its_exit_code_whoever_reads(tmp_path: Path, stream: str) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        others = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: full}
        process = start("report", tmp_path / "absent", **others)
    assert process.wait(timeout=300) == 2


def full_log(run: Path) -> None:
    (run / "logs").mkdir(parents=True)
    (run / "logs" / "rank-0000.log").symlink_to("/dev/full")


def log_is_a_folder(run: Path) -> None:
    (run / "logs" / "rank-0000.log").mkdir(parents=True)


def tensorboard_is_a_file(run: Path) -> None:
    run.mkdir(parents=True)
    (run / "tensorboard").write_text("")


def page_is_a_folder(run: Path) -> None:
    (run / "report.html").mkdir(parents=True)


def wandb_has_no_number(run: Path) -> None:
    (run / "wandb-id").mkdir(parents=True)


@pytest.mark.parametrize(
    ("hurt", "monitor", "message"),
    [
        (full_log, {}, "rank-0000.log is lost (No space left on device"),
        (log_is_a_folder, {}, "rank-0000.log is lost (Is a directory"),
        (tensorboard_is_a_file, {"tensorboard": True}, "TensorBoard is lost ("),
        (page_is_a_folder, {}, "report.html was not written (IsADirectoryError"),
        (wandb_has_no_number, {"wandb": True}, "wandb is lost (Is a directory"),
    ],
)
def test_what_only_shows_is_told_once_and_left_out(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    hurt: Callable[[Path], None],
    monitor: dict[str, Any],
    message: str,
) -> None:
    torch.set_num_threads(1)
    run = tmp_path / "runs" / "run"
    hurt(run)
    assert train(load_config(config_of(tmp_path, monitor=monitor)), ["test"]) is None
    complete(run)
    said = capfd.readouterr()
    assert (said.out + said.err).count(message) == 1, said


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_record_that_cannot_be_written_stops_the_run(tmp_path: Path, processes: int) -> None:
    """No file may be larger than 5,000 bytes, which metrics.jsonl reaches; its checkpoints are not to be."""
    config = config_of(tmp_path, checkpoint={"every": 0}, stages=[{"name": "only", "train": {"steps": 400}}])
    arguments = ["train", config] if processes == 1 else ["launch", config, "--nproc", str(processes)]
    process = start(*arguments, limit=5000, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out = finish(process)
    assert process.returncode == 2, out
    run = tmp_path / "runs" / "run"
    assert out.count(f"{Path('metrics.jsonl')} cannot be written: File too large") == 1, out
    assert "It is the record of the run, which stops here" in out
    assert "Traceback" not in out
    assert 3 < len(steps(run)) < 40
    assert not list((run / "checkpoints").glob("step-*"))  # of a step without a record


@pytest.mark.slow
def test_sigterm_without_a_console_saves(tmp_path: Path) -> None:
    config = config_of(tmp_path, stages=[{"name": "only", "train": {"steps": 3000}}], checkpoint={"every": 0})
    process = start("train", config, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    while "3/3,000" not in process.stdout.readline():
        assert process.poll() is None
    process.stdout.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 128 + signal.SIGTERM
    run = tmp_path / "runs" / "run"
    assert (run / "checkpoints" / f"step-{len(steps(run)):06d}").is_dir()
