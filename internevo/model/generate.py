"""Sampling token by token with a key and value cache."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from internevo.files.errors import UserError
from internevo.model.cache import KVCache
from internevo.model.transformer import Transformer


@torch.no_grad()
def generate(
    model: Transformer,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    eos_id: int | None = None,
    stops: Collection[int] = (),
    never: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """New token ids one at a time, as they are sampled; ends after `eos_id` or one of `stops`, which is not
    given out.

    `prompt` has at least one token. Temperature 0 takes the likeliest token. `top_p` samples from the smallest
    set of likeliest tokens whose probability reaches it (nucleus sampling, arXiv 1904.09751). Ids in `never` are not
    sampled: a vocabulary may have more rows than the tokenizer has pieces. Raises UserError for a prompt with an id
    past the vocabulary.
    """
    if max(prompt) >= model.config.vocab:
        raise UserError(
            f"the prompt has token id {max(prompt)}, past the model's vocabulary of {model.config.vocab:,}; its "
            "tokenizer is that of another model"
        )
    weight = model.head.weight
    masked = torch.tensor(list(never), dtype=torch.long, device=weight.device)
    cache = KVCache(1, len(prompt) + max_new_tokens, model.config, weight)
    tokens = torch.tensor([list(prompt)], device=weight.device)
    for _ in range(max_new_tokens):
        positions = cache.positions(tokens.shape[1], weight.device)
        features = model.features(tokens, positions, None, cache)
        logits = model.head(features[0, -1]).float().index_fill(0, masked, -math.inf)
        token = choose_token(logits, temperature, top_p, generator)
        if token == eos_id or token in stops:
            return
        yield token
        tokens = torch.tensor([[token]], device=weight.device)


def choose_token(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> int:
    """One token id from logits `[vocab]`."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities, ids = torch.softmax(logits / temperature, dim=-1).sort(descending=True)
    # a token stays when those before it have not reached top_p; the likeliest always does
    probabilities[1:][probabilities.cumsum(0)[:-1] >= top_p] = 0
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])
