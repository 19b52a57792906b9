"""What reaches the console, wandb and TensorBoard, read back from what they wrote."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from internevo.config.load import load_config
from internevo.config.schema import RunConfig
from internevo.files.errors import UserError
from internevo.monitor.metrics import EVALS, METRICS, read_metrics
from internevo.monitor.sinks import RecordError, check_sinks, open_sinks
from tests.monitor.test_records import evaluation, step

CONFIG = """
name: demo
model: {preset: tiny}
train: {seq_len: 64, batch_tokens: 640}
monitor: {every: %d, wandb: %s, tensorboard: %s}
stages:
  - {name: base, train: {steps: 6}, data: {sources: [{path: web}]}}
  - {name: long, train: {steps: 4}, data: {sources: [{path: web}]}}
"""


def config(folder: Path, every: int = 1, wandb: bool = False, tensorboard: bool = False) -> RunConfig:
    (folder / "logs").mkdir(exist_ok=True)
    path = folder / "demo.yaml"
    path.write_text(CONFIG % (every, str(wandb).lower(), str(tensorboard).lower()))
    return load_config(path, check_data=False)


def play(sinks, first: int = 1, last: int = 10) -> None:
    for number in range(first, last + 1):
        sinks.step(step(number, stage="base" if number <= 6 else "long", skipped=number == 8))
    sinks.evaluation(evaluation(last, stage="long"))
    sinks.close()


def test_console_and_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play(open_sinks(config(tmp_path, every=3), tmp_path, 0))
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split()[:2] for line in lines if line.startswith(("base", "long"))]
    # the first, every third, and the one that was skipped
    assert shown == [["base", "1/6"], ["base", "3/6"], ["base", "6/6"], ["long", "2/4"], ["long", "3/4"]]
    assert "skipped: not finite" in next(line for line in lines if "2/4" in line)
    assert any("held out web, end of long: loss 3.5000 on " in line and "32-63: 3.400" in line for line in lines)
    log = (tmp_path / "logs" / "rank-0000.log").read_text()
    assert "base" in log
    assert "\x1b" not in log
    assert len(read_metrics(tmp_path / METRICS)) == 10  # JSON lines are never thinned
    assert len(read_metrics(tmp_path / EVALS)) == 1


def test_what_parts_of_the_model_record_reaches_every_sink(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_MODE", "offline")
    sinks = open_sinks(config(tmp_path, tensorboard=True, wandb=True), tmp_path, 0)
    for number, worst in enumerate((1.0, math.nan, math.inf), 1):
        sinks.step(step(number, recorded={"router/load": 0.25, "[b]worst": worst}))
    assert len(sinks.others) == 4  # none is lost
    sinks.close()
    wandb.teardown()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("base")]
    ends = [line.partition("router")[2] for line in lines]
    assert ends == ["/load 0.25  [b]worst 1", "/load 0.25  [b]worst nan", "/load 0.25  [b]worst inf"]
    assert "router/load 0.25" in (tmp_path / "logs" / "rank-0000.log").read_text()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/router/load")] == [0.25] * 3
    assert [line["train/router/load"] for line in wandb_records(tmp_path)] == [0.25] * 3


def test_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play(open_sinks(config(tmp_path), tmp_path, 0), last=4)
    line = next(line for line in capsys.readouterr().out.splitlines() if "4/6" in line)
    assert line.split()[-1] == "0m03s"  # six steps of half a second


def test_a_stage_s_end_and_the_next_one_s_start_are_two_curves_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sinks = open_sinks(config(tmp_path, tensorboard=True), tmp_path, 0)
    sinks.evaluation(evaluation(0, when="start"))
    sinks.evaluation(evaluation(6, when="end"))
    sinks.evaluation(evaluation(6, when="start", stage="long"))
    sinks.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("heldout/web")] == [0, 6]
    assert [event.step for event in events.Scalars("heldout at start/web")] == [6]


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    play(open_sinks(config(tmp_path, tensorboard=True), tmp_path, 0))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    loss = events.Scalars("train/loss")
    assert [event.step for event in loss] == list(range(1, 11))
    assert loss[3].value == pytest.approx(5.0 / 4)
    assert events.Scalars("heldout/web")[0].value == pytest.approx(3.5)


def test_a_resumed_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    play(open_sinks(config(tmp_path, tensorboard=True), tmp_path, 0))
    play(open_sinks(config(tmp_path, tensorboard=True), tmp_path, 6), first=7)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 11))


def wandb_log(file: Path) -> Iterator[bytes]:
    """The entries of a `.wandb` file: LevelDB's log format behind a header of seven bytes.

    Blocks of 32 KiB hold chunks of (checksum, length, kind, data); an entry is one chunk of kind 1, or chunks of
    the kinds 2, 3, ... and 4.
    """
    data, block, entry, place = file.read_bytes(), 2**15, b"", 7
    assert data.startswith(b":W&B")
    while place + 7 <= len(data):
        if block - place % block < 7:  # no room for a chunk's head
            place += block - place % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        entry += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield entry
            entry = b""


def wandb_entries(run: Path, kind: str) -> Iterator[Any]:
    """The records of one kind in the offline run directories under a run folder."""
    from wandb.proto import wandb_internal_pb2

    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert files, sorted(run.rglob("*"))
    for file in files:
        for entry in wandb_log(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(entry)
            if record.WhichOneof("record_type") == kind:
                yield getattr(record, kind)


def wandb_records(run: Path) -> list[dict]:
    """The history records of the offline run directories under a run folder."""
    return [
        {(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in entry.item}
        for entry in wandb_entries(run, "history")
    ]


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    play(open_sinks(config(tmp_path, wandb=True), tmp_path, 0))
    first_id = (tmp_path / "wandb-id").read_text()
    wandb.teardown()  # as at a process's end: wandb's own process writes what is left
    records = wandb_records(tmp_path)
    steps = [record for record in records if "train/loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 11))
    assert steps[1]["train/loss"] == pytest.approx(2.5)
    assert [record["heldout/web"] for record in records if "heldout/web" in record] == [3.5]
    play(open_sinks(config(tmp_path, wandb=True), tmp_path, 6), first=7)
    assert (tmp_path / "wandb-id").read_text() == first_id  # a resumed run goes on under the same id


KEYS = "{project: pretraining, entity: the-team, group: ablations, tags: [7b, long], name: first}"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([f"monitor.wandb_run={KEYS}"], ("pretraining", "the-team", "ablations", ["7b", "long"], "first")),
        ([], ("internevo", "", "", [], "demo")),
    ],
)
def test_what_a_run_is_called_at_wandb(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    expected: tuple[str, str, str, list[str], str],
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("PROJECT", "ENTITY", "RUN_GROUP", "TAGS", "NAME"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    config(tmp_path, wandb=True)
    open_sinks(load_config(tmp_path / "demo.yaml", overrides, check_data=False), tmp_path, 0).close()
    wandb.teardown()
    (said, *_) = wandb_entries(tmp_path, "run")
    assert (said.project, said.entity, said.run_group, list(said.tags), said.display_name) == expected
    folder = next(tmp_path.glob("wandb/offline-run-*"))
    shown = "".join("".join(capsys.readouterr()).split())  # a narrow console breaks lines
    assert f"wandb:offline;`wandbsync{folder}`sendsit" in shown
    assert "WARNING" not in shown


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # what an import of an absent package meets
    with pytest.raises(UserError, match=rf"pip install 'internevo\[{name}\]'"):
        check_sinks(config(tmp_path, **{name: True}))


def test_a_log_on_a_full_disk_is_told_once_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank-0000.log").symlink_to("/dev/full")
    play(open_sinks(config(tmp_path), tmp_path, 0))
    out = capsys.readouterr().out
    assert out.count("rank-0000.log is lost (No space left on device") == 1
    assert out.count("skipped: not finite") == 1  # the console goes on
    assert len(read_metrics(tmp_path / METRICS)) == 10


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")  # nor a traceback of its thread
def test_tensorboard_that_breaks_on_the_way_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sinks = open_sinks(config(tmp_path, tensorboard=True), tmp_path, 0)
    play_on, broken = sinks.others[:-1], sinks.others[-1]
    writer = broken._writer.file_writer.event_writer._async_writer  # type: ignore[attr-defined]
    writer._writer._writer.close()
    for number in (1, 2, 3):
        sinks.step(step(number, stage="base"))
    assert sinks.others == play_on
    sinks.close()
    writer._worker.join(30)  # or its exception, which is meant to be ignored here, comes in a later test
    assert not writer._worker.is_alive()
    assert capsys.readouterr().out.count("TensorBoard is lost (") == 1
    assert len(read_metrics(tmp_path / METRICS)) == 3


def test_a_record_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    (tmp_path / METRICS).mkdir()
    with pytest.raises(RecordError, match=r"metrics.jsonl cannot be written: Is a directory"):
        open_sinks(config(tmp_path), tmp_path, 0)
