"""What a save takes in host memory, and that every engine on one process loads what any of them saved."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from internevo.checkpoint.commit import step_name
from internevo.checkpoint.tensors import read_tensors
from internevo.checkpoint.writer import CheckpointWriter
from internevo.train.engine import Engine
from tests.train.test_lean import build, steps

STATES = ["fp32", "split", "bf16"]

SAVE = """
import sys, torch
from pathlib import Path
from internevo.checkpoint.writer import CheckpointWriter
from internevo.config.presets import model_preset
from internevo.config.schema import OptimizerConfig, StageConfig, TrainConfig
from internevo.model.initial import empty_model
from internevo.parallel.world import World
from internevo.train.build import make_engine

def memory(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

folder, state, asynchronous = sys.argv[1:]
sizes = {"hidden": 512, "layers": 12, "heads": 8, "kv_heads": 4, "ffn": 1408, "vocab": 512}
train = TrainConfig(precision="bf16", seq_len=32, batch_tokens=128, steps=100)
stage = StageConfig(model=model_preset("tiny", **sizes), train=train, optimizer=OptimizerConfig(state=state))
cpu = torch.device("cpu")
model = empty_model(stage.model, cpu)
for parameter in model.parameters():
    torch.nn.init.zeros_(parameter)  # what lies in fresh memory may be no number, which is not saved
engine = make_engine(stage, World.alone(cpu), model)
writer = CheckpointWriter(Path(folder), keep=1, asynchronous=asynchronous == "True")
writer.save(1, {"a": torch.zeros(1)}, {}, permanent=False)  # what is imported at a save is imported
for step in (2, 3):
    writer.wait()
    before = memory("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    writer.save(step, engine.state(), {}, permanent=False)
    writer.wait()
    print(memory("VmHWM") - before)
writer.close()
print(memory("VmRSS") - before)
sizes = [p.numel() for p in empty_model(stage.model, "meta").parameters()]
print(sum(sizes), max(sizes))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "asynchronous", "each"),
    [("bf16", True, 8), ("split", True, 12), ("fp32", True, 12), ("bf16", False, 0), ("fp32", False, 0)],
)
def test_host_memory_of_a_save(state: str, asynchronous: bool, each: int, tmp_path: Path) -> None:
    """One copy, in the fewest bytes that hold it exactly, and one weight while it is joined; none for a save that is
    waited for. The next save needs no more, and in the end all is given back."""
    command = [sys.executable, "-c", SAVE, str(tmp_path), state, str(asynchronous)]
    exact = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed leaves the process
    ran = subprocess.run(command, env=os.environ | exact, capture_output=True, text=True, check=True)
    first, second, closed, parameters, largest = map(int, ran.stdout.split())
    one_tensor = 16 * largest  # fp32, and what is computed on the way to it
    assert first <= (each + 0.5) * parameters + one_tensor
    assert second <= 0.5 * parameters + one_tensor  # it has its memory from the first
    assert closed <= 0.5 * parameters - each * parameters  # against the memory before the second


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("saved", STATES)
@pytest.mark.parametrize("loaded", STATES)
def test_any_state_loads_what_another_saved(saved: str, loaded: str, asynchronous: bool, tmp_path: Path) -> None:
    first, second = build(saved), build(loaded)
    steps(first, 2)
    expected = {name: tensor.clone() for name, tensor in first.state().items()}
    writer = CheckpointWriter(tmp_path, keep=0, asynchronous=asynchronous)
    writer.save(2, first.state(), {}, permanent=False)
    steps(first, 1)  # the copies are of the step before
    writer.close()
    load(second, tmp_path / step_name(2))
    for name, tensor in second.state().items():
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name


@pytest.mark.parametrize("state", ["split", "bf16"])
def test_loads_what_was_saved_before_moments_could_be_bf16(state: str, tmp_path: Path) -> None:
    """fp32 throughout, and written by torch's own writer."""
    first, second = build(state), build(state)
    steps(first, 2)
    dcp.save({name: tensor.float() for name, tensor in first.state().items()}, checkpoint_id=tmp_path, no_dist=True)
    load(second, tmp_path)
    assert steps(second, 2, first=2) == steps(first, 2, first=2)


def load(engine: Engine, folder: Path) -> None:
    engine.load(lambda tensors: read_tensors(folder, tensors))
