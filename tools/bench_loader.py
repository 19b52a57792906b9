"""How fast the loader gives packed batches, beside tokenising on the fly, and how it fares with a trillion tokens.

    PYTHONPATH=. python tools/bench_loader.py --tokenizer tokenizer.model --out docs/benchmarks/loader-cpu.json

Three things, all on one core. In turn, `--repeats` times: batches of packed rows from a token store of the
interpreter's own library that is in the page cache, for both packers and two row lengths; and the same documents from
text, encoded and packed as they come. Then a sparse store of 10^9 documents and 10^12 tokens: opening it, and starting
at step 0 and at step 10^6 of 1,024 rows. Rates are of CPU time, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from internevo.config.schema import SourceConfig
from internevo.data.loader import Loader
from internevo.data.mixing import Plan
from internevo.data.packing import Pieces, pack_best_fit
from internevo.data.source_stream import BLOCK, SourceCursor, SourceStream
from internevo.monitor.environment import code_version
from internevo.text.corpus import read_documents
from internevo.text.documents import Document
from internevo.tokens.prepare import prepare
from internevo.tokens.store import TokenStore
from internevo.tokens.tokenizer import Tokenizer, load_tokenizer
from tools.bench_prepare import write_corpus
from tools.sparse_store import SparseStore

STEP_TOKENS = 2**20
ROWS = 1024
"""Rows of a step of the large store."""


def loader_rate(store: Path, seq_len: int, packing: str, steps: int) -> float:
    """Real tokens per second of CPU time, everything included."""
    plan = Plan.constant([SourceConfig(str(store))], seq_len=seq_len, rows=STEP_TOKENS // seq_len, packing=packing)
    with Loader(plan, seed=0) as loader:
        loader.next()
        began, tokens = time.process_time(), 0
        for _ in range(steps):
            tokens += sum(loader.next().real_tokens)
        return tokens / (time.process_time() - began)


def on_the_fly_rate(corpus: Path, tokenizer: Tokenizer, seq_len: int) -> float:
    """The same of reading text, encoding and packing it."""
    began, tokens = time.process_time(), 0
    ids: list[list[int]] = []
    held = 0

    def pack() -> None:
        lengths = np.array([len(one) for one in ids])
        rows, starts = pack_best_fit(Pieces.whole(lengths), seq_len), np.cumsum(lengths) - lengths
        line = np.concatenate([np.array(one) for one in ids])
        for row in range(len(rows)):
            pieces = zip(starts[rows[row].document] + rows[row].start, rows[row].length, strict=True)
            np.concatenate([line[start : start + length] for start, length in pieces])
        ids.clear()

    texts: list[str] = []
    for one in read_documents(corpus):
        if isinstance(one, Document):
            texts.append(one.text)
        if len(texts) == 64:
            ids += tokenizer.encode_batch(texts)
            held = sum(map(len, ids))
            texts.clear()
            if held > STEP_TOKENS:
                tokens += held
                pack()
    return tokens / (time.process_time() - began)


def resident_mb() -> float:
    """Memory of this process, pages of files included."""
    line = next(
        line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith("VmRSS")
    )
    return int(line.split()[1]) / 1000


def documents_of(stream: SourceStream, block: int) -> np.ndarray:
    """The documents that a stream will look at in a block."""
    return stream._documents(*divmod(block, stream.blocks_per_epoch))


def large_store(folder: Path) -> dict[str, float]:
    """Opening and starting anywhere in 10^12 tokens."""
    sparse = SparseStore(folder, 10**9)
    before, began = resident_mb(), time.perf_counter()
    store = TokenStore(folder / "train")
    found = {"documents": len(store), "tokens": store.tokens, "open_s": time.perf_counter() - began}
    found["open_mb"] = resident_mb() - before
    found["process_mb_after_opening"] = resident_mb()
    cursors = {step: SourceCursor(block=step * ROWS * 4096 // (BLOCK * 1000)) for step in (0, 10**6)}
    for cursor in cursors.values():
        sparse.write(documents_of(SourceStream("web", store, "best_fit", 4096, 7), cursor.block))
    starts: dict[int, list[float]] = {step: [] for step in cursors}
    rows: dict[int, list[float]] = {step: [] for step in cursors}
    for _ in range(9):
        for step, cursor in cursors.items():  # in turn, so that a busy moment strikes both
            began = time.perf_counter()
            stream = SourceStream("web", store, "best_fit", 4096, 7, cursor)
            starts[step].append(time.perf_counter() - began)
            began = time.perf_counter()
            for _ in range(900):  # less than a block has
                stream.next_row()
            rows[step].append((time.perf_counter() - began) / 900)
    for step in cursors:
        found[f"start_at_step_{step}_ms"] = 1e3 * statistics.median(starts[step])
        found[f"first_start_at_step_{step}_ms"] = 1e3 * starts[step][0]
        found[f"row_at_step_{step}_ms"] = 1e3 * statistics.median(rows[step])
    found["process_mb_at_the_end"] = resident_mb()
    sparse.close()
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scale = large_store(folder)
        print(json.dumps(scale, indent=1))
        write_corpus(folder / "corpus.jsonl", options.megabytes)
        prepare([folder / "corpus.jsonl"], folder / "store", options.tokenizer)
        tokenizer = load_tokenizer(options.tokenizer)
        for _ in range(options.repeats):
            found = {"on the fly": on_the_fly_rate(folder / "corpus.jsonl", tokenizer, 4096)}
            for packing in ("best_fit", "concat"):
                for seq_len in (4096, 32768):
                    found[f"{packing} {seq_len}"] = loader_rate(folder / "store", seq_len, packing, options.steps)
            rounds.append(found)
            print(json.dumps(found), flush=True)
        shutil.rmtree(folder / "store")
    result = {
        "code": code_version(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "tokenizer": options.tokenizer.name,
        "tokens_per_cpu_second": {kind: statistics.median(one[kind] for one in rounds) for kind in rounds[0]},
        "least_over_on_the_fly": statistics.median(
            min(rate for kind, rate in one.items() if kind != "on the fly") / one["on the fly"] for one in rounds
        ),
        "rounds": rounds,
        "store_of_1e12_tokens": scale,
    }
    print(json.dumps({key: result[key] for key in ("tokens_per_cpu_second", "least_over_on_the_fly")}, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
