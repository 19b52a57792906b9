"""The DeepSpeed engine: the same model as one rank, wherever its state lies, and checkpoints that any engine takes."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.utils import cpp_extension

from internevo.checkpoint.tensors import read_tensors, write_tensors
from internevo.config.load import load_config
from internevo.config.schema import OffloadConfig, StageConfig
from internevo.files.errors import UserError
from internevo.model import transformer
from internevo.parallel.world import World
from internevo.train.build import check_engine, make_engine
from internevo.train.offloaded import import_deepspeed, warn_of_locks
from internevo.train.run import train as train_run
from internevo.train.step import StepResult, train_step
from tests.parallel.jobs import ALONE, Trained, next_batches, stage_of, whole, write_documents
from tests.parallel.ranks import RankPool
from tests.parallel.recording import Measured, MeasuredBlock
from tests.train.runs import evals, finish, start, steps, write_config

installed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install '.[deepspeed]'"
)
with_disk = pytest.mark.skipif(
    not Path("/usr/include/libaio.h").exists(), reason="DeepSpeed's disk access needs libaio: apt install libaio-dev"
)
STEPS = 6
# At three times this rate the fourth step overshoots: its norm in bf16 is 1.02 to 1.11 as a processor rounds
LR = 1e-3


def stage_with(changes: dict[str, Any]) -> StageConfig:
    """A stage; `offload` in `changes` means the DeepSpeed engine."""
    stage = stage_of(changes)
    if "offload" in changes:
        stage.parallel.zero.engine = "deepspeed"
        stage.parallel.zero.offload = OffloadConfig(*changes["offload"], path=changes["disk"])
    return stage


def go(world: World, changes: dict[str, Any], store: Path, saved: Path | None, save_to: Path) -> Trained:
    """Train the first or, from `saved`, the second half of the steps, save, and tell the whole state."""
    engine = make_engine(stage_with(changes), world)
    if saved is not None:
        engine.load(lambda tensors: read_tensors(saved, tensors, world.control))
    result = Trained()
    for number, batch in enumerate(next_batches(store, engine, STEPS)):
        if (number >= STEPS // 2) == (saved is not None):
            loss = engine.forward_backward(engine.stage_batch(batch))
            norm, moved = engine.update(loss, LR)
            assert moved
            result.losses.append(loss.item())
            result.norms.append(norm.item())
            result.digests.append(engine.digest(batch))
    write_tensors(engine.state(), save_to, world.control)
    result.weights = whole(engine.state())
    engine.close()
    return result if world.main else Trained()


def engines_in_turn(world: World, changes: dict[str, Any], store: Path) -> list[int]:
    """Resident bytes of this process after each of several engines has trained a step and been closed."""
    resident = []
    for _ in range(4):
        engine = make_engine(stage_with(changes), world)
        (batch,) = next_batches(store, engine, 1)
        engine.update(engine.forward_backward(engine.stage_batch(batch)), LR)
        engine.close()
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        resident += [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")]
    return resident


def skip_a_step(world: World, changes: dict[str, Any], store: Path, folder: Path) -> tuple[bool, bool]:
    """Whether a step with an infinite weight was taken, and whether it left everything as it was."""
    engine = make_engine(stage_with(changes), world)
    first, second = next_batches(store, engine, 2)
    engine.update(engine.forward_backward(engine.stage_batch(first)), LR)
    write_tensors(engine.state(), folder, world.control)

    def read(tensors: Mapping[str, torch.Tensor]) -> None:
        read_tensors(folder, tensors, world.control)
        if "model/norm.weight" in tensors:
            tensors["model/norm.weight"][0] = torch.inf

    engine.load(read)
    before = whole(engine.state())
    _, moved = engine.update(engine.forward_backward(engine.stage_batch(second)), LR)
    after = whole(engine.state())
    engine.close()
    return bool(moved), all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.fixture(scope="module")
def pool() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed leaves the process at once
        pool = RankPool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("documents") / "train")


def compile_disk_access() -> None:
    """Once, here, rather than under the time limit of a job."""
    import_deepspeed()
    from deepspeed.accelerator import get_accelerator

    get_accelerator().create_op_builder("AsyncIOBuilder").load()


def compare(got: Trained, expected: Trained, loose: bool) -> None:
    assert got.digests == expected.digests
    assert got.losses == pytest.approx(expected.losses, rel=1e-3 if loose else 1e-5)
    assert got.norms == pytest.approx(expected.norms, rel=3e-2 if loose else 1e-4)
    assert set(got.weights) == set(expected.weights)
    for name, tensor in expected.weights.items():
        error = (got.weights[name] - tensor).norm() / tensor.norm()
        rounding = 0.1 if name.startswith("optimizer/") else 2e-2  # a second moment doubles the gradients' 3%
        assert error < (rounding if loose else 1e-4), (name, float(error))


PLACES = {
    "zero 2": {"zero": 2, "offload": ("none", "none")},
    "zero 2, optimizer on the CPU": {"zero": 2, "offload": ("cpu", "none")},
    "zero 3, optimizer on the CPU": {"zero": 3, "offload": ("cpu", "none")},
    "zero 3, all on the CPU": {"zero": 3, "offload": ("cpu", "cpu")},
    "zero 3, all on a disk": {"zero": 3, "offload": ("nvme", "nvme")},
}


@installed
@pytest.mark.heavy
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.timeout(900)  # DeepSpeed compiles its disk access when it is first used: minutes
@pytest.mark.parametrize("place", [pytest.param(name, marks=[with_disk] * ("disk" in name)) for name in PLACES])
def test_it_trains_the_same_model(place: str, precision: str, store: Path, pool: RankPool, tmp_path: Path) -> None:
    """Six steps, saved and loaded again after three; and the other engine goes on from its checkpoint."""
    changes = {**PLACES[place], "precision": precision, "disk": str(tmp_path)}
    if "disk" in place:
        compile_disk_access()
    plain = {"micro_batch": 8, "precision": precision}

    def run(*arguments: Any) -> Trained:
        return pool.run(go, *arguments)[0]

    expected = go(ALONE, plain, store, None, tmp_path / "a1"), go(ALONE, plain, store, tmp_path / "a1", tmp_path / "a2")
    got = run(changes, store, None, tmp_path / "b1"), run(changes, store, tmp_path / "b1", tmp_path / "b2")
    for ours, theirs in zip(got, expected, strict=True):
        compare(ours, theirs, loose=precision == "bf16")
    continues = go(ALONE, plain, store, tmp_path / "b1", tmp_path / "c")
    compare(continues, expected[1], loose=precision == "bf16")
    taken_over = run(changes, store, tmp_path / "a1", tmp_path / "d")
    compare(taken_over, expected[1], loose=precision == "bf16")


@installed
@pytest.mark.heavy
@pytest.mark.parametrize("place", ["zero 2, optimizer on the CPU", "zero 3, all on the CPU"])
def test_a_step_without_finite_gradient_changes_nothing(
    place: str, store: Path, pool: RankPool, tmp_path: Path
) -> None:
    assert pool.run(skip_a_step, {**PLACES[place], "disk": None}, store, tmp_path / "saved") == [(False, True)] * 2


@installed
@pytest.mark.heavy
def test_a_closed_engine_gives_up_its_memory(store: Path, pool: RankPool) -> None:
    changes = {"zero": 3, "offload": ("cpu", "cpu"), "disk": None, "hidden": 512}
    state = 4.6e6 * 4 * 4 / 2  # 4.6 million weights, their masters and moments, over two ranks
    for resident in pool.run(engines_in_turn, changes, store):
        grown = [after - before for before, after in pairwise(resident)]
        # what an engine keeps, every engine keeps; a single one's growth may be the allocator's
        assert median(grown) < state / 8, resident


@installed
@pytest.mark.heavy
def test_a_run_may_change_its_engine_between_stages(tmp_path: Path) -> None:
    config = write_config(tmp_path, checkpoint={"every": 3, "keep": 0})
    train_run(load_config(config, ["name=alone"]), ["test"])
    deepspeed = "{stage: 3, engine: deepspeed, offload: {optimizer: cpu, parameters: cpu}}"
    overrides = [f"stages.base.parallel.zero={deepspeed}", f"stages.enhance.parallel.zero={deepspeed}"]
    # stopped within the first stage, and gone on with
    for extra in (["--until", "4"], []):
        process = start("launch", config, "--nproc", "2", *extra, *overrides)
        out = finish(process)
        assert process.returncode == 0, out
    ours, theirs = (tmp_path / "runs" / name for name in ("run", "alone"))
    assert [line["digest"] for line in steps(ours)] == [line["digest"] for line in steps(theirs)]
    for key in ("loss", "grad_norm"):
        got, expected = ([line[key] for line in steps(run)] for run in (ours, theirs))
        assert got == pytest.approx(expected, rel=1e-3)
    got, expected = ([line["loss"] for line in evals(run)] for run in (ours, theirs))
    assert got == pytest.approx(expected, rel=1e-3)


@installed
@pytest.mark.heavy
def test_one_process_may_offload(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    train_run(load_config(config, ["name=alone"]), ["test"])
    process = start("train", config, "parallel.zero={stage: 2, engine: deepspeed, offload: {optimizer: cpu}}")
    out = finish(process)
    assert process.returncode == 0, out
    got, expected = ([line["loss"] for line in steps(tmp_path / "runs" / name)] for name in ("run", "alone"))
    assert got == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("variable", ["TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME"])
def test_a_lock_of_a_killed_compilation_is_named(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torch puts it: a folder deeper where it chooses the place itself."""
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    lock = Path(cpp_extension._get_build_directory("deepspeed_shm_comm", False)) / "lock"
    assert tmp_path in lock.parents
    lock.touch()
    with pytest.warns(UserWarning, match=f"{lock}: .* remove this file"):
        warn_of_locks()


def test_without_the_package_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match=r"pip install 'internevo\[deepspeed\]', or use the engine fsdp"):
        check_engine(stage_with({"zero": 2, "offload": ("none", "none"), "disk": None}), 1, torch.device("cpu"))


def measured(world: World, changes: dict[str, Any], store: Path) -> list[StepResult]:
    """Two steps of a model whose parts record and have losses of their own."""
    dense = patch.dict(transformer.FEED_FORWARDS, {"dense": Measured})
    with dense, patch.object(transformer, "Block", MeasuredBlock):
        engine = make_engine(stage_with(changes), world)
    done = [train_step(engine, engine.stage_batch(batch), LR) for batch in next_batches(store, engine, 2)]
    engine.close()
    return done


@installed
@pytest.mark.heavy
@pytest.mark.parametrize("zero", [2, 3])
def test_losses_of_parts_are_trained_on_and_reported(zero: int, tmp_path: Path, store: Path, ranks: Any) -> None:
    torch.set_num_threads(1)
    expected = measured(ALONE, {"micro_batch": 8}, store)
    offload = {"offload": ("cpu", "none"), "disk": None, "zero": zero, "micro_batch": 2, "recompute": "full"}
    got = ranks(2).run(measured, offload, store)
    assert got[0] == got[1]
    for ours, theirs in zip(got[0], expected, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-3)
        assert ours.recorded == pytest.approx(theirs.recorded, rel=1e-3)
