"""Sampling: the cache changes nothing, and what may be sampled is what the settings say."""

from __future__ import annotations

import torch

from internevo.config.presets import model_preset
from internevo.model.documents import Documents
from internevo.model.generate import choose_token, generate
from internevo.model.initial import init_weights
from internevo.model.transformer import Transformer


def build() -> Transformer:
    model = Transformer(model_preset("tiny", init_std=0.2))
    init_weights(model, 0)
    return model


@torch.no_grad()
def greedy(model: Transformer, prompt: list[int], count: int) -> list[int]:
    """Without a cache: the whole text again for every token."""
    ids = list(prompt)
    for _ in range(count):
        length = len(ids)
        logits = model(torch.tensor([ids]), torch.arange(length)[None], Documents.of([length]))
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_with_the_cache_equals_greedy_without() -> None:
    model = build()
    for prompt in ([5], [5, 17, 300, 4]):
        assert list(generate(model, prompt, 12, temperature=0)) == greedy(model, prompt, 12)


def test_ends_at_eos() -> None:
    model = build()
    whole = greedy(model, [5, 9], 12)
    eos = whole[6]
    got = list(generate(model, [5, 9], 12, temperature=0, eos_id=eos))
    assert got == whole[: whole.index(eos)]


def test_a_seed_repeats_itself() -> None:
    model = build()
    runs = [list(generate(model, [3], 20, generator=torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([0.5, 0.05, 0.3, 0.15]).log()
    generator = torch.Generator().manual_seed(0)

    def seen(top_p: float) -> set[int]:
        return {choose_token(logits, 1.0, top_p, generator) for _ in range(300)}

    assert seen(0.4) == {0}
    assert seen(0.75) == {0, 2}
    assert seen(0.9) == {0, 2, 3}
    assert seen(1.0) == {0, 1, 2, 3}


def test_temperature_sharpens() -> None:
    logits = torch.tensor([1.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    share = [sum(choose_token(logits, t, 1.0, generator) == 0 for _ in range(2000)) / 2000 for t in (0.5, 1.0, 2.0)]
    expected = [torch.sigmoid(torch.tensor(1 / t)).item() for t in (0.5, 1.0, 2.0)]
    assert all(abs(a - b) < 0.04 for a, b in zip(share, expected, strict=True))
