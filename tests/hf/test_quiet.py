"""The verbs about models as processes: nothing asks, and no other library speaks."""

from __future__ import annotations

import logging
import os
import pty
import select
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from internevo.files.quiet import quiet
from internevo.hf.export import export
from internevo.parallel.asynchronous import enable_async_tensor_parallel
from internevo.parallel.mesh import Place
from internevo.tokens.tokenizer import load_tokenizer
from internevo.tokens.train_tokenizer import train_tokenizer
from internevo.train.stored_model import open_model
from tests.hf.models import ModelWeights, our_model

WAIT_S = 400
SPEAKERS = ("Warning", "warn", "transformers", "torchao", "deepspeed", "accelerator", "Failed to load", "deprecated")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a tokenizer."""
    root = tmp_path_factory.mktemp("quiet")
    tokenizer = load_tokenizer(train_tokenizer([Path(__file__).read_text(encoding="utf-8")], root / "t.model", 360))
    model = our_model(vocab=360)
    export(ModelWeights(model), model.config, root / "model", "llama", seq_len=64, tokenizer=tokenizer)
    return root / "model"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "internevo", *map(str, arguments)]


def on_a_terminal(*arguments: object) -> tuple[int, str]:
    """Exit code, and all that a person at a terminal sees. Nobody answers."""
    main, other = pty.openpty()
    process = subprocess.Popen(command(*arguments), stdin=other, stdout=other, stderr=other, start_new_session=True)
    os.close(other)
    seen, end = b"", time.monotonic() + WAIT_S
    try:
        while time.monotonic() < end and select.select([main], [], [], end - time.monotonic())[0]:
            try:
                piece = os.read(main, 4096)
            except OSError:  # the last one who had it open is gone
                break
            if not piece:
                break
            seen += piece
        return process.wait(timeout=10), seen.decode()
    finally:
        process.kill()
        process.wait()
        os.close(main)


def without_input(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The verb with its standard input closed, as a batch system may start it."""
    line = ["sh", "-c", 'exec "$@" <&-', "sh", *command(*arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=WAIT_S)


@pytest.mark.slow
def test_an_export_of_internlm2_asks_nothing(folder: Path, tmp_path: Path) -> None:
    code, seen = on_a_terminal("export", folder, tmp_path / "out", "--format", "internlm2")
    assert code == 0, seen
    assert "y/N" not in seen
    ours = ("differ from transformers'", "with transformers")
    assert [word for word in SPEAKERS if word in seen.replace(ours[0], "").replace(ours[1], "")] == []
    assert "next:" in seen
    code, seen = on_a_terminal("import", tmp_path / "out", tmp_path / "imported")
    assert code == 0, seen
    assert "y/N" not in seen


@pytest.mark.slow
def test_the_verbs_speak_for_themselves_only(folder: Path, tmp_path: Path) -> None:
    """With no input to be asked on; standard error is empty."""
    for arguments in (
        ("export", folder, tmp_path / "out", "--format", "internlm2"),
        ("import", folder, tmp_path / "imported"),
    ):
        done = without_input(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), arguments
        assert [word for word in ("Warning", "torchao", "accelerator", "y/N") if word in done.stdout] == []


@pytest.mark.slow
def test_a_foreign_folder_never_runs_its_code(folder: Path, tmp_path: Path) -> None:
    """An InternLM2 folder with other Python files: imported, told, and nothing of it run or asked for."""
    stored = open_model(folder)
    tokenizer = stored.needs_tokenizer()
    export(stored.weights, stored.config, tmp_path / "out", "internlm2", seq_len=64, tokenizer=tokenizer)
    for name in ("configuration_internlm2.py", "modeling_internlm2.py"):
        (tmp_path / "out" / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    code, seen = on_a_terminal("import", tmp_path / "out", tmp_path / "imported")
    assert code == 0, seen
    assert "its own code (configuration_internlm2.py, modeling_internlm2.py) was not run" in " ".join(seen.split())
    assert "y/N" not in seen
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_sliding_window_is_told_when_text_is_sampled(tmp_path: Path) -> None:
    """On standard error, so that piped text stays clean."""
    tokenizer = load_tokenizer(train_tokenizer([Path(__file__).read_text(encoding="utf-8")], tmp_path / "t.model", 360))
    model = our_model(vocab=360)
    folder = tmp_path / "model"
    export(ModelWeights(model), model.config, folder, "mistral", seq_len=64, tokenizer=tokenizer)
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"sliding_window": null', '"sliding_window": 32'))
    done = without_input("generate", folder, "--prompt", "def", "--tokens", "4")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("note: its attention reaches back 32 tokens")
    assert done.stderr.count("\n") == 1


def test_torch_says_nothing_of_symmetric_memory(tmp_path: Path) -> None:
    """It calls deprecated what its own compiler still needs."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            enable_async_tensor_parallel(Place(dist.group.WORLD, 0, 1), torch.device("cuda"))
        from torch.distributed._symmetric_memory import is_symm_mem_enabled_for_group

        assert is_symm_mem_enabled_for_group(dist.group.WORLD.group_name)
    finally:
        dist.destroy_process_group()


def test_quiet_ends_where_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("another library")
    with quiet():
        log.warning("unheard")
        log.error("heard")
        warnings.warn("unheard", FutureWarning, stacklevel=1)
    log.warning("heard again")
    assert capsys.readouterr().err == "heard\nheard again\n"
    with pytest.warns(UserWarning, match="told"):
        warnings.warn("told", UserWarning, stacklevel=1)
