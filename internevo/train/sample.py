"""Sampling text from a model on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from internevo.model.generate import generate
from internevo.tokens.tokenizer import Tokenizer
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
    yield tokenizer.decode(ids)
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
    yield from streamed(tokenizer, new, ids)


def streamed(tokenizer: Tokenizer, new: Iterable[int], before: Sequence[int]) -> Iterator[str]:
    """The text of new tokens as they come, after those `before`; all of it together is the text of all of them.

    A character of several tokens comes with its last one. What is left of one at the end shows as U+FFFD.
    """
    ids = list(before)
    shown = text = tokenizer.decode(ids)
    for token in new:
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith("\ufffd") and text.startswith(shown):
            yield text[len(shown) :]
            shown = text
    if text != shown:
        yield text[len(shown) :]
