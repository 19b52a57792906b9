"""The fused loss against torch's plain one in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.data.batch import IGNORE
from internevo.train import chunked_loss
from internevo.train.chunked_loss import label_losses
from internevo.train.loss import summed_cross_entropy

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(2, 60),
    st.floats(0, 1),
    st.integers(0, 2**31),
    st.sampled_from([1, 7, 512]),
)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_values_and_gradients(dtype, batch, seq, vocab, ignored, seed, chunk) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_loss, "chunk_tokens", lambda vocab, device: chunk)
        torch.manual_seed(seed)
        features, weight = torch.randn(batch, seq, 16), torch.randn(vocab, 16) / 4
        labels = torch.randint(0, vocab, (batch, seq))
        labels[torch.rand(batch, seq) < ignored] = IGNORE
        wide = [x.to(dtype).double().requires_grad_() for x in (features, weight)]
        logits = (wide[0] @ wide[1].T).flatten(0, 1)
        expected = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE, reduction="sum")
        narrow = [x.to(dtype).requires_grad_() for x in (features, weight)]
        got = summed_cross_entropy(*narrow, labels)
        expected_grads = torch.autograd.grad(expected / 7, wide)
        got_grads = torch.autograd.grad(got / 7, narrow)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for a, b in zip((got, *got_grads), (expected, *expected_grads), strict=True):
            scale = max(1.0, b.abs().max().item())
            assert (a.double() - b).abs().max().item() <= TOLERANCE[dtype] * scale


def test_without_gradients() -> None:
    features, weight, labels = torch.randn(1, 5, 8), torch.randn(9, 8), torch.tensor([[1, 2, IGNORE, 3, 4]])
    with torch.no_grad():
        got = summed_cross_entropy(features, weight, labels)
    expected = F.cross_entropy((features @ weight.T)[0], labels[0], ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(got, expected)


def test_losses_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_loss, "chunk_tokens", lambda vocab, device: 3)
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
