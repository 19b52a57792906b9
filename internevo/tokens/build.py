"""Files to a token store: cut into pieces, make tokens of them in several processes, join them in order.

Everything is made in `OUTPUT.partial`, which becomes `OUTPUT` at the end:

- `plan.json`: what the work was begun with. A later run with the same plan resumes where this one stopped. A folder
  without it is not touched, and it is removed last;
- `pieces/`: what workers have made and is not joined yet, a file a piece;
- `store/`: the pieces joined in order, in shards. Where a shard ends depends on the pieces alone;
- `joined.json`: written when a shard is whole, after which its pieces are removed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

from internevo.files.durable import sync_folder, write_durable
from internevo.tokens.prepared_folder import MANIFEST, NEGATED
from internevo.tokens.shards import Joiner
from internevo.tokens.tokenise import Counts
from internevo.tokens.work_folder import check_unchanged, plan_of, working_in
from internevo.tokens.workers import StoreJob, tokenised


@dataclass
class Manifest(Counts):
    """What a prepared folder holds and what it was made from; `manifest.json`."""

    inputs: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)  # how many files of other kinds there are, by endings
    tokenizer: str = ""  # empty, as the two below, where ids were imported without saying whose they are
    tokenizer_fingerprint: str = ""
    vocab_size: int = 0
    dtype: str = ""
    masked: bool = False  # whether ids may be negative: such a token is one that nothing is to learn to predict
    masking: str = NEGATED  # and which id that is
    pairs: bool = False  # whether each document is two sequences, one chosen and one rejected
    held_out: float = 0.0
    chat: dict[str, Any] = field(default_factory=dict)  # of conversations: how they were written
    sha256: dict[str, str] = field(default_factory=dict)  # of every file of the folder but this one


@dataclass(frozen=True)
class BytesDone:
    read: int
    size: int  # bytes of the input: done, and in all
    read_now: int  # without those of an earlier run that was stopped
    tokens_now: int


def build_store(job: StoreJob, workers: int, progress: Callable[[BytesDone], None]) -> Manifest:
    """Make the folder `job.output`, or resume it. Raises UserError when input is damaged or has changed, the disk is
    full, nothing is left, or more than the share `job.max_rejects` of the input cannot be used."""
    fingerprint = job.tokenizer.fingerprint if job.tokenizer else ""
    plan = plan_of(
        job.files,
        job.held_files,
        **job.options,
        tokenizer=fingerprint,
        held_out=job.held_out,
        shard_tokens=job.shard_tokens,
        piece_bytes=job.piece_bytes,
    )
    partial = job.output.with_name(job.output.name + ".partial")
    with working_in(partial, plan):
        with closing(Joiner(partial, job.dtype, job.shard_tokens, job.max_rejects, job.sequences)) as joiner:
            _join_all(job, joiner, workers, progress)
            check_unchanged(plan, partial)
            made = joiner.finish()
        manifest = Manifest(
            **asdict(made.counts),
            inputs=[str(file) for file in (*job.files, *job.held_files)],
            left_out=dict(sorted(job.left_out.items())),
            tokenizer=str(job.tokenizer.path) if job.tokenizer else "",
            tokenizer_fingerprint=fingerprint,
            vocab_size=job.tokenizer.vocab_size if job.tokenizer else 0,
            dtype=job.dtype,
            masked=made.counts.masked_tokens > 0,
            masking=job.masking,
            pairs=job.sequences == 2,
            chat=job.chat,
            held_out=job.held_out,
            sha256=made.sha256,
        )
        write_durable(partial / "store" / MANIFEST, (json.dumps(asdict(manifest), indent=1) + "\n").encode())
        (partial / "store").rename(job.output)
        sync_folder(job.output.parent)
    return manifest


def _join_all(job: StoreJob, joiner: Joiner, workers: int, progress: Callable[[BytesDone], None]) -> None:
    size = sum(file.stat().st_size for file in (*job.files, *job.held_files))
    read = tokens = 0
    pieces = tokenised(job, workers, joiner.folder / "pieces", skip=joiner.joined.pieces)
    with closing(pieces):  # ends its workers, whatever happens here
        for ready in pieces:
            before = joiner.tokens
            joiner.add(ready)
            if ready.new:
                read, tokens = read + ready.size, tokens + joiner.tokens - before
            progress(BytesDone(joiner.joined.read, size, read, tokens))
