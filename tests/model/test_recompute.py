"""Recomputation: the same gradients from less memory, and as much memory as the formula says."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internevo.config.presets import model_preset
from internevo.model.budget import activation_bytes, policies_within
from internevo.model.documents import Documents
from internevo.model.initial import init_weights
from internevo.model.recompute import Policy
from internevo.model.rope import rotary_tables
from internevo.model.transformer import Transformer

LENGTHS = [10, 1, 53]


def build(**changes) -> Transformer:
    model = Transformer(model_preset("tiny", **changes))
    init_weights(model, 0)
    return model


@pytest.mark.parametrize("policies", [["selective", "selective"], ["full", "full"], ["none", "full"]])
def test_recompute_changes_nothing(policies: list[str]) -> None:
    tokens = torch.randint(0, 512, (1, 64), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    gradients = []
    for chosen in (["none", "none"], policies):
        model = build()
        model.use_policies([Policy(one) for one in chosen])
        model(tokens, positions, Documents.of(LENGTHS)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def one_block(qk_norm: bool = False) -> Transformer:
    attention = {"heads": 6, "kv_heads": 2, "qk_norm": qk_norm}
    return build(layers=1, hidden=96, feed_forward={"width": 256}, attention=attention)


def kept_bytes(policy: Policy, qk_norm: bool = False) -> int:
    """What one block keeps for its backward pass, measured: memory that is still there when it has run forward."""
    model = one_block(qk_norm)
    model.use_policies([policy])
    x = torch.randn(1, 64, 96, requires_grad=True)
    rotary = rotary_tables(torch.arange(64)[None], model.config)
    documents = Documents.of([64])
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()} | {
        r.untyped_storage().data_ptr() for r in rotary
    }
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.is_floating_point():
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    if policy == Policy.none:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = model.blocks[0](x, rotary, documents)
        del out
        return sum(seen.values())
    held = _live_bytes(weights)
    out = model.blocks[0](x, rotary, documents)
    kept = _live_bytes(weights) - held - out.nbytes + x.nbytes
    del out
    return kept


def _live_bytes(but: set[int]) -> int:
    """Bytes of all floating-point tensors that exist."""
    gc.collect()
    storages = {}
    for one in gc.get_objects():
        if type(one) in (torch.Tensor, torch.nn.Parameter) and one.is_floating_point():
            storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    return sum(size for pointer, size in storages.items() if pointer not in but)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("policy", list(Policy))
def test_activation_bytes(policy: Policy, qk_norm: bool) -> None:
    config = one_block(qk_norm).config
    expected = 64 * activation_bytes(config, policy, 4)
    measured = kept_bytes(policy, qk_norm)
    # on a CPU each norm keeps one tensor more, of its input's size, than a GPU's single kernel
    normed = 2 * 96 + (6 + 2) * 16 * qk_norm
    slack = normed * 64 * 4 if policy == Policy.none else 0
    assert expected <= measured * 1.001
    assert measured <= (expected + slack) * 1.03


def test_less_is_kept() -> None:
    config = model_preset("internlm2-7b")
    none, selective, full = (activation_bytes(config, policy, 2) for policy in Policy)
    assert full < selective < none


@given(st.integers(1, 40), st.floats(0, 1.2))
def test_a_budget_is_kept_and_used(layers: int, share: float) -> None:
    config = model_preset("internlm2-1.8b")
    tokens = 4096
    each = {policy: tokens * activation_bytes(config, policy, 2) for policy in Policy}
    budget = share * layers * each[Policy.none]
    chosen = policies_within(config, layers, tokens, 2, budget)
    total = sum(each[policy] for policy in chosen)
    assert len(chosen) == layers
    if budget < layers * each[Policy.full]:
        assert chosen == [Policy.full] * layers
    else:
        assert total <= budget
        # none could recompute less without passing it, of those that recompute most
        if Policy.full in chosen:
            assert total - each[Policy.full] + each[Policy.selective] > budget
        elif Policy.selective in chosen:
            assert total - each[Policy.selective] + each[Policy.none] > budget
