"""The pieces of a corpus through worker processes, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from internevo.files.errors import UserError
from internevo.files.processes import ctrl_c_held, worker_pool
from internevo.tokens.prepared_folder import NEGATED
from internevo.tokens.tokenise import TokenisedPiece
from internevo.tokens.tokenizer import Tokenizer

Cut = Callable[[Iterable[Path], int], Iterable[Any]]
"""Files and a number of bytes to pieces of about that size, in order; they have `size` and `begins`."""
Encode = Callable[[Any, bool], TokenisedPiece]  # what makes tokens of a piece; the flag says that all of it is held out
Encoder = Callable[[], Encode]  # picklable; called once in each worker


@dataclass(frozen=True)
class StoreJob:
    """What a store is made of, and how."""

    files: Sequence[Path]
    held_files: Sequence[Path]  # held out whole
    output: Path
    cut: Cut
    encoder: Encoder
    tokenizer: Tokenizer | None
    dtype: str
    held_out: float
    max_rejects: float
    shard_tokens: int
    piece_bytes: int
    left_out: dict[str, int] = field(default_factory=dict)  # as in the manifest
    options: dict[str, Any] = field(default_factory=dict)  # what else the result depends on, in plain values
    masking: str = NEGATED
    sequences: int = 1  # of a document: two where it is a pair
    chat: dict[str, Any] = field(default_factory=dict)  # as in the manifest


@dataclass(frozen=True)
class Ready:
    begins: bool  # whether it is the first of its file
    size: int  # bytes of input
    new: bool  # whether it was tokenised now, not by an earlier run
    path: Path

    def load(self) -> TokenisedPiece:
        """Its tokens. Raises UserError when they are not there any more."""
        if (piece := TokenisedPiece.find(self.path)) is None:
            raise UserError(f"{self.path} was damaged or removed meanwhile. The same command makes it again.")
        return piece


def piece_file(folder: Path, number: int) -> Path:
    """Where a tokenised piece is kept; a thousand to a folder."""
    return folder / f"{number // 1000:06}" / f"{number:09}.npz"


def tokenised(job: StoreJob, workers: int, folder: Path, skip: int) -> Generator[Ready, None, None]:
    """The pieces of `job.files`, then of `job.held_files`, all held out, after the first `skip`; in order.

    One that is whole in `folder` already stays. Raises UserError for damaged input and when a worker is killed.
    """

    def todo() -> Iterator[tuple[Any, bool, Ready]]:
        number = 0
        for group, held in ((job.files, False), (job.held_files, True)):
            for piece in job.cut(group, job.piece_bytes):
                if number >= skip:
                    path = piece_file(folder, number)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    new = TokenisedPiece.find(path) is None
                    yield piece, held, Ready(begins=piece.begins, size=piece.size, new=new, path=path)
                number += 1

    if workers <= 1:
        encode = job.encoder()
        for piece, held, ready in todo():
            if ready.new:
                encode(piece, held).save(ready.path)
            yield ready
        return
    waiting: deque[tuple[Future[None] | None, Ready]] = deque()
    remedy = "The same command resumes here; fewer --workers take less memory."
    with worker_pool(workers, _start_worker, (job.encoder,), remedy) as pool:
        for piece, held, ready in todo():
            with ctrl_c_held():  # workers are started as they are needed
                future = pool.submit(_work, piece, held, ready.path) if ready.new else None
            waiting.append((future, ready))
            # a few more than there are workers: a slow piece must not leave the others without work
            if len(waiting) > 3 * workers:
                yield _when_done(*waiting.popleft())
        while waiting:
            yield _when_done(*waiting.popleft())


def _when_done(future: Future[None] | None, ready: Ready) -> Ready:
    if future is not None:
        future.result()
    return ready


_encode: Encode | None = None  # one for each worker process, made when it starts


def _start_worker(encoder: Encoder) -> None:
    global _encode
    _encode = encoder()


def _work(piece: Any, all_held_out: bool, path: Path) -> None:
    assert _encode is not None
    _encode(piece, all_held_out).save(path)
