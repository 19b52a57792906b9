"""Sampling text from a restored model."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from internevo.config.errors import UserError
from internevo.data.tokenizer import load_tokenizer
from internevo.model.generate import generate
from internevo.train.restore import Restored


def sample_text(
    restored: Restored, prompt: str, tokens: int, temperature: float, top_p: float, seed: int
) -> Iterator[str]:
    """The prompt, then new text piece by piece as it is sampled, until EOS or `tokens` tokens.

    The prompt is framed as in training: BOS before it. Raises UserError when the run names no tokenizer.
    """
    if restored.stage.tokenizer is None:
        raise UserError("the run's config names no tokenizer; set `tokenizer` in it to turn text into tokens")
    tokenizer = load_tokenizer(restored.stage.tokenizer)
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    generator = torch.Generator().manual_seed(seed)
    shown = tokenizer.decode(ids)
    yield shown
    new = generate(
        restored.model.eval(),
        ids,
        tokens,
        temperature=temperature,
        top_p=top_p,
        eos_id=tokenizer.eos_id,
        generator=generator,
    )
    for token in new:
        ids.append(token)
        text = tokenizer.decode(ids)
        # a character of several byte tokens shows as the replacement sign until its last byte is there
        if text.startswith(shown) and not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
