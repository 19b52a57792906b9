"""The fused loss against torch's plain one in float64."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.data.batch import IGNORE
from internevo.files.errors import UserError
from internevo.train import loss
from internevo.train.loss import choose_loss, label_losses, summed_cross_entropy

CPU = torch.device("cpu")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(2, 60),
    st.floats(0, 1),
    st.integers(0, 2**31),
    st.sampled_from([1, 7, 512]),
    st.booleans(),
)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_values_and_gradients(dtype, batch, seq, vocab, ignored, seed, chunk, weighted) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "chunk_tokens", lambda vocab, device: chunk)
        torch.manual_seed(seed)
        features, weight = torch.randn(batch, seq, 16), torch.randn(vocab, 16) / 4
        labels = torch.randint(0, vocab, (batch, seq))
        labels[torch.rand(batch, seq) < ignored] = IGNORE
        wide = [x.to(dtype).double().requires_grad_() for x in (features, weight)]
        logits = (wide[0] @ wide[1].T).flatten(0, 1)
        weights = torch.rand(batch, seq) if weighted else None
        expected = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE, reduction="none")
        expected = (expected if weights is None else expected * weights.flatten()).sum()
        narrow = [x.to(dtype).requires_grad_() for x in (features, weight)]
        got = summed_cross_entropy(*narrow, labels, weights)
        expected_grads = torch.autograd.grad(expected / 7, wide)
        got_grads = torch.autograd.grad(got / 7, narrow)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for a, b in zip((got, *got_grads), (expected, *expected_grads), strict=True):
            scale = max(1.0, b.abs().max().item())
            assert (a.double() - b).abs().max().item() <= TOLERANCE[dtype] * scale


KINDS = ["plain", "torch", "chunked, compiled"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_kind(kind: str, dtype: torch.dtype, weighted: bool) -> None:
    """The other ways to compute the loss: same values, same gradients."""
    if kind == "torch" and not hasattr(F, "linear_cross_entropy"):
        pytest.skip(f"torch {torch.__version__} has no linear_cross_entropy")
    torch.manual_seed(0)
    features, weight = torch.randn(2, 300, 32).to(dtype), (torch.randn(1000, 32) / 4).to(dtype)
    labels = torch.randint(0, 1000, (2, 300))
    labels[torch.rand(2, 300) < 0.2] = IGNORE
    wide = [x.double().requires_grad_() for x in (features, weight)]
    logits = (wide[0] @ wide[1].T).flatten(0, 1)
    weights = torch.rand(2, 300) if weighted else None
    losses = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE, reduction="none")
    expected = (losses if weights is None else losses * weights.flatten()).sum()
    narrow = [x.clone().requires_grad_() for x in (features, weight)]
    name, _, compiled = kind.partition(", ")
    got = summed_cross_entropy(*narrow, labels, weights, kind=name, compiled=bool(compiled))
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(expected.item(), rel=1e-6 if dtype == torch.float32 else 2e-3)
    for a, b in zip(torch.autograd.grad(got / 7, narrow), torch.autograd.grad(expected / 7, wide), strict=True):
        assert (a.double() - b).norm() <= (1e-5 if dtype == torch.float32 else 1e-2) * b.norm()


def test_choice() -> None:
    assert choose_loss("auto", CPU) == choose_loss("chunked", CPU, tensor=4) == "chunked"
    with pytest.raises(UserError, match="torch cannot share the vocabulary over 2 ranks"):
        choose_loss("torch", CPU, tensor=2)
    with pytest.raises(UserError, match=r"train\.loss: liger needs"):
        choose_loss("liger", CPU)
    with pytest.raises(UserError, match=r"use chunked for average=message"):
        choose_loss("liger", CPU, average="message")


LIGER = """
import torch
import torch.nn.functional as F
from internevo.train.loss import summed_cross_entropy
torch.manual_seed(0)
for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
    features, weight = torch.randn(1, 60, 16).to(dtype), (torch.randn(50, 16) / 4).to(dtype)
    labels = torch.randint(0, 50, (1, 60))
    labels[:, ::7] = -100
    wide = [x.double().requires_grad_() for x in (features, weight)]
    expected = F.cross_entropy((wide[0] @ wide[1].T)[0], labels[0], reduction="sum")
    narrow = [x.clone().requires_grad_() for x in (features, weight)]
    got = summed_cross_entropy(*narrow, labels, kind="liger")
    assert got.dtype == torch.float32 and abs(got - expected) < tolerance * expected, (got, expected)
    for a, b in zip(torch.autograd.grad(got / 7, narrow), torch.autograd.grad(expected / 7, wide)):
        assert (a.double() - b).norm() < tolerance * b.norm()
"""


@pytest.mark.heavy
def test_liger_in_tritons_interpreter() -> None:
    """Liger's Triton kernels, run on the CPU by Triton's interpreter."""
    for package in ("liger_kernel", "triton"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'internevo[liger]' triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LIGER], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


PEAK = """
import resource, sys, torch
from internevo.train.loss import summed_cross_entropy
torch.set_num_threads(1)
features = torch.randn(1, 4096, 64, requires_grad=True)
weight = torch.randn(92_544, 64, requires_grad=True)
labels = torch.randint(0, 92_544, (1, 4096))
summed_cross_entropy(features[:, :512], weight, labels[:, :512], kind="chunked").backward()  # libraries are loaded
features.grad = weight.grad = None
held = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before = held()
open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from here
summed_cross_entropy(features, weight, labels, kind=sys.argv[1]).backward()
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
print(peak - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_peak_memory_is_a_quarter_of_the_plain_loss() -> None:
    """At InternLM2's vocabulary, 4,096 tokens; measured in processes of their own."""
    peaks = {}
    for kind in ("plain", "chunked"):
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory goes back
        done = subprocess.run(
            [sys.executable, "-c", PEAK, kind], env=environment, capture_output=True, text=True, timeout=300, check=True
        )
        peaks[kind] = int(done.stdout)
    assert peaks["plain"] > 4096 * 92_544 * 4  # it has all logits
    assert peaks["chunked"] <= peaks["plain"] / 4, peaks


def test_without_gradients() -> None:
    features, weight, labels = torch.randn(1, 5, 8), torch.randn(9, 8), torch.tensor([[1, 2, IGNORE, 3, 4]])
    with torch.no_grad():
        got = summed_cross_entropy(features, weight, labels)
    expected = F.cross_entropy((features @ weight.T)[0], labels[0], ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(got, expected)


def test_losses_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "chunk_tokens", lambda vocab, device: 3)
    features, weight = torch.randn(2, 5, 8), torch.randn(9, 8)
    labels = torch.randint(0, 9, (2, 5))
    labels[0, 1] = labels[1, 4] = IGNORE
    got = label_losses(features, weight, labels)
    expected = F.cross_entropy((features @ weight.T).flatten(0, 1), labels.flatten(), reduction="none")
    torch.testing.assert_close(got, (expected * (labels.flatten() != IGNORE)).view(2, 5))


def test_no_label_at_all() -> None:
    features = torch.randn(1, 5, 8, requires_grad=True)
    got = summed_cross_entropy(features, torch.randn(9, 8), torch.full((1, 5), IGNORE))
    got.backward()
    assert got.item() == 0
    assert torch.all(features.grad == 0)
