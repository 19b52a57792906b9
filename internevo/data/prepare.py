"""Text to token store: cut into pieces, tokenise them in several processes, join them in order.

Everything is made in `OUTPUT.partial`, which becomes `OUTPUT` at the end:

- `plan.json`: what the work was begun with. A later run with the same plan goes on where this one stopped;
- `pieces/`: what workers have tokenised and is not joined yet, a file a piece;
- `store/`: the pieces joined in order, in shards. Where a shard ends depends on the pieces alone;
- `joined.json`: written when a shard is whole, after which its pieces are removed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from internevo.config.errors import UserError
from internevo.data.corpus import input_files
from internevo.data.join import Joiner
from internevo.data.pieces import PIECE_BYTES
from internevo.data.store_writer import token_dtype
from internevo.data.tokenise import Counts, Options
from internevo.data.tokenizer import load_tokenizer
from internevo.data.work_folder import check_unchanged, plan_of, working_in
from internevo.data.workers import tokenised

MANIFEST = "manifest.json"


@dataclass
class Manifest(Counts):
    """What a prepared folder holds and what it was made from; `manifest.json`."""

    inputs: list[str] = field(default_factory=list)
    tokenizer: str = ""
    tokenizer_fingerprint: str = ""
    vocab_size: int = 0
    dtype: str = ""
    held_out: float = 0.0
    sha256: dict[str, str] = field(default_factory=dict)
    """Of every file of the folder but this one."""


@dataclass(frozen=True)
class Progress:
    """How far the work is."""

    read: int
    """Bytes of the input that are done ..."""
    size: int
    """... of how many in all."""
    read_now: int
    """Those that this run did, not an earlier one that was stopped."""
    tokens_now: int


def prepare(
    inputs: Sequence[Path],
    output: Path,
    tokenizer_path: Path,
    *,
    text_key: str = "text",
    held_out: float = 0.0,
    held_out_inputs: Sequence[Path] = (),
    workers: int = 1,
    max_rejects: float = 0.01,
    shard_tokens: int = 2**30,
    piece_bytes: int = PIECE_BYTES,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Manifest:
    """Make the token store folder `output` from text.

    Each document becomes BOS, its tokens, EOS. A document is held out when a hash of its text falls below the
    share `held_out`, so the choice does not depend on order or files; documents of `held_out_inputs` are held out
    all. A store of more than `shard_tokens` is several pairs of files. The result does not depend on `workers`, nor
    on how often the work was stopped: called again, it goes on. Raises UserError when `output` exists, an input is
    missing or has changed, the disk is full, nothing is left, or more than `max_rejects` of the documents cannot be
    read.
    """
    tokenizer = load_tokenizer(tokenizer_path)
    files = [file for path in inputs for file in input_files(path)]
    held_files = [file for path in held_out_inputs for file in input_files(path)]
    if output.exists():
        raise UserError(f"{output} exists already; it is not overwritten. Choose another name or remove it.")
    dtype = np.dtype(token_dtype(tokenizer.vocab_size)).name
    plan = plan_of(
        files,
        held_files,
        tokenizer=tokenizer.fingerprint,
        text_key=text_key,
        held_out=held_out,
        shard_tokens=shard_tokens,
        piece_bytes=piece_bytes,
    )
    partial = output.with_name(output.name + ".partial")
    with working_in(partial, plan):
        joiner = Joiner(partial, dtype, shard_tokens, max_rejects)
        options = Options(text_key, held_out, dtype)
        size = sum(file.stat().st_size for file in (*files, *held_files))
        read = tokens = 0
        try:
            for ready in tokenised(
                files,
                held_files,
                tokenizer,
                options,
                workers,
                partial / "pieces",
                skip=joiner.joined.pieces,
                piece_bytes=piece_bytes,
            ):
                before = joiner.tokens
                joiner.add(ready)
                if ready.new:
                    read, tokens = read + ready.size, tokens + joiner.tokens - before
                progress(Progress(joiner.joined.read, size, read, tokens))
            check_unchanged(plan, files, held_files, partial)
            made = joiner.finish()
        finally:
            joiner.close()
        manifest = Manifest(
            **asdict(made.counts),
            inputs=[str(file) for file in (*files, *held_files)],
            tokenizer=str(tokenizer_path),
            tokenizer_fingerprint=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            dtype=dtype,
            held_out=held_out,
            sha256=made.sha256,
        )
        (partial / "store" / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n")
        (partial / "store").rename(output)
        shutil.rmtree(partial)
    return manifest
