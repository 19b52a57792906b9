"""Tokenised pieces, in order, into the shards of a store."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from internevo.files.durable import write_durable
from internevo.files.errors import UserError
from internevo.tokens.megatron import pair_file
from internevo.tokens.prepared_folder import HELDOUT, TRAIN
from internevo.tokens.store_writer import TokenStoreWriter, digest
from internevo.tokens.tokenise import Counts
from internevo.tokens.workers import Ready, piece_file

REJECTS = "rejects.jsonl"


@dataclass
class Joined:
    """What stands in whole shards; `joined.json`."""

    pieces: int = 0
    shards: int = 0
    read: int = 0  # bytes of the input
    lines: int = 0  # lines read of the last piece's file: rejects are reported by line
    rejects: int = 0  # bytes of the file of rejects
    last_reject: str = ""  # its place, and the reason
    counts: Counts = field(default_factory=Counts)
    sha256: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of each file of the shards

    @classmethod
    def load(cls, path: Path) -> Joined:
        """What is written there, or nothing joined yet. Raises UserError for a file that is damaged."""
        if not path.exists():
            return cls()
        try:
            found = json.loads(path.read_bytes())
            return cls(**{**found, "counts": Counts(**found["counts"])})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is damaged: {error}. Remove {path.parent} to begin anew.") from None


class Joiner:
    """Writes the store of a folder of work, and resumes after the last whole shard."""

    def __init__(self, folder: Path, dtype: str, shard_tokens: int, max_rejects: float, sequences: int = 1):
        self.folder, self.store = folder, folder / "store"
        self.joined = Joined.load(folder / "joined.json")
        self._dtype, self._shard_tokens, self._max_rejects = dtype, shard_tokens, max_rejects
        self._sequences = sequences
        self._removed = 0
        if self.joined.shards and not self.store.exists():
            # it became the output, which was taken away since: nothing is left to resume
            (folder / "joined.json").unlink()
            self.joined = Joined()
        self.store.mkdir(exist_ok=True)
        rejects = self.store / REJECTS
        if self.joined.shards:
            self._check_whole()
        rejects.touch()
        os.truncate(rejects, self.joined.rejects)
        self._rejects = rejects.open("a", encoding="utf-8")
        self._remove_pieces()
        self._writers = self._begin_shard()

    @property
    def tokens(self) -> int:
        return self.joined.counts.tokens + self.joined.counts.heldout_tokens

    def add(self, ready: Ready) -> None:
        """Join the next piece. Raises UserError when too much of the input cannot be used."""
        joined, piece = self.joined, ready.load()
        train, heldout = self._writers
        train.extend(piece.train, piece.train_lengths)
        heldout.extend(piece.heldout, piece.heldout_lengths)
        if ready.begins:
            joined.lines = 0
        rejects = [one.after(joined.lines) for one in piece.record.rejects]
        for one in rejects:
            self._rejects.write(json.dumps({"where": one.where, "reason": one.reason, "raw": one.raw}) + "\n")
            joined.last_reject = f"{one.where}: {one.reason}"
        joined.counts.add(piece.record.counts)
        joined.lines += piece.record.lines
        joined.read += ready.size
        joined.pieces += 1
        self._check_rejects()
        if train.tokens + heldout.tokens >= self._shard_tokens:
            self._end_shard()
            self._writers = self._begin_shard()

    def finish(self) -> Joined:
        """End the last shard and name all. Raises UserError for nothing to train on or too many rejects."""
        self._check_rejects()  # an earlier run, which read the last piece, may have allowed more
        counts = self.joined.counts
        if not counts.documents:
            named = {"held out": counts.heldout_documents, "empty": counts.empty, "unreadable": counts.rejected}
            why = ", ".join(f"{count:,} {what}" for what, count in named.items() if count)
            last = f". The last one: {self.joined.last_reject}" if counts.rejected else ""
            raise UserError(f"no document is left to train on: {why or 'the input holds no documents'}{last}")
        if any(writer.tokens for writer in self._writers):
            self._end_shard()
        self._sync_rejects()  # some may have come after the last shard
        self._rejects.close()
        self._check_whole()
        sha256 = {REJECTS: digest(self.store / REJECTS)}
        for old, new in self._files():
            if old.exists():  # not when a run was killed here
                old.rename(new)
            sha256[new.name] = self.joined.sha256[old.name]
        if not counts.heldout_documents:
            for file in self.store.glob(f"{HELDOUT}-*"):
                file.unlink()
        self.joined.sha256 = dict(sorted(sha256.items()))
        return self.joined

    def close(self) -> None:
        """Leave what is not whole for a later run."""
        self._rejects.close()
        for writer in self._writers:
            writer.abandon()

    def _prefix(self, kind: str, number: int) -> Path:
        return self.store / f"{kind}-{number:05}"

    def _files(self) -> Iterator[tuple[Path, Path]]:
        """Those of whole shards that will be in the store: what each is called at first, and at the end."""
        shards = self.joined.shards
        for kind in (TRAIN, HELDOUT) if self.joined.counts.heldout_documents else (TRAIN,):
            for number in range(shards):
                first = self._prefix(kind, number)
                final = first.with_name(f"{first.name}-of-{shards:05}" if shards > 1 else kind)
                for ending in (".bin", ".idx"):
                    yield pair_file(first, ending), pair_file(final, ending)

    def _check_whole(self) -> None:
        """Raises UserError when something of the whole shards is gone: their pieces are no longer there to redo it."""
        sizes = {self.store / REJECTS: self.joined.rejects}
        sizes |= {new if new.exists() else old: self.joined.sizes[old.name] for old, new in self._files()}
        for file, size in sizes.items():
            found = file.stat().st_size if file.exists() else None
            if found is None or found < size or (found > size and file.name != REJECTS):
                how = "is missing" if found is None else f"has {found:,} bytes and was written with {size:,}"
                raise UserError(
                    f"{file} {how}. What it was made of is no longer kept: remove {self.folder} and run the same "
                    "command again, which begins anew."
                )

    def _begin_shard(self) -> tuple[TokenStoreWriter, TokenStoreWriter]:
        number = self.joined.shards
        for kind in (TRAIN, HELDOUT):  # of a run that was killed
            for file in self.store.glob(f"{kind}-{number:05}.*"):
                file.unlink()
        train, heldout = (
            TokenStoreWriter(self._prefix(kind, number), self._dtype, self._sequences) for kind in (TRAIN, HELDOUT)
        )
        return train, heldout

    def _end_shard(self) -> None:
        for writer in self._writers:
            made = writer.close()
            self.joined.sha256 |= made
            self.joined.sizes |= {name: (self.store / name).stat().st_size for name in made}
        self._sync_rejects()
        self.joined.rejects = os.fstat(self._rejects.fileno()).st_size
        self.joined.shards += 1
        write_durable(self.folder / "joined.json", json.dumps(asdict(self.joined)))
        self._remove_pieces()

    def _sync_rejects(self) -> None:
        self._rejects.flush()
        os.fsync(self._rejects.fileno())

    def _remove_pieces(self) -> None:
        for number in range(self._removed, self.joined.pieces):
            piece_file(self.folder / "pieces", number).unlink(missing_ok=True)
        self._removed = self.joined.pieces

    def _check_rejects(self) -> None:
        counts = self.joined.counts
        # of the first few documents a share says little
        if counts.rejected > self._max_rejects * max(counts.read, 1000):
            raise UserError(
                f"{counts.rejected:,} of the first {counts.read:,} documents cannot be used, the last at "
                f"{self.joined.last_reject}. More than {self._max_rejects:.1%} is taken for a mistake in the input; "
                "--max-rejects allows more."
            )
