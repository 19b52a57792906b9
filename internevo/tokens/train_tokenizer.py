"""Training a SentencePiece BPE tokenizer."""

from __future__ import annotations

import io
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path

from internevo.files.durable import write_durable
from internevo.files.errors import UserError

LONGEST = 4096
"""Characters of a training sentence; longer documents are given in stretches, since SentencePiece drops them."""


def train_tokenizer(
    texts: Iterable[str],
    output: Path | str,
    vocab: int,
    max_characters: int = 200_000_000,
    control: Sequence[str] = (),
) -> Path:
    """Train a BPE model of `vocab` pieces and write it to `output`, a `.model` file.

    It learns from the first `max_characters` of `texts`. `control` are names of more control tokens, as a chat template
    writes them: they are among the pieces, and no text becomes one. Digits are split one by one, unknown characters
    fall back to bytes, and text is neither normalised nor trimmed, nor is a space put before it: code comes back
    exactly, except that U+2581 comes back as a space, for which it stands in SentencePiece. Ids: unknown 0, BOS 1,
    EOS 2, then `control`. Raises UserError when `output` exists, there is too little text for this number of pieces, or
    a name in `control` is no word or stands there twice.
    """
    for name in control:
        if not name or name.split() != [name] or control.count(name) > 1:
            raise UserError(f"{name!r} cannot name a control token: give each one name, without spaces.")
    output = Path(output)
    if output.exists():
        raise UserError(f"{output} exists already; it is not overwritten. Choose another name or remove it.")
    try:
        model = _in_a_process(_stretches(texts, max_characters), vocab, list(control))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot train a tokenizer of {vocab:,} pieces on this text: {reason}") from None
    output.parent.mkdir(parents=True, exist_ok=True)
    return write_durable(output, model)


def _stretches(texts: Iterable[str], max_characters: int) -> Iterator[str]:
    left = max_characters
    for text in texts:
        for start in range(0, len(text), LONGEST):
            yield text[start : start + LONGEST].replace("\0", "")
        left -= len(text)
        if left <= 0:
            return


def _in_a_process(sentences: Iterable[str], vocab: int, control: list[str]) -> bytes:
    """The model. SentencePiece takes long and hears nothing of Ctrl-C, so it runs in a process of its own; a thread
    would abort an interpreter that is at its end.
    Through a pipe go the sentences and then None; back comes the model, or the text of a RuntimeError."""
    pipe, end = multiprocessing.Pipe()
    command = [sys.executable, "-c", f"from {__name__} import _serve; _serve({end.fileno()}, {vocab}, {control!r})"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    # a process group of its own: a terminal's Ctrl-C is for this process alone
    with subprocess.Popen(command, pass_fds=[end.fileno()], process_group=0, env=environment) as process:
        end.close()
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # it has ended, and its answer says why
                for sentence in chain(sentences, [None]):
                    pipe.send(sentence)
            answer = pipe.recv()
        except EOFError:
            raise UserError("the process that trained the tokenizer was ended; was there enough memory?") from None
        finally:
            process.kill()
            pipe.close()
    if isinstance(answer, str):
        raise RuntimeError(answer)
    assert isinstance(answer, bytes)
    return answer


def _serve(descriptor: int, vocab: int, control: list[str]) -> None:
    """In that process."""
    pipe: Connection[bytes | str, str | None] = Connection(descriptor)
    with suppress(EOFError, OSError):  # the process that asked is no more
        try:
            answer: bytes | str = _train(iter(pipe.recv, None), vocab, control)
        except RuntimeError as error:
            answer = str(error)
        pipe.send(answer)


def _train(sentences: Iterator[str], vocab: int, control: list[str]) -> bytes:
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=sentences,
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
        control_symbols=control,
        max_sentence_length=4 * LONGEST,
        train_extremely_large_corpus=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,  # the result must not depend on the machine
        minloglevel=2,
    )
    return model.getvalue()
