"""What larger blocks (`data.block`) save in padding, and what they cost where a run starts.

    PYTHONPATH=. python tools/bench_blocks.py --out docs/benchmarks/blocks-cpu.json

Time: in a sparse store of 10^9 documents and 10^12 tokens, `--jumps` times with blocks of 1,024 and more rarely with
larger ones: a stream is opened in a random block of one of four epochs, at a random row of it, and gives that row. Each
jump is made three times and the last one counts: a page of the index lies after nearly every document of a block, and
what is measured is our work and not the system's fetching of them. On one core.

Padding: of blocks of documents whose lengths are log-normal (deviation 1 of the logarithm), packed by best fit; what
concatenation pads differs by the rounding of each block's last row only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from internevo.data.packing import Pieces, pack_best_fit
from internevo.data.source_stream import SourceCursor, SourceStream, Taken
from internevo.monitor.environment import code_version
from internevo.tokens.store import TokenStore
from tools.bench_loader import documents_of
from tools.sparse_store import LENGTH, SparseStore

DOCUMENTS, SEQ_LEN = 10**9, 4096
BLOCKS = (512, 1024, 4096, 16_384, 65_536)
SEQ_LENS = (4096, 32_768, 131_072, 1_048_576)
MEANS = (300, 800)
PADDED_TOKENS = 30_000_000
"""Tokens that are packed for each figure, at least."""


def jumps(packing: str, block: int, count: int) -> dict[str, float]:
    """Milliseconds to any row of any epoch."""
    draw = random.Random(block)
    with tempfile.TemporaryDirectory() as name:
        sparse = SparseStore(Path(name), DOCUMENTS)
        store = TokenStore(Path(name) / "train")
        some = SourceStream("web", store, packing, SEQ_LEN, 7, block_size=block)
        cursors = []
        for _ in range(count):
            number = draw.randrange(4 * some.blocks_per_epoch)
            sparse.write(documents_of(some, number))
            row = draw.randrange(block * LENGTH // SEQ_LEN)
            cursors.append(SourceCursor(number, (Taken(packing, SEQ_LEN, row),)))
        took = []
        for cursor in cursors:
            for _ in range(3):
                began = time.perf_counter()
                row_there = SourceStream("web", store, packing, SEQ_LEN, 7, cursor, block_size=block).next_row()
                last = 1e3 * (time.perf_counter() - began)
                assert row_there is not None
            took.append(last)
        sparse.close()
    return {"jumps": count, "median": statistics.median(took), "least": min(took), "most": max(took)}


def padding(seq_len: int, mean: int, block: int) -> float:
    """The share of places that hold no token."""
    rng = np.random.default_rng(0)
    tokens = places = 0
    while tokens < PADDED_TOKENS:
        lengths = np.maximum(1, rng.lognormal(math.log(mean) - 0.5, 1, block)).astype(np.int64)
        tokens += int(lengths.sum())
        places += len(pack_best_fit(Pieces.whole(lengths), seq_len)) * seq_len
    return 1 - tokens / places


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jumps", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    result: dict[str, Any] = {"code": code_version(), "python": platform.python_version(), "numpy": np.__version__}
    result["ms_to_any_row"] = {
        packing: {block: jumps(packing, block, max(3, options.jumps * 1024 // block)) for block in BLOCKS}
        for packing in ("best_fit", "concat")
    }
    print(json.dumps(result, indent=1), flush=True)
    result["padding"] = [
        {"seq_len": seq_len, "mean_tokens": mean, **{str(block): padding(seq_len, mean, block) for block in BLOCKS}}
        for seq_len in SEQ_LENS
        for mean in MEANS
    ]
    for line in result["padding"]:
        print({key: value if isinstance(value, int) else f"{value:.3%}" for key, value in line.items()})
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
