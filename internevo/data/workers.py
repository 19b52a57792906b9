"""The pieces of a corpus through worker processes, in order."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from internevo.config.errors import UserError
from internevo.data.pieces import Piece, cut
from internevo.data.tokenise import Options, TokenisedPiece, start_worker, tokenise, work
from internevo.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Ready:
    """A piece that is tokenised."""

    number: int
    file: Path
    size: int
    """Bytes of input."""
    new: bool
    """Whether it was tokenised now, not by an earlier run."""
    path: Path

    def load(self) -> TokenisedPiece:
        """Its tokens."""
        return TokenisedPiece.load(self.path)


def piece_file(folder: Path, number: int) -> Path:
    """Where a tokenised piece is kept; a thousand to a folder."""
    return folder / f"{number // 1000:06}" / f"{number:09}.npz"


def tokenised(
    files: Sequence[Path],
    held_files: Sequence[Path],
    tokenizer: Tokenizer,
    options: Options,
    workers: int,
    folder: Path,
    *,
    skip: int,
    piece_bytes: int,
) -> Iterator[Ready]:
    """The pieces of `files`, then of `held_files`, all held out, behind the first `skip`; in order.

    A piece that is in `folder` already is not tokenised again. Raises UserError for input that is damaged, and when a
    worker is killed.
    """

    def todo() -> Iterator[tuple[int, Piece, bool, Path]]:
        number = 0
        for group, held in ((files, False), (held_files, True)):
            for piece in cut(group, piece_bytes):
                if number >= skip:
                    path = piece_file(folder, number)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    yield number, piece, held, path
                number += 1

    if workers <= 1:
        for number, piece, held, path in todo():
            if new := not path.exists():
                tokenise(piece, tokenizer, options, held).save(path)
            yield Ready(number, piece.file, piece.size, new, path)
        return
    context = multiprocessing.get_context("spawn")
    waiting: deque[tuple[Future[None] | None, Ready]] = deque()
    with ProcessPoolExecutor(workers, context, start_worker, (tokenizer.path, options)) as pool:
        try:
            for number, piece, held, path in todo():
                new = not path.exists()
                future = pool.submit(work, piece, held, path) if new else None
                waiting.append((future, Ready(number, piece.file, piece.size, new, path)))
                # a few more than there are workers: a slow piece must not leave the others without work
                if len(waiting) > 3 * workers:
                    yield _when_done(*waiting.popleft())
            while waiting:
                yield _when_done(*waiting.popleft())
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, perhaps because memory ran out. The same command goes on from here; "
                "fewer --workers take less memory."
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _when_done(future: Future[None] | None, ready: Ready) -> Ready:
    if future is not None:
        future.result()
    return ready
