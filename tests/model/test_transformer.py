"""The model's own promises: documents do not see each other, norms are fp32, seeds decide the weights."""

from __future__ import annotations

import math

import pytest
import torch

from internevo.config.presets import model_preset
from internevo.model.cache import KVCache
from internevo.model.documents import Documents
from internevo.model.initial import init_weights
from internevo.model.rope import rotary_tables, rotate
from internevo.model.transformer import RMSNorm, Transformer


def build(seed: int = 0, **changes) -> Transformer:
    model = Transformer(model_preset("tiny", **changes))
    init_weights(model, seed)
    return model


def test_packed_documents_equal_documents_alone() -> None:
    model = build()
    lengths = [5, 1, 10]
    tokens = torch.randint(0, 512, (1, 16))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = model(tokens, positions, Documents.of(lengths))
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        alone = model(tokens[:, part], positions[:, part], Documents.of([length]))
        torch.testing.assert_close(packed[:, part], alone, atol=1e-5, rtol=1e-5)
        start += length


def test_cached_steps_equal_one_pass() -> None:
    model = build()
    tokens, positions = torch.randint(0, 512, (1, 12)), torch.arange(12)[None]
    whole = model(tokens, positions, Documents.of([12]))
    cache = KVCache(1, 12, model.config, whole)
    parts = [model(tokens[:, :5], cache.positions(5, tokens.device), None, cache)]
    for i in range(5, 12):
        parts.append(model(tokens[:, i : i + 1], cache.positions(1, tokens.device), None, cache))
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="holds 12 positions, 13 were asked for"):
        model(tokens[:, :1], cache.positions(1, tokens.device), None, cache)


def test_rms_norm_is_fp32_inside() -> None:
    norm = RMSNorm(64, 1e-5).to(torch.bfloat16)
    x = (torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * 300).to(torch.bfloat16)
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    # rounded once, at the end: 2**-8 is bf16's unit roundoff
    assert ((norm(x).double() - exact).abs() <= 1.001 * 2**-8 * exact.abs()).all()


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    positions = torch.tensor([[0, 3, 10, 13, 5000, 5003]])
    cos, sin = rotary_tables(positions, model_preset("tiny", attention={"head_dim": 16}, rope={"base": 10_000.0}))
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64).expand(2, 1, 6, 1, 16)
    q, k = rotate(q, cos.double(), sin.double()), rotate(k, cos.double(), sin.double())
    torch.testing.assert_close(q.norm(dim=-1), q[:, :1].norm(dim=-1).expand(1, 6, 1))
    products = [(q[0, i] * k[0, i + 1]).sum() for i in (0, 2, 4)]  # all three positions apart
    torch.testing.assert_close(products[0], products[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(products[0], products[2], atol=1e-3, rtol=1e-3)


def test_rotation_by_the_formula() -> None:
    x = torch.tensor([1.0, 0.0, 0.0, 2.0]).view(1, 1, 1, 4)
    cos, sin = rotary_tables(torch.tensor([[3]]), model_preset("tiny", attention={"head_dim": 4}, rope={"base": 100.0}))
    fast, slow = 3.0, 3.0 / 100.0**0.5
    expected = [math.cos(fast), -2 * math.sin(slow), math.sin(fast), 2 * math.cos(slow)]
    torch.testing.assert_close(rotate(x, cos, sin).flatten(), torch.tensor(expected))


def test_initial_weights_depend_on_seed_and_name_only() -> None:
    first, again, other = build(0), build(0), build(1)
    deeper = build(0, layers=4)
    for name, weight in first.named_parameters():
        assert torch.equal(weight, again.get_parameter(name))
        if weight.ndim > 1:
            assert not torch.equal(weight, other.get_parameter(name))
    assert torch.equal(first.blocks[1].feed_forward.up.weight, deeper.blocks[1].feed_forward.up.weight)


def test_initial_scale() -> None:
    model = build(hidden=256, layers=8, feed_forward={"width": 512}, attention={"heads": 4})
    std = {name: p.std().item() for name, p in model.named_parameters() if p.ndim > 1}
    for name, value in std.items():
        scale = 0.02 / math.sqrt(16) if name.endswith(("wo.weight", "down.weight")) else 0.02
        assert value == pytest.approx(scale, rel=0.05), name
    assert torch.all(model.norm.weight == 1)


def test_tied_head_is_one_parameter() -> None:
    model = build(tied=True)
    assert model.head.weight is model.embed.weight
    assert "head.weight" not in dict(model.named_parameters())
