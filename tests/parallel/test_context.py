"""Who has which tokens, and attention over them against a dense float64 reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.config.presets import model_preset
from internevo.config.schema import ContextConfig, ParallelConfig, StageConfig, TrainConfig
from internevo.parallel.context import ContextAttention, ContextCut, deal, places
from internevo.parallel.layout import make_layout
from internevo.parallel.ring import _meetings
from internevo.parallel.world import World
from tests.model.reference import dense_attention

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=30)


@settings(max_examples=200, deadline=None)
@given(lengths, st.integers(1, 8))
def test_every_rank_gets_equally_many_tokens_and_every_token_goes_somewhere(lengths: list[int], ring: int) -> None:
    lengths.append(-sum(lengths) % ring or ring)
    chunks = deal(lengths, ring)
    assert chunks.sum(axis=1).tolist() == lengths
    assert (chunks.max(axis=1) - chunks.min(axis=1) <= 1).all()
    index = [places(chunks, rank) for rank in range(ring)]
    assert {len(one) for one in index} == {sum(lengths) // ring}
    assert sorted(np.concatenate(index).tolist()) == list(range(sum(lengths)))
    assert all((np.diff(one) > 0).all() for one in index)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(64, 4000), min_size=1, max_size=10), st.integers(2, 8))
def test_the_causal_work_is_shared_out_evenly(lengths: list[int], ring: int) -> None:
    lengths.append(64 * ring - sum(lengths) % ring)
    chunks = tuple(tuple(document) for document in deal(lengths, ring).tolist())
    work = []
    for rank in range(ring):
        pairs = 0
        for visitor in range(ring):
            for ours, theirs, causal in _meetings(chunks, rank, visitor):
                queries, keys = ours.stop - ours.start, theirs.stop - theirs.start
                pairs += queries * (queries + 1) // 2 if causal else queries * keys
        work.append(pairs)
    assert sum(work) == sum(length * (length + 1) // 2 for length in lengths)  # no pair twice, none left out
    assert max(work) <= 1.1 * sum(work) / ring


def attend(
    world: World, context: int, ulysses: int, rows: list[list[int]], heads: tuple[int, int], dtype: torch.dtype
) -> Any:
    """Attention and its gradients over the ranks, put together again on each."""
    seq = sum(rows[0])
    stage = StageConfig(
        model=model_preset("tiny", attention={"heads": heads[0], "kv_heads": heads[1]}),
        train=TrainConfig(seq_len=seq, batch_tokens=seq * len(rows), steps=1),
        parallel=ParallelConfig(context=ContextConfig(context, ulysses)),
    )
    mesh = world.mesh(make_layout(stage, world.size))
    index, documents = ContextCut(mesh)(rows)
    inputs = [x.to(dtype) for x in random_inputs(len(rows), seq, heads)]
    places = torch.from_numpy(index)[..., None, None]
    q, k, v, grad = (torch.take_along_dim(x, places, dim=1) for x in inputs)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = ContextAttention(mesh)(*leaves, documents, "sdpa")
    out.backward(grad)
    return index, out.detach(), *(leaf.grad for leaf in leaves)


def random_inputs(rows: int, seq: int, heads: tuple[int, int]) -> list[torch.Tensor]:
    """q, k, v and the output's gradient."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, seq, n, 16, generator=generator) for n in (heads[0], heads[1], heads[1], heads[0])]


ROWS = {
    "one document": [[128]],
    "one-token documents": [[1] * 128],
    "all kinds": [[1, 100, 1, 3, 2, 20, 1], [128], [7, 1, 1, 1, 118], [64, 64]],
    "documents shorter than the ring": [[3] * 42 + [2], [1, 2, 3, 4, 5, 6, 7] * 4 + [16]],
}


@pytest.mark.parametrize(
    ("context", "ulysses", "heads"), [(4, 1, (4, 2)), (4, 2, (4, 2)), (4, 4, (8, 2)), (2, 1, (6, 6))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", ROWS)
def test_attention_over_ranks_is_dense_attention(
    context: int, ulysses: int, heads: tuple[int, int], dtype: torch.dtype, rows: str, ranks: Any
) -> None:
    results = ranks(context).run(attend, context, ulysses, ROWS[rows], heads, dtype)
    q, k, v, grad = (x.to(dtype).double() for x in random_inputs(len(ROWS[rows]), 128, heads))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    documents = [length for row in ROWS[rows] for length in row]
    expected = dense_attention(*leaves, documents)
    expected.backward(grad)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for number, whole in enumerate((expected.detach(), *(leaf.grad for leaf in leaves))):
        joined = torch.full_like(whole, torch.nan)
        for index, *parts in results:
            for row in range(len(index)):
                joined[row, index[row]] = parts[number][row].double()
        assert (joined - whole).abs().max() <= tolerance * max(1.0, float(whole.abs().max())), number


def test_the_worked_example_of_its_file() -> None:
    chunks = deal([5, 3], 2)
    assert chunks.tolist() == [[2, 1, 1, 1], [1, 1, 1, 0]]
    assert [places(chunks, rank).tolist() for rank in (0, 1)] == [[0, 1, 4, 5], [2, 3, 6, 7]]
