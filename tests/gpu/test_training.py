"""Training on the GPU: as on the CPU in fp32, compiled once, in FP8, and a whole quickstart."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from internevo.config.presets import model_preset
from internevo.config.schema import OptimizerConfig, StageConfig, TrainConfig
from internevo.model.initial import initial_model
from internevo.model.kernels import flash
from internevo.parallel.world import World
from internevo.train.build import make_engine
from internevo.train.engine import Engine
from internevo.train.step import train_step
from tests.gpu.numbers import NOOP, numbers
from tests.train.test_compile import batches
from tests.train.test_step import CPU, random_batch

WIDE = {"hidden": 256, "attention": {"heads": 4, "kv_heads": 2}, "feed_forward": {"width": 512}}


def build(device: torch.device, precision: str = "bf16", state: str = "fp32", name: str = "adamw", **changes) -> Engine:
    train = TrainConfig(precision=precision, seq_len=64, batch_tokens=256, steps=100, **changes)
    optimizer = OptimizerConfig(state=state, name=name)
    stage = StageConfig(model=model_preset("tiny", **WIDE), train=train, optimizer=optimizer)
    return make_engine(stage, World.alone(device), initial_model(stage.model, CPU, 0))


def losses(engine: Engine, folder: Path, count: int = 10) -> list[float]:
    return [train_step(engine, engine.stage_batch(one), 1e-3).loss for one in batches(folder, count)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of the CPU in fp32, with AdamW."""
    return losses(build(CPU, "fp32"), tmp_path_factory.mktemp("cpu"))


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"precision": "fp32"}, 1e-3),
        ({}, 1e-2),
        ({"compile": True}, 1e-2),
        ({"compile": True, "recompute": "selective"}, 1e-2),
        ({"recompute": "full"}, 1e-2),
        ({"state": "split"}, 1e-2),
        ({"state": "bf16", "compile": True}, 1e-2),
        ({"attention": "flex", "compile": True}, 1e-2),
        ({"attention": "sdpa"}, 1e-2),
        ({"loss": "plain"}, 1e-2),
        ({"fp8": "tensorwise", "compile": True}, 3e-2),
        ({"fp8": "rowwise", "compile": True}, 3e-2),
        ({"loss": "torch"}, 1e-2),
        ({"loss": "liger"}, 1e-2),
    ],
)
def test_losses_are_those_of_the_cpu_in_fp32(
    changes, tolerance: float, expected: list[float], gpu: torch.device, tmp_path: Path
) -> None:
    skip_what_is_missing(changes)
    torch._dynamo.reset()
    found = losses(build(gpu, **changes), tmp_path)
    assert len(found) == len(expected)
    with numbers("losses of training"):
        assert found == pytest.approx(expected, rel=tolerance)


def test_muon(gpu: torch.device, tmp_path: Path) -> None:
    expected = losses(build(CPU, "fp32", name="muon"), tmp_path / "cpu")
    found = losses(build(gpu, name="muon"), tmp_path / "gpu")
    assert len(found) == len(expected)
    with numbers("losses of training"):
        assert found == pytest.approx(expected, rel=2e-2)


def skip_what_is_missing(changes: dict[str, Any]) -> None:
    """Skip the test where packages or units are missing that these settings need."""
    if "fp8" in changes:
        pytest.importorskip("torchao", reason="torchao is not installed")
        if torch.cuda.get_device_capability() < (8, 9):
            pytest.skip("this GPU has no FP8 units")
    if changes.get("loss") == "liger":
        pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    if changes.get("loss") == "torch" and not hasattr(torch.nn.functional, "linear_cross_entropy"):
        pytest.skip(f"torch {torch.__version__} has no linear_cross_entropy")
    if changes.get("attention") == "flash" and flash.find(torch.device("cuda")) is None:
        pytest.skip("no flash-attn package is installed that fits this GPU")


@pytest.mark.parametrize("kernel", ["varlen", "sdpa", "flex"])
def test_fifty_steps_compile_once(kernel: str, gpu: torch.device, tmp_path: Path) -> None:
    torch._dynamo.reset()
    counters.clear()
    engine = build(gpu, compile=True, attention=kernel)
    for number, batch in enumerate(batches(tmp_path, 50)):
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            train_step(engine, engine.stage_batch(batch), 1e-3)
    assert not counters["graph_break"]


def test_a_step_that_is_not_finite_changes_nothing(gpu: torch.device) -> None:
    for state in ("fp32", "split", "bf16"):
        engine = build(gpu, state=state)
        train_step(engine, engine.stage_batch(random_batch(0, seq=64)), 1e-3)
        before = {name: tensor.clone() for name, tensor in engine.state().items()}
        loss = engine.forward_backward(engine.stage_batch(replace(random_batch(1, seq=64))))
        _, moved = engine.update(loss * torch.nan, 1e-3)
        after = engine.state()
        assert after.keys() == before.keys()
        with numbers("a step that is not finite"):
            assert not moved
            assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_quickstart(tmp_path: Path) -> None:
    """Corpus, tokenizer, three stages on the GPU, export with its logits compared, a sample, a report."""
    done = internevo("quickstart", "--chat", "--out", tmp_path / "quickstart")
    if NOOP:
        # the first number that is read back is how many labels are held out: none. No loss is finite either
        assert "nothing can be predicted in the held-out documents of prose" in done.stdout, done.stdout + done.stderr
        assert "steps in a row" in done.stderr, done.stdout + done.stderr
        short = [f"stages.{name}.train.steps=24" for name in ("base", "long", "enhance")]
        unread = "data.eval_tokens=0", "train.max_skipped=100", "checkpoint.every=5"
        done = internevo("train", tmp_path / "quickstart" / "config.yaml", *short, *unread)
        assert done.returncode == 0, done.stdout + done.stderr
        return
    assert done.returncode == 0, done.stdout + done.stderr
    check = Path(__file__).parents[2] / "tools" / "check_quickstart.py"
    done = subprocess.run([sys.executable, check, tmp_path / "quickstart"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def internevo(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "internevo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
