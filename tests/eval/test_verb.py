"""`internevo eval` and `internevo serve`, as commands."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from internevo.files.errors import UserError
from internevo.hf.serve import choose_engine, engine_command
from tests.launch.cluster import free_ports
from tests.train.runs import finish, start

pytestmark = pytest.mark.slow


def test_two_models_side_by_side(text_run: Path, exported: Path, tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps({"question": "a", "choices": ["x", "y"], "answer": 0}))
    tokens = text_run.parents[1] / "tokens"
    process = start(
        "eval",
        exported,
        "--against",
        text_run,
        "--source",
        f"lib={tokens}",
        "--needle",
        "64,128",
        "--depths",
        "3",
        "--trials",
        "1",
        "--choices",
        questions,
        "--contamination",
        f"{tokens},{tokens}",
        "--out",
        tmp_path / "out",
    )
    out = finish(process)
    assert process.returncode == 0, out
    first, second = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert first["heldout"]["lib"]["loss"] == pytest.approx(second["heldout"]["lib"]["loss"], abs=1e-4)
    assert len(first["needle"]) == 6
    assert first["contamination"]["test_minus_reference"] == 0
    page = (tmp_path / "out" / "eval.html").read_text()
    charts = json.loads(page.split('id="data">')[1].split("</script>")[0])["charts"]
    assert set(charts) == {"positions lib", "documents lib"}
    for chart in charts.values():
        assert [one["label"] for one in chart["series"]] == [first["model"], second["model"]]
    for text in ("A needle in a haystack", "Contamination", "right in every rotation"):
        assert text in page


def test_every_checkpoint_is_watched(text_run: Path) -> None:
    process = start("eval", text_run, "--watch", "--tokens", "2000", "--device", "cpu")
    out = finish(process)
    assert process.returncode == 0, out
    lines = [json.loads(line) for line in (text_run / "eval" / "watched.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40]
    assert lines[0]["heldout"]["library"]["loss"] > lines[1]["heldout"]["library"]["loss"]
    assert "0 checkpoints evaluated" in finish(start("eval", text_run, "--watch", "--tokens", "2000"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "x", "--nproc", "1", "--precision", "fp8"], "--precision: must be fp32 or bf16"),
        (["--needle", "10x"], "--needle: expected lengths in tokens"),
        (["--source", "nowhere"], "nowhere"),
        (["--contamination", "a"], "takes two or three token stores"),
        (["--choices", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
    ],
)
def test_mistakes(arguments: list[str], message: str, text_run: Path) -> None:
    process = start("eval", text_run, *arguments)
    out = finish(process)
    assert process.returncode == 2, out
    assert message in out
    assert "Traceback" not in out


def test_a_run_is_served(text_run: Path) -> None:
    """transformers' own server, asked by the official client; greedy text is that of `generate`."""
    from openai import APIConnectionError, APIStatusError, OpenAI

    (port,) = free_ports(1)
    server = start("serve", text_run, "--engine", "transformers", "--port", str(port))
    folder = text_run / "serve" / "step-000040"
    try:
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", max_retries=0)
        deadline = time.monotonic() + 150
        while True:
            try:
                answer = client.completions.create(
                    model=str(folder), prompt="def main(", max_tokens=12, temperature=0, seed=0
                )
                break
            except (APIConnectionError, APIStatusError):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
    finally:
        server.terminate()
        out = finish(server)
    said = finish(start("generate", text_run, "--prompt", "def main(", "--tokens", "12", "--temperature", "0"))
    assert "serving" in out
    assert answer.choices[0].text.strip()
    assert said.startswith("def main(" + answer.choices[0].text.rstrip())


def test_engines(tmp_path: Path) -> None:
    assert choose_engine("transformers") == "transformers"
    assert choose_engine("auto") == "transformers"  # the only one in the development environment
    with pytest.raises(UserError, match="vllm cannot serve here: not installed"):
        choose_engine("vllm")
    with pytest.raises(UserError, match="must be auto, vllm, lmdeploy, transformers"):
        choose_engine("ollama")
    (tmp_path / "modeling_internlm2.py").touch()
    command = engine_command("vllm", tmp_path, "0.0.0.0", 9000, ["--tensor-parallel-size", "2"])
    assert command[1:3] == ["serve", str(tmp_path)]
    assert "--trust-remote-code" in command
    assert command[-2:] == ["--tensor-parallel-size", "2"]
    assert (
        subprocess.run(
            [*engine_command("transformers", tmp_path, "h", 1)[:2], "--help"], capture_output=True
        ).returncode
        == 0
    )
