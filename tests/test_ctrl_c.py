"""Ctrl-C at many moments of many verbs: one line, exit code 130, no traceback, and soon."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from internevo.tokens.train_tokenizer import train_tokenizer
from tests.train.runs import write_store

MOMENTS = int(os.environ.get("CTRL_C_MOMENTS", "3"))
"""Of each verb; a campaign sets more."""
ENDS_WITHIN_S = 120


def begin(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    """A verb in a process group of its own, as a terminal has it.

    Ctrl-C is held back until the command handles it: while Python itself starts, no program can say anything.
    """

    def heeding() -> None:  # whoever runs the tests in the background lets them, and what they start, ignore SIGINT
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    return subprocess.Popen(
        [sys.executable, "-m", "internevo", *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=heeding,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return process.communicate(timeout=ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a tokenizer, a store and a run."""
    folder = tmp_path_factory.mktemp("place")
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]
    lines = [" ".join(draw.choices(words, k=200)) for _ in range(2000)]
    (folder / "corpus").mkdir()
    for number in range(4):
        (folder / "corpus" / f"{number}.txt").write_text("\n".join(lines[number::4]), encoding="utf-8")
    train_tokenizer(lines[:20], folder / "small.model", 512)
    write_store(folder / "web", 100, 0)
    (folder / "run.yaml").write_text(
        "name: run\nmodel: {preset: tiny}\ntokenizer: small.model\n"
        "train: {seq_len: 64, batch_tokens: 512, steps: 5, device: cpu}\n"
        "data: {eval_tokens: 500, sources: [{path: web}]}\n",
        encoding="utf-8",
    )
    trained = begin(["train", "run.yaml"], folder)
    said = ended(trained)
    assert trained.returncode == 0, said
    return folder


VERBS = {
    "prepare": ["data", "prepare", "corpus", "--tokenizer", "small.model", "--out", "made/NEW", "--workers", "3"],
    "tokenizer": ["tokenizer", "train", "corpus", "--vocab", "2000", "--out", "made/NEW"],
    "export": ["export", "runs/run", "made/NEW"],
    "report": ["report", "runs/run"],
}
MORE = {
    "generate": ["generate", "runs/run", "--tokens", "20"],
    "eval": ["eval", "runs/run", "--source", "web", "--tokens", "5000", "--out", "made/NEW"],
    "config": ["config", "run.yaml"],
    "doctor": ["doctor"],
    "train": ["train", "run.yaml", "train.steps=20", "name=NEW"],
    "launch": ["launch", "run.yaml", "--nproc", "2", "train.steps=20", "name=NEW"],
}
"""Of a campaign."""


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS | (MORE if "CTRL_C_MOMENTS" in os.environ else {}))
def test_one_line_and_130_at_any_moment(place: Path, verb: str) -> None:
    command = (VERBS | MORE)[verb]
    began = time.monotonic()
    undisturbed = begin([one.replace("NEW", verb) for one in command], place)
    said = ended(undisturbed)
    takes = time.monotonic() - began
    assert undisturbed.returncode == 0, said
    moments = random.Random(verb)
    for number in range(MOMENTS):
        moment = moments.random() * takes if number else 0.0
        process = begin([one.replace("NEW", f"{verb}-{number}") for one in command], place)
        time.sleep(moment)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        out, err = ended(process)
        said = f"{verb} at {moment:.2f} of {takes:.2f} s: {process.returncode}\n{out}\n{err}"
        assert "Traceback" not in out + err, said
        assert process.returncode in (0, 130), said
        assert process.returncode == 130 or number, said
        if process.returncode == 130 and verb not in ("train", "launch"):  # these say what they save
            assert ["stopped" in line for line in err.splitlines()].count(True) == 1, said
            assert err.splitlines()[-1].startswith("stopped"), said


IN_A_STRING = """
from internevo.cli import main, verbs
verbs.app = lambda: exec("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
main()
"""


def test_in_code_that_stands_in_a_string(tmp_path: Path) -> None:
    """As dataclasses make it: Python itself would end the process by the signal, however it is handled."""
    (tmp_path / "program.py").write_text(IN_A_STRING, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "program"],  # a file is run otherwise, and would end with 130 in any case
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_S,
    )
    assert (run.returncode, run.stderr) == (130, "stopped by Ctrl-C\n")


IMPORTS = """
import sys, time
from internevo.cli.ctrl_c import CtrlC
CtrlC().heed()
try:
    import torch
    time.sleep(20)
except KeyboardInterrupt:
    print(sys.modules["torch"].done, "and interrupted")
"""
TORCH = """
import os, signal, time
for _ in range({times}):
    os.kill(os.getpid(), signal.SIGINT)
time.sleep(0.2)
done = "imported"
"""


@pytest.mark.parametrize(("times", "code", "said"), [(1, 0, "imported and interrupted\n"), (2, 130, "")])
def test_torch_is_imported_whole_or_not_waited_for(tmp_path: Path, times: int, code: int, said: str) -> None:
    """Its C++ code would end the process by SIGABRT. A second Ctrl-C does not wait."""
    (tmp_path / "torch.py").write_text(TORCH.format(times=times), encoding="utf-8")
    found = [str(tmp_path), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(found)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, said), done.stderr
