"""Training a SentencePiece BPE tokenizer."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from internevo.files.durable import write_durable
from internevo.files.errors import UserError

LONGEST = 4096
"""Characters of a training sentence; longer documents are given in stretches, since SentencePiece drops them."""


def train_tokenizer(texts: Iterable[str], output: Path | str, vocab: int, max_characters: int = 200_000_000) -> Path:
    """Train a BPE model of `vocab` pieces and write it to `output`, a `.model` file.

    What it learns from is the first `max_characters` of `texts`. Digits are split one by one, unknown characters
    fall back to bytes, and text is neither normalised nor trimmed, so that code comes back exactly, but for one
    character: U+2581 comes back as a space, for which it stands in SentencePiece. No space is put before a text.
    Ids: unknown 0, BOS 1, EOS 2. Raises UserError when `output` exists or the text is too
    little for this number of pieces.
    """
    from sentencepiece import SentencePieceTrainer

    output = Path(output)
    if output.exists():
        raise UserError(f"{output} exists already; it is not overwritten. Choose another name or remove it.")
    model = io.BytesIO()

    def train() -> None:
        SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts, max_characters),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab,
            byte_fallback=True,
            split_digits=True,
            character_coverage=0.9999,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            # newlines and tabs as pieces of their own, so that they are not three-character byte sequences
            user_defined_symbols=["\n", "\t"],
            max_sentence_length=4 * LONGEST,
            train_extremely_large_corpus=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,  # the result must not depend on the machine
            minloglevel=2,
        )

    try:
        _aside(train)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot train a tokenizer of {vocab:,} pieces on this text: {reason}") from None
    output.parent.mkdir(parents=True, exist_ok=True)
    return write_durable(output, model.getvalue())


def _aside(work: Callable[[], None]) -> None:
    """Do it in another thread: SentencePiece takes long, and hears nothing of Ctrl-C, or calls it a bad sentence."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _sentences(texts: Iterable[str], max_characters: int) -> Iterator[str]:
    left = max_characters
    for text in texts:
        for start in range(0, len(text), LONGEST):
            yield text[start : start + LONGEST].replace("\0", "")
        left -= len(text)
        if left <= 0:
            return
