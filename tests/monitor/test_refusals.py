"""What the system refuses is told in a sentence that names the file, and nothing half written stays."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from internevo.config.load import load_config
from internevo.files.errors import UserError
from internevo.hf.config_json import read_facts
from internevo.monitor.environment import write_environment
from internevo.monitor.metrics import EVALS, METRICS, damaged_lines, read_metrics, rewind
from internevo.parallel.world import join_world
from internevo.train.folder import RunFolder
from internevo.train.run import train
from tests.monitor.children import become_nobody, command, fill_disk, in_child
from tests.monitor.test_report import make_run
from tests.train.runs import write_config


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp(prefix="internevo-test-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def refused(answer: tuple[int, str], *said: str) -> None:
    code, printed = answer
    assert code == 2, printed
    assert "Traceback" not in printed
    assert printed.startswith("error: "), printed
    for words in said:
        assert words in printed


@pytest.mark.parametrize(("name", "mode"), [(".", 0o555), ("config.yaml", 0), ("metrics.jsonl", 0), (".", 0o700)])
def test_a_run_of_somebody_else(open_folder: Path, name: str, mode: int) -> None:
    run = make_run(open_folder / "run")
    assert command("report", run) == 0  # all modules are loaded: nobody else may read root's Python
    (run / name).chmod(mode)

    def report() -> int:
        become_nobody()
        return command("report", run)

    try:
        answer = in_child(open_folder / "log", report)
        if mode == 0o700:  # typer looks at what it is given itself
            assert answer[0] == 2
            assert "is not" in answer[1]
            assert "readable" in answer[1]
            assert "Traceback" not in answer[1]
        else:
            refused(answer, "Permission denied", "belongs to", "Ask its owner")
    finally:
        run.chmod(0o755)


def test_a_second_user_of_a_group_takes_the_lock(open_folder: Path) -> None:
    run = open_folder / "run"
    run.mkdir()
    run.chmod(0o775)
    (run / "logs").mkdir()
    before = os.umask(0o022)
    try:
        with RunFolder(run):
            pass
    finally:
        os.umask(before)
    assert (run / ".lock").stat().st_mode & 0o777 == 0o664

    def enter() -> int:
        become_nobody(run.stat().st_gid)
        with RunFolder(run):
            return 0

    assert in_child(open_folder / "log", enter)[0] == 0


def test_a_disk_that_is_full_under_a_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")

    def report() -> int:
        fill_disk(10_000)
        return command("report", run)

    refused(in_child(tmp_path / "log", report), "File too large")
    assert not list(run.glob("report.html*"))


def test_runs_is_a_file(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "runs").write_text("x")
    answer = in_child(tmp_path / "log", lambda: command("train", config))
    refused(answer, "Not a directory", "A part of this path is a file")


def test_a_missing_package_is_told_before_there_is_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # what an import of an absent package meets
    config = load_config(write_config(tmp_path, monitor={"wandb": True}))
    with pytest.raises(UserError, match="pip install 'internevo\\[wandb\\]'"):
        train(config, ["test"])
    assert not (tmp_path / "runs").exists()


def test_lines_that_are_no_records(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=5)
    whole = (run / METRICS).read_bytes().splitlines(keepends=True)
    strange = [b"\xff\xfe\x00\n", b"[]\n", b"3\n", b'{"step": 2}\n', whole[1].replace(b'"step": 2', b'"step": "2"')]
    strange += [whole[2].replace(b'"tokens_per_s": 200.0', b'"tokens_per_s": null'), b"[" * 100_000 + b"\n", b'{"a\n']
    (run / METRICS).write_bytes(b"".join([*whole[:2], *strange, *whole[2:]]))
    (run / EVALS).write_bytes(b"nonsense\n")
    assert [one["step"] for one in read_metrics(run / METRICS)] == [1, 2, 3, 4, 5]
    assert damaged_lines(run / METRICS) == 8
    assert command("report", run) == 0
    page = (run / "report.html").read_text()
    assert "8 lines of metrics.jsonl are no records and are left out. 1 lines of evals.jsonl" in page
    rewind(run, 4)
    assert (run / METRICS).read_bytes() == b"".join(whole[:4])
    assert (run / "metrics.replaced.jsonl").read_bytes() == whole[4] + b"".join(strange)  # nothing is lost


@pytest.mark.parametrize("text", ["{", "[]", "null", "\x00"])
def test_a_damaged_environment(tmp_path: Path, text: str) -> None:
    run = make_run(tmp_path / "run")
    (run / "environment.json").write_text(text)
    assert command("report", run) == 0
    assert "environment.json is damaged" in (run / "report.html").read_text()
    write_environment(run / "environment.json", {"device": "x"})
    assert json.loads((run / "environment.json").read_text()) == {"device": "x", "earlier": []}
    assert (run / "environment.damaged.json").read_text() == text


@pytest.mark.parametrize(
    ("said", "words"), [("2", "RANK, MASTER_ADDR, MASTER_PORT is not set"), ("two", "found 'two'"), ("0", "found '0'")]
)
def test_world_size_alone(monkeypatch: pytest.MonkeyPatch, said: str, words: str) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", said)
    with pytest.raises(UserError, match=words), join_world(torch.device("cpu")):
        pass


LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 256,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rope_theta": "10000"}, "rope_theta must be a number, found '10000'"),
        ({"hidden_size": "64"}, "hidden_size must be a whole number from 1 on, found '64'"),
        ({"vocab_size": True}, "vocab_size must be a whole number"),
        ({"rms_norm_eps": []}, "rms_norm_eps must be a number"),
        ({"rope_scaling": "linear"}, "rope_scaling must be a mapping, found 'linear'"),
        ({"rope_parameters": {"rope_theta": "1e6"}}, "rope_theta must be a number, found '1e6'"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, r"rope_scaling\.factor must be a number, found '2'"),
        ({"model_type": ["llama"]}, "is not known here"),
        ({"num_hidden_layers": None}, "num_hidden_layers must be a whole number from 1 on, found None"),
    ],
)
def test_a_hugging_face_config_with_values_of_other_types(tmp_path: Path, changed: dict, words: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **changed}))
    with pytest.raises(UserError, match=words):
        read_facts(tmp_path)


def test_a_tokenizer_whose_end_of_document_is_a_list(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    from internevo.tokens.tokenizer import load_tokenizer

    Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, "a")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": ["</s>"]}))
    with pytest.raises(UserError, match=r"eos_token: expected one token as text, found \['</s>'\]"):
        load_tokenizer(tmp_path)


def test_a_path_that_looks_like_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "[").mkdir()
    run = make_run(tmp_path / "[/red]")
    assert command("report", run) == 0
    assert f"wrote {run / 'report.html'}" in capsys.readouterr().out
    (run / "config.yaml").write_text(yaml.safe_dump({"name": "[/red]\x1b[31m"}))
    assert command("report", run) == 2
    printed = capsys.readouterr().err
    assert "[/red]" in printed
    assert "\x1b" not in printed
