"""Sampling text from a model on disk."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from internevo.model.generate import generate
from internevo.train.stored_model import StoredModel


def sample_text(
    stored: StoredModel, prompt: str, tokens: int, temperature: float, top_p: float, seed: int
) -> Iterator[str]:
    """The prompt, then new text piece by piece as it is sampled, until EOS or `tokens` tokens.

    The prompt is framed as in training: BOS before it. Raises UserError when the model names no tokenizer.
    """
    tokenizer = stored.needs_tokenizer()
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    generator = torch.Generator().manual_seed(seed)
    shown = tokenizer.decode(ids)
    yield shown
    new = generate(
        stored.load(),
        ids,
        tokens,
        temperature=temperature,
        top_p=top_p,
        eos_id=tokenizer.eos_id,
        never=tokenizer.unused(stored.config.vocab),
        generator=generator,
    )
    for token in new:
        ids.append(token)
        text = tokenizer.decode(ids)
        # a character of several byte tokens shows as the replacement sign until its last byte is there
        if text.startswith(shown) and not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
