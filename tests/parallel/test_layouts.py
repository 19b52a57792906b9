"""Every layout trains the same model as one rank: the matrix. A row is a layout.

Compared with one fp32 rank: digests, the first step's loss, gradient norm and every gradient, joined from its parts;
the initial weights bitwise; and the loss over the steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parallel.jobs import ALONE, SEQ_LEN, VOCAB, Trained, train, train_on_one_row, write_documents

# Micro-batches of one row, if not said otherwise; of two where messages between many ranks take most of the time.
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "dp2, whole state": (2, {"zero": 0}),
    "dp2, zero 1": (2, {"zero": 1}),
    "dp2, zero 2": (2, {"zero": 2}),
    "dp2, zero 3": (2, {"zero": 3}),
    "dp2, zero 3, tied head, qkv bias": (2, {"zero": 3, "tied": True, "qkv_bias": True}),
    "dp2 x tp2, zero 3, tied head, qkv bias": (4, {"tensor": 2, "zero": 3, "tied": True, "qkv_bias": True}),
    "dp2, zero 3, micro-batches of 2, recompute": (2, {"zero": 3, "micro_batch": 2, "recompute": "full"}),
    "dp2, zero 3, rows that do not divide": (2, {"zero": 3, "width": 161, "micro_batch": 2}),
    "dp2, no accumulation": (2, {"micro_batch": 4}),
    "tp2": (2, {"tensor": 2}),
    "tp2, no sequence parallelism": (2, {"tensor": 2, "sequence": False}),
    "tp2, norms of heads": (2, {"tensor": 2, "qk_norm": True}),
    "tp2, norms of heads, no sequence parallelism": (2, {"tensor": 2, "sequence": False, "qk_norm": True}),
    "ulysses2": (2, {"context": 2, "ulysses": 2}),
    "ring2": (2, {"context": 2, "ulysses": 1}),
    "ring2, micro-batches of 2": (2, {"context": 2, "ulysses": 1, "micro_batch": 2}),
    "ulysses4, 2 kv heads": (4, {"context": 4, "ulysses": 4, "kv_heads": 2, "micro_batch": 2}),
    "ring4": (4, {"context": 4, "ulysses": 1, "micro_batch": 2}),
    "ulysses2 x ring2": (4, {"context": 4, "ulysses": 2, "micro_batch": 2}),
    "zero 3 x ulysses2, recompute": (4, {"context": 2, "ulysses": 2, "zero": 3, "recompute": "full", "micro_batch": 2}),
    "ring2 x tp2": (4, {"context": 2, "ulysses": 1, "tensor": 2, "micro_batch": 2}),
    "pp2, 1f1b": (2, {"pipeline": 2}),
    "pp2, interleaved": (2, {"pipeline": 2, "schedule": "interleaved"}),
    "pp2, interleaved, 3 parts a rank": (2, {"pipeline": 2, "schedule": "interleaved", "parts": 3, "layers": 6}),
    "pp2, tied head": (2, {"pipeline": 2, "tied": True}),
    "pp2, zbv, tied head": (2, {"pipeline": 2, "schedule": "zbv", "tied": True}),
    "dp2 x pp2, interleaved, zero 3, tied head": (
        4,
        {"pipeline": 2, "schedule": "interleaved", "zero": 3, "tied": True},
    ),
    "tp2 x pp2, tied head": (4, {"pipeline": 2, "tensor": 2, "tied": True}),
    "pp2, zbv": (2, {"pipeline": 2, "schedule": "zbv"}),
    "pp4, 1f1b, 2 micro-batches": (4, {"pipeline": 4, "micro_batch": 4}),
    "pp2, interleaved, 1 micro-batch": (2, {"pipeline": 2, "schedule": "interleaved", "micro_batch": 8}),
    "pp4, interleaved, zero 3, 2 micro-batches": (
        4,
        {"pipeline": 4, "schedule": "interleaved", "layers": 8, "zero": 3, "micro_batch": 4},
    ),
    "tp4, one kv head": (4, {"tensor": 4, "kv_heads": 1, "qk_norm": True, "qkv_bias": True}),
    "dp2 x tp4, zero 3, 2 kv heads": (8, {"tensor": 4, "kv_heads": 2, "zero": 3, "sequence": False}),
    "pp4, 1f1b": (4, {"pipeline": 4}),
    "pp4, interleaved": (4, {"pipeline": 4, "schedule": "interleaved", "layers": 8}),
    "pp4, zbv": (4, {"pipeline": 4, "schedule": "zbv", "layers": 8}),
    "tp2 x pp2": (4, {"pipeline": 2, "tensor": 2}),
    "tp2 x pp2, zbv, micro-batches of 2": (
        4,
        {"pipeline": 2, "tensor": 2, "schedule": "zbv", "micro_batch": 2},
    ),
    "dp2 x pp2, zero 3": (4, {"pipeline": 2, "zero": 3}),
    "dp2 x pp2, zbv, zero 2": (4, {"pipeline": 2, "schedule": "zbv", "zero": 2}),
    "dp2 x pp2, zbv, zero 3, recompute": (4, {"pipeline": 2, "schedule": "zbv", "zero": 3, "recompute": "selective"}),
    "dp2 x pp2, interleaved, zero 3": (4, {"pipeline": 2, "schedule": "interleaved", "zero": 3}),
    "ring2 x pp2, zbv": (4, {"pipeline": 2, "context": 2, "ulysses": 1, "schedule": "zbv", "micro_batch": 2}),
    "tp2, odd sizes": (2, {"tensor": 2, "width": 161, "vocab": 513}),
    "tp2, chunks of the loss": (2, {"tensor": 2, "vocab": 4097, "seq_len": 128, "micro_batch": 8, "layers": 2}),
    "tp4, odd sizes": (4, {"tensor": 4, "width": 161, "vocab": 513}),
    "dp2 x tp4, zero 3, odd sizes, tied head": (
        8,
        {"tensor": 4, "zero": 3, "width": 162, "vocab": 514, "tied": True, "sequence": False},
    ),
    "dp4, zero 1": (4, {"zero": 1}),
    "dp4, zero 3": (4, {"zero": 3}),
    "dp4, hybrid zero 1, 2x2": (4, {"zero": 1, "shard": 2}),
    "dp4, hybrid zero 2, 2x2": (4, {"zero": 2, "shard": 2}),
    "dp4, hybrid zero 3, 2x2": (4, {"zero": 3, "shard": 2}),
    "tp4": (4, {"tensor": 4, "micro_batch": 2}),
    "dp2 x tp2, zero 1": (4, {"tensor": 2, "micro_batch": 2}),
    "dp2 x tp2, zero 3": (4, {"tensor": 2, "zero": 3}),
    "dp2 x tp2, zero 3, rows that do not divide": (4, {"tensor": 2, "zero": 3, "width": 162, "micro_batch": 2}),
    "dp2, zero 1, state in host memory": (2, {"zero": 1, "offload": "cpu"}),
    "dp2 x tp2, zero 3, state in host memory": (4, {"tensor": 2, "zero": 3, "offload": "cpu", "width": 161}),
    "dp2 x pp2, zero 2, state in host memory, tied head": (
        4,
        {"pipeline": 2, "zero": 2, "offload": "cpu", "tied": True},
    ),
    "dp2 x tp2 x pp2": (8, {"tensor": 2, "pipeline": 2, "micro_batch": 2}),
    "ring2 x ulysses2 x pp2, zero 3": (8, {"context": 4, "ulysses": 2, "pipeline": 2, "zero": 3, "micro_batch": 2}),
}
STEPS = 20
LIGHT = (
    "dp2, zero 3, tied head, qkv bias",
    "dp2, zero 1",
    "dp2, zero 3, micro-batches of 2, recompute",
    "dp2, zero 1, state in host memory",
    "tp2, norms of heads, no sequence parallelism",
    "tp2, odd sizes",
    "tp2, chunks of the loss",
    "ring2",
    "pp2, tied head",
    "pp2, zbv",
    "pp2, interleaved, 3 parts a rank",
    "dp2 x tp2, zero 3",
)
"""Layouts that every test run trains; the others are heavy."""


def rows(names: Iterable[str]) -> list[Any]:
    """The layouts of these names, the heavy ones marked."""
    return [pytest.param(name, marks=[pytest.mark.heavy] * (name not in LIGHT)) for name in names]


def shape_of(changes: dict[str, Any]) -> dict[str, Any]:
    """The keys that make another model of it."""
    usual = {
        "kv_heads": 4,
        "layers": 4,
        "qk_norm": False,
        "width": 160,
        "tied": False,
        "qkv_bias": False,
        "vocab": VOCAB,
        "seq_len": SEQ_LEN,
    }
    return {key: changes.get(key, value) for key, value in usual.items()}


@cache
def reference(store: Path, precision: str, steps: int, **shape: Any) -> Trained:
    """One rank."""
    torch.set_num_threads(1)
    return train(ALONE, {"micro_batch": 8, "precision": precision, **shape}, store, steps)


@pytest.mark.parametrize("name", rows(LAYOUTS))
def test_a_layout_trains_the_same_model(name: str, store: Path, ranks: Any) -> None:
    world, changes = LAYOUTS[name]
    expected = reference(store, **shape_of(changes), precision="fp32", steps=STEPS)
    results = ranks(world).run(train, changes, store, STEPS)
    for result in results:
        assert result.digests == expected.digests
        assert result.losses == results[0].losses  # every rank says the same
        assert result.norms == results[0].norms
    got = results[0]
    assert set(got.weights) == set(expected.weights) == set(got.gradients)
    for key, weight in expected.weights.items():
        assert torch.equal(got.weights[key], weight), key
    assert got.losses[0] == pytest.approx(expected.losses[0], rel=1e-5)
    assert got.norms[0] == pytest.approx(expected.norms[0], rel=1e-4)
    for key, gradient in expected.gradients.items():
        error = (got.gradients[key] - gradient).norm() / gradient.norm()
        assert error < 1e-4, (key, float(error))
    assert got.losses == pytest.approx(expected.losses, rel=1e-3)


@pytest.mark.parametrize("name", rows(LAYOUTS))
def test_a_layout_in_bf16(name: str, store: Path, ranks: Any) -> None:
    world, changes = LAYOUTS[name]
    expected = reference(store, **shape_of(changes), precision="bf16", steps=3)
    got = ranks(world).run(train, {**changes, "precision": "bf16"}, store, 3)[0]
    assert got.digests == expected.digests
    assert got.losses == pytest.approx(expected.losses, rel=5e-3)
    assert got.norms[0] == pytest.approx(expected.norms[0], rel=1e-2)
    for key, gradient in expected.gradients.items():
        assert got.gradients[key].dtype == torch.float32
        error = (got.gradients[key] - gradient).norm() / gradient.norm()
        assert error < 3e-2, (key, float(error))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("masked") / "train", masked=True)


@pytest.mark.parametrize(
    ("name", "average", "loss"),
    [
        ("pp2, zbv", "message", "auto"),
        ("dp2, zero 1", "conversation", "torch"),
        ("dp2 x tp2, zero 3", "message", "auto"),
        ("ring2", "conversation", "plain"),
        pytest.param("ring2 x ulysses2 x pp2, zero 3", "message", "auto", marks=pytest.mark.heavy),
        pytest.param("dp2 x pp2, interleaved, zero 3, tied head", "conversation", "auto", marks=pytest.mark.heavy),
    ],
)
def test_a_layout_in_which_messages_or_conversations_count_alike(
    name: str, average: str, loss: str, masked: Path, ranks: Any
) -> None:
    world, changes = LAYOUTS[name]
    shape = shape_of(changes)
    plain = reference(masked, **shape, precision="fp32", steps=2)
    expected = reference(masked, **shape, precision="fp32", steps=2, average=average)
    assert abs(plain.norms[0] / expected.norms[0] - 1) > 1e-2
    got = ranks(world).run(train, {**changes, "average": average, "loss": loss}, masked, 2)[0]
    assert got.digests == expected.digests != plain.digests
    assert got.losses == pytest.approx(expected.losses, rel=1e-5)
    assert got.norms[0] == pytest.approx(expected.norms[0], rel=1e-4)
    for key, gradient in expected.gradients.items():
        assert (got.gradients[key] - gradient).norm() <= 1e-4 * gradient.norm(), key


@pytest.mark.parametrize(
    ("name", "state", "optimizer"),
    [
        ("dp2, zero 1", "bf16", "adamw"),
        ("dp2, zero 1", "bf16", "muon"),
        pytest.param("dp2 x tp2, zero 3", "split", "muon", marks=pytest.mark.heavy),
        pytest.param("dp2 x tp2, zero 3", "bf16", "adamw", marks=pytest.mark.heavy),
        pytest.param("tp2 x pp2", "bf16", "muon", marks=pytest.mark.heavy),
    ],
)
def test_a_layout_with_small_state(name: str, state: str, optimizer: str, store: Path, ranks: Any) -> None:
    """As one rank with the same state; moments in bf16 are rounded by another chance on each."""
    world, changes = LAYOUTS[name]
    small = {"precision": "bf16", "state": state, "optimizer": optimizer}
    expected = reference(store, steps=6, **small)
    got = ranks(world).run(train, {**changes, **small}, store, 6)[0]
    assert got.digests == expected.digests
    assert got.losses == pytest.approx(expected.losses, rel=5e-3)
    assert got.norms[:3] == pytest.approx(expected.norms[:3], rel=1e-2)  # the next step is a sensitive one


@pytest.mark.parametrize("scaling", ["tensorwise", pytest.param("rowwise", marks=pytest.mark.heavy)])
def test_fp8_with_tensor_parallelism(scaling: str, store: Path, ranks: Any) -> None:
    """Each rank scales its own part, so numbers round otherwise than on one rank; not more than FP8 rounds anyway."""
    pytest.importorskip("torchao", reason="torchao is not installed: pip install 'internevo[fp8]'")
    plain, alone = (reference(store, precision="bf16", steps=2, fp8=fp8) for fp8 in ("none", scaling))
    got = ranks(2).run(train, {"tensor": 2, "precision": "bf16", "fp8": scaling}, store, 2)[0]
    assert got.losses == pytest.approx(alone.losses, rel=5e-3)
    for key, gradient in plain.gradients.items():
        ours, theirs = ((one.gradients[key] - gradient).norm() / gradient.norm() for one in (got, alone))
        assert ours < 1.5 * theirs + 3e-2, (key, float(ours), float(theirs))
    key = "blocks.0.feed_forward.down.weight"
    assert (got.gradients[key] - plain.gradients[key]).norm() > 0.01 * plain.gradients[key].norm()


UNLABELLED = ["dp2, zero 1", "ring2", "tp2", "pp2, zbv", "dp2 x pp2, zero 3", "ulysses2 x ring2"]


@pytest.mark.parametrize("name", rows(UNLABELLED))
def test_ranks_without_any_label(name: str, ranks: Any) -> None:
    """All labels of the step are in its first row: other ranks and micro-batches have none, and do not count."""
    world, changes = LAYOUTS[name]
    torch.set_num_threads(1)
    expected = train_on_one_row(ALONE, {"micro_batch": 8})
    got = ranks(world).run(train_on_one_row, changes)[0]
    assert got.losses == pytest.approx(expected.losses, rel=1e-5)
    assert got.norms == pytest.approx(expected.norms, rel=1e-4)
    for key, gradient in expected.gradients.items():
        assert (got.gradients[key] - gradient).norm() <= 1e-4 * gradient.norm(), key
