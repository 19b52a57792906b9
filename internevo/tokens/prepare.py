"""Text to token store: `internevo data prepare`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from internevo.text.corpus import input_files
from internevo.text.pieces import PIECE_BYTES, cut
from internevo.tokens.build import BytesDone, Manifest, build_store
from internevo.tokens.prepared_folder import check_output
from internevo.tokens.store_writer import token_dtype
from internevo.tokens.tokenise import text_encoder
from internevo.tokens.tokenizer import load_tokenizer
from internevo.tokens.workers import StoreJob


def prepare(
    inputs: Sequence[Path | str],
    output: Path | str,
    tokenizer_path: Path | str,
    *,
    text_key: str = "text",
    held_out: float = 0.0,
    held_out_inputs: Sequence[Path | str] = (),
    workers: int = 1,
    max_rejects: float = 0.01,
    shard_tokens: int = 2**30,
    piece_bytes: int = PIECE_BYTES,
    progress: Callable[[BytesDone], None] = lambda done: None,
) -> Manifest:
    """Make the token store folder `output` from text.

    Each document becomes BOS, its tokens, EOS. It is held out when a hash of its text falls below the share `held_out`,
    whatever the order and the files are, or when it is in `held_out_inputs`. A store of more than `shard_tokens` is
    several pairs of files. Called again after a stop, this resumes; neither that nor `workers` changes the result.

    Raises UserError when `output` exists or is below an input, an input is missing or has changed, the disk is full,
    nothing is left, or more than `max_rejects` of the documents cannot be read.
    """
    tokenizer = load_tokenizer(tokenizer_path)
    dtype = np.dtype(token_dtype(tokenizer.vocab_size)).name
    output = Path(output)
    given, given_held = ([Path(path) for path in paths] for paths in (inputs, held_out_inputs))
    found, found_held = ([input_files(path) for path in paths] for paths in (given, given_held))
    check_output(output, [*given, *given_held])
    job = StoreJob(
        files=[file for one in found for file in one.files],
        held_files=[file for one in found_held for file in one.files],
        left_out=dict(sum((one.left_out for one in (*found, *found_held)), Counter())),
        output=output,
        cut=cut,
        encoder=partial(text_encoder, tokenizer.path, text_key, held_out, dtype),
        tokenizer=tokenizer,
        dtype=dtype,
        held_out=held_out,
        max_rejects=max_rejects,
        shard_tokens=shard_tokens,
        piece_bytes=piece_bytes,
        options={"text_key": text_key},
    )
    return build_store(job, workers, progress)
