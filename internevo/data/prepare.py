"""Text to token store: read, tokenise in several processes, frame, split off held-out documents, write."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from internevo.config.errors import UserError
from internevo.data.corpus import Reject, input_files, read_documents
from internevo.data.store import HELDOUT, TRAIN, TokenStoreWriter, token_dtype
from internevo.data.tokenizer import Tokenizer, load_tokenizer

MANIFEST, REJECTS = "manifest.json", "rejects.jsonl"
_GROUP = 64
"""Documents that go to a worker at a time."""


@dataclass
class Manifest:
    """What a prepared folder holds and what it was made from; `manifest.json`."""

    inputs: list[str]
    tokenizer: str
    tokenizer_fingerprint: str
    vocab_size: int
    dtype: str
    documents: int = 0
    tokens: int = 0
    heldout_documents: int = 0
    heldout_tokens: int = 0
    characters: int = 0
    empty: int = 0
    """Documents without any text, left out."""
    rejected: int = 0
    """Places in the input that held no usable text, listed in `rejects.jsonl`."""
    sha256: dict[str, str] = field(default_factory=dict)


Progress = Callable[[Manifest], None]


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
    progress: Progress = lambda manifest: None,
) -> Manifest:
    """Make the token store folder `output` from text.

    Each document becomes BOS, its tokens, EOS. A document is held out when a hash of its text falls below the
    share `held_out`, so the choice does not depend on order or files; documents of `held_out_inputs` are held out
    all. The result does not depend on `workers`. Everything is written into `output.partial` and renamed at the
    end. Raises UserError when `output` exists, an input is missing, nothing is left, or more than `max_rejects`
    of the documents cannot be read.
    """
    tokenizer = load_tokenizer(tokenizer_path)
    files = [file for path in (*inputs, *held_out_inputs) for file in _existing(path)]
    if output.exists():
        raise UserError(f"{output} exists already; it is not overwritten. Choose another name or remove it.")
    dtype = token_dtype(tokenizer.vocab_size)
    manifest = Manifest(
        [str(file) for file in files],
        str(tokenizer_path),
        tokenizer.fingerprint,
        tokenizer.vocab_size,
        np.dtype(dtype).name,
    )
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            train = stack.enter_context(TokenStoreWriter(partial / TRAIN, dtype))
            heldout = stack.enter_context(TokenStoreWriter(partial / HELDOUT, dtype))
            rejects = stack.enter_context((partial / REJECTS).open("w"))
            job = _Job(tokenizer, text_key, workers, manifest, max_rejects, rejects.write, progress)
            job.run(inputs, lambda held: heldout if held < held_out else train)
            job.run(held_out_inputs, lambda held: heldout)
        _finish(partial, manifest)
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


class _Job:
    """Documents through the workers into the writers."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        text_key: str,
        workers: int,
        manifest: Manifest,
        max_rejects: float,
        note: Callable[[str], object],
        progress: Progress,
    ):
        self.tokenizer, self.text_key, self.workers = tokenizer, text_key, workers
        self.manifest, self.max_rejects, self.note, self.progress = manifest, max_rejects, note, progress

    def run(self, inputs: Sequence[Path], writer_of: Callable[[float], TokenStoreWriter]) -> None:
        manifest, frame = self.manifest, (self.tokenizer.bos_id, self.tokenizer.eos_id)
        for texts, ids in self._encoded(self._texts(inputs)):
            for text, document in zip(texts, ids, strict=True):
                writer = writer_of(_share(text))
                writer.append(np.array([frame[0], *document, frame[1]], dtype=np.int64))
                manifest.characters += len(text)
                if writer.prefix.name == HELDOUT:
                    manifest.heldout_documents += 1
                    manifest.heldout_tokens += len(document) + 2
                else:
                    manifest.documents += 1
                    manifest.tokens += len(document) + 2
            self.progress(manifest)

    def _texts(self, inputs: Sequence[Path]) -> Iterator[str]:
        """Usable texts; the rest is counted and noted, and stops the job when there is too much of it."""
        read = 0
        for path in inputs:
            for document in read_documents(path, self.text_key):
                read += 1
                if isinstance(document, Reject):
                    self.manifest.rejected += 1
                    self.note(json.dumps(asdict(document)) + "\n")
                    self._check_rejects(document, read)
                elif document.text.strip():
                    yield document.text
                else:
                    self.manifest.empty += 1

    def _check_rejects(self, last: Reject, read: int) -> None:
        rejected = self.manifest.rejected
        if rejected > self.max_rejects * max(read, 1000):
            raise UserError(
                f"{rejected:,} of the first {read:,} documents cannot be used, the last "
                f"at {last.where}: {last.reason}. "
                f"More than {self.max_rejects:.1%} is taken for a mistake in the input; --max-rejects allows more."
            )

    def _encoded(self, texts: Iterator[str]) -> Iterator[tuple[list[str], list[list[int]]]]:
        """Groups of texts with their ids, in order, whatever the number of workers."""
        groups = iter(lambda: list(islice(texts, _GROUP)), [])
        if self.workers <= 1:
            for group in groups:
                yield group, self.tokenizer.encode_batch(group)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, context, _load_in_worker, (self.tokenizer.path,)) as pool:
            waiting: list[tuple[list[str], Future[list[list[int]]]]] = []
            for group in groups:
                waiting.append((group, pool.submit(_encode_in_worker, group)))
                if len(waiting) > 4 * self.workers:
                    done, future = waiting.pop(0)
                    yield done, future.result()
            for done, future in waiting:
                yield done, future.result()


def _finish(partial: Path, manifest: Manifest) -> None:
    if not manifest.documents:
        raise UserError("no document is left to train on: " + (_why(manifest) or "the input holds no documents"))
    if not manifest.heldout_documents:
        for ending in (".bin", ".idx"):
            (partial / f"{HELDOUT}{ending}").unlink()
    for path in sorted(partial.iterdir()):
        with path.open("rb") as file:
            manifest.sha256[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    (partial / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n")


def _why(manifest: Manifest) -> str:
    counts = {
        "held out": manifest.heldout_documents,
        "empty": manifest.empty,
        "unreadable": manifest.rejected,
    }
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


def _existing(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"{path} does not exist")
    return input_files(path)


def _share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


_worker_tokenizer: Tokenizer | None = None  # one for each worker process, loaded when it starts


def _load_in_worker(path: Path) -> None:
    global _worker_tokenizer
    _worker_tokenizer = load_tokenizer(path)


def _encode_in_worker(texts: list[str]) -> list[list[int]]:
    assert _worker_tokenizer is not None
    return _worker_tokenizer.encode_batch(texts)
