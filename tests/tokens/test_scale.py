"""A store of 10^12 tokens and 10^9 documents: opened, and read anywhere, in little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from internevo.data.source_stream import BLOCK, SourceCursor, SourceStream
from internevo.tokens.store import TokenStore
from tools.bench_loader import documents_of
from tools.sparse_store import LENGTH, SparseStore

DOCUMENTS = 10**9


def test_rows_of_any_epoch_hold_what_the_index_says(tmp_path: Path) -> None:
    sparse = SparseStore(tmp_path, DOCUMENTS)
    store = TokenStore(tmp_path / "train")
    assert (len(store), store.tokens) == (DOCUMENTS, DOCUMENTS * LENGTH)
    far = 10**6  # blocks of the first epochs are about a quarter of a million
    documents = documents_of(SourceStream("web", store, "best_fit", 4096, 7), far)
    sparse.write(documents)
    sparse.write_tokens(documents[:64])
    stream = SourceStream("web", store, "best_fit", 4096, 7, SourceCursor(block=far))
    assert far // stream.blocks_per_epoch == 4
    seen, written = [], set(documents[:64].tolist())
    while stream.cursor.block == far:
        row = stream.next_row()
        assert row is not None
        for first in row.first.tolist():
            document, rest = divmod(first, LENGTH)
            if rest == 0:
                seen.append(document)
            if rest == 0 and document in written:
                assert store.slice(first, first + 4).tolist() == SparseStore.tokens(document).tolist()
        if len(seen) >= BLOCK:
            break
    assert len(set(seen)) == BLOCK == len(seen)  # documents of one epoch, each once
    assert np.ptp(seen) > DOCUMENTS // 2  # from everywhere
    sparse.close()


PROGRAM = """
import sys
from internevo.data.source_stream import SourceCursor, SourceStream
from internevo.tokens.store import TokenStore
store = TokenStore(sys.argv[1])
for block in (0, 10**6):
    stream = SourceStream("web", store, "best_fit", 4096, 7, SourceCursor(block=block))
    stream.next_row()
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def test_memory_does_not_know_how_large_a_store_is(tmp_path: Path) -> None:
    sparse = SparseStore(tmp_path, DOCUMENTS)
    store = TokenStore(tmp_path / "train")
    for block in (0, 10**6):
        sparse.write(documents_of(SourceStream("web", store, "best_fit", 4096, 7), block))
    command = [sys.executable, "-c", PROGRAM, tmp_path / "train"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) / 1024 < 200  # MiB, pages of the index included
    sparse.close()
