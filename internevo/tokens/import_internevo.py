"""InternEvo's token files to a token store: `internevo data import --from internevo`.

`NAME.bin` has a line of JSON a document, `{"tokens": [...]}`. `NAME.bin.meta`, an array that numpy saved, has a row a
line: the byte at which it begins, and how many tokens it has. It is int32, so offsets past 2 GiB are right modulo 2**32
only: lines are found in the file and compared with the rows. A negative id is a token that nothing is to learn to
predict; the token itself is its absolute value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from internevo.files.errors import UserError
from internevo.files.hashing import share_of
from internevo.text.documents import Reject
from internevo.text.pieces import PIECE_BYTES, LineRange, line_ranges
from internevo.tokens.build import BytesDone, Manifest, build_store
from internevo.tokens.megatron import pair_file
from internevo.tokens.prepared_folder import check_output
from internevo.tokens.tokenise import Record, TokenisedPiece
from internevo.tokens.tokenizer import load_tokenizer
from internevo.tokens.workers import StoreJob

DTYPE = np.dtype(np.int32)
"""Of what is imported: signed for masked ids, and how large they are is known only at the end."""
_HEAD = 4096  # bytes that are looked at to see whether a file is text


def import_internevo(
    inputs: Sequence[Path],
    output: Path,
    *,
    tokenizer_path: Path | None = None,
    held_out: float = 0.0,
    workers: int = 1,
    max_rejects: float = 0.0,
    shard_tokens: int = 2**30,
    piece_bytes: int = PIECE_BYTES,
    progress: Callable[[BytesDone], None] = lambda done: None,
) -> Manifest:
    """Make the token store folder `output` from `.bin` files, or folders of them, in the order of their names.

    Ids stay as they are, int32. With a tokenizer, the manifest names it, and no id may be past its pieces. Stopping,
    holding out and errors are those of `prepare`; there is one more for an input that disagrees with its `.meta`.
    """
    tokenizer = load_tokenizer(tokenizer_path) if tokenizer_path is not None else None
    ids = tokenizer.vocab_size if tokenizer else np.iinfo(DTYPE).max + 1
    files = [file for path in inputs for file in _bin_files(path)]
    for file in files:
        with file.open("rb") as opened:
            if b"\0" in opened.read(_HEAD):
                raise UserError(
                    f"{file} holds no JSON lines, but bytes. If they are plain ids, as nanoGPT and llm.c write them, "
                    f"`internevo data index {file} --eos ID` finds the documents, and {file} can be named in a config."
                )
        if (meta := pair_file(file, ".meta")).is_file():
            _read_meta(meta)  # one that is none is reported before the work begins
    check_output(output, inputs)
    job = StoreJob(
        files=files,
        held_files=(),
        output=output,
        cut=cut_lines,
        encoder=partial(_reader, ids, held_out),
        tokenizer=tokenizer,
        dtype=DTYPE.name,
        held_out=held_out,
        max_rejects=max_rejects,
        shard_tokens=shard_tokens,
        piece_bytes=piece_bytes,
        options={"from": "internevo"},
    )
    return build_store(job, workers, progress)


@dataclass(frozen=True)
class IdLines(LineRange):
    """Some lines of a `.bin` file, and what its `.meta` says of them."""

    # how many lines stand before these, and the rows of these, `[lines, 2]`; None for a file without `.meta`
    said: tuple[int, np.ndarray] | None


def cut_lines(files: Iterable[Path], piece_bytes: int) -> Iterator[IdLines]:
    """The pieces of these files, in order. Raises UserError for a `.meta` of other lines than the file has."""
    for file in files:
        ranges = list(line_ranges(file, piece_bytes))
        meta = pair_file(file, ".meta")
        if not meta.is_file():
            yield from (IdLines(one.file, one.begin, one.end, None) for one in ranges)
            continue
        rows = _read_meta(meta)
        begins = _unwrapped(rows[:, 0])
        if len(begins) and (begins[0] or begins[-1] >= file.stat().st_size):
            line, begin = (1, begins[0]) if begins[0] else (len(begins), begins[-1])
            raise _disagree(file, line, f"it is to begin at byte {begin:,}, and there is none")
        edges = [*np.searchsorted(begins, [one.begin for one in ranges]).tolist(), len(rows)]
        for one, (first, last) in zip(ranges, pairwise(edges), strict=True):
            yield IdLines(one.file, one.begin, one.end, (first, np.array(rows[first:last])))


def _reader(ids: int, held_out: float) -> Callable[[IdLines, bool], TokenisedPiece]:
    return partial(read_piece, ids, held_out)


def read_piece(ids: int, held_out: float, piece: IdLines, all_held_out: bool) -> TokenisedPiece:
    """The documents of a piece as they are. Ids from `ids` on, and lines that cannot be read, make a reject.

    Raises UserError where the file and its `.meta` disagree.
    """
    record = Record()
    documents = []
    for begin, line in piece.lines():
        record.lines += 1
        tokens = _tokens(line, ids)
        _compare(piece, record.lines, begin, tokens)
        if isinstance(tokens, str):
            record.counts.rejected += 1
            record.rejects.append(Reject(str(piece.file), record.lines, tokens, line.decode(errors="surrogateescape")))
        elif not len(tokens):
            record.counts.empty += 1
        else:
            documents.append((tokens, all_held_out or share_of(tokens.tobytes()) < held_out))
            record.counts.masked_tokens += int((tokens < 0).sum())
    if piece.said is not None and record.lines < len(piece.said[1]):
        raise _disagree(piece.file, piece.said[0] + record.lines + 1, "the file has fewer lines")
    return TokenisedPiece.of(record, documents, DTYPE)


def _tokens(line: bytes, ids: int) -> np.ndarray | str:
    """A line's ids, or why it has none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    found = value.get("tokens") if isinstance(value, dict) else None
    if not isinstance(found, list):
        return "no list under 'tokens'"
    try:
        tokens = np.array(found or (), None if found else np.int64)
    except (ValueError, OverflowError):
        tokens = np.array(0.5)
    if tokens.ndim != 1 or tokens.dtype.kind != "i":
        return "holds ids that are no whole numbers"
    if len(tokens) and (largest := max(int(tokens.max()), -int(tokens.min()))) >= ids:
        return f"holds id {largest:,}; they must be below {ids:,}"
    return tokens.astype(DTYPE)


def _compare(piece: IdLines, line: int, begin: int, tokens: np.ndarray | str) -> None:
    """A line, from 1 in its piece, with its row. One that cannot be read is reported for itself."""
    if piece.said is None or isinstance(tokens, str):
        return
    before, rows = piece.said
    if line > len(rows):
        raise _disagree(piece.file, before + line, f"it has no row for the line at byte {begin:,}")
    offset, length = rows[line - 1].tolist()
    if (offset - begin) % 2**32:
        raise _disagree(piece.file, before + line, f"it is to begin at byte {offset:,}, and begins at {begin:,}")
    if length != len(tokens):
        raise _disagree(piece.file, before + line, f"it is to have {length:,} tokens, and has {len(tokens):,}")


def _disagree(file: Path, line: int, how: str) -> UserError:
    return UserError(
        f"{pair_file(file, '.meta')} disagrees with {file.name} at line {line:,}: {how}. Fix them, or move the .meta "
        "away to import the lines as they are."
    )


def _bin_files(path: Path) -> list[Path]:
    if path.is_dir():
        if found := sorted(path.rglob("*.bin")):
            return found
        raise UserError(f"{path} holds no .bin files")
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    return [path]


def _read_meta(meta: Path) -> np.ndarray:
    """Its rows `[lines, 2]`, memory mapped."""
    try:
        rows = np.load(meta, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{meta} is not an array that numpy saved: {error}") from None
    if not rows.size:
        return np.empty((0, 2), np.int64)
    if rows.ndim != 2 or rows.shape[1] < 2 or rows.dtype.kind not in "iu":
        raise UserError(f"{meta} is an array {rows.dtype} {list(rows.shape)}, not rows of (offset, length)")
    return rows[:, [0, -1]] if rows.shape[1] > 2 else rows


def _unwrapped(offsets: np.ndarray) -> np.ndarray:
    """Where lines begin, int64: offsets that grow, of which only the lowest 32 bits can be relied on."""
    steps = np.diff(offsets.astype(np.int64), prepend=0)
    return np.cumsum(np.mod(steps, 2**32))
