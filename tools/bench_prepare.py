"""How fast `internevo data prepare` is beside its own tokenizer with nothing around it.

    python tools/bench_prepare.py --tokenizer tokenizer_internlm2.model --out docs/benchmarks/prepare-cpu.json

The corpus is the text of the interpreter's own library, as JSON lines. In turn, `--repeats` times: the bare encoder, in
as many processes as there are workers, each encoding its share of texts that are in memory already; and `data prepare`,
reading, hashing (a hundredth is held out), writing, joining and checksums included. The start of processes is left out
of both: the encoder's begin together behind a barrier; `prepare` is timed over the pieces behind the first ones.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

from internevo.monitor.environment import code_version
from internevo.tokens.prepare import prepare
from internevo.tokens.tokenizer import load_tokenizer


def write_corpus(path: Path, megabytes: float) -> list[str]:
    """The interpreter's library as JSON lines, repeated with the file's number in front until it is large enough."""
    texts: list[str] = []
    size = 0
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    library = [text for file in files if "site-packages" not in file.parts and (text := readable(file))]
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            for text in library:
                texts.append(f"# {len(texts)}\n{text}")
                size += file.write(json.dumps({"text": texts[-1]}, ensure_ascii=False) + "\n")
    return texts


def readable(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def encode_share(tokenizer: Path, texts: list[str], barrier: Barrier, results: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    """One process of the bare encoder: when it began and ended, and how many tokens it made."""
    loaded = load_tokenizer(tokenizer)
    loaded.encode_batch(texts[:20])
    barrier.wait()
    began, tokens = time.monotonic(), 0
    for start in range(0, len(texts), 64):
        tokens += sum(map(len, loaded.encode_batch(texts[start : start + 64])))
    results.put((began, time.monotonic(), tokens))


def bare(tokenizer: Path, texts: list[str], workers: int) -> float:
    """Tokens a second of all processes together."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(target=encode_share, args=(tokenizer, texts[number::workers], barrier, results))
        for number in range(workers)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    return sum(tokens for *_, tokens in found) / (max(end for _, end, _ in found) - min(begin for begin, *_ in found))


def whole(tokenizer: Path, corpus: Path, folder: Path, workers: int) -> dict[str, float]:
    """Tokens a second of `prepare` once all its workers are at work, and all in all."""
    marks: list[tuple[float, int]] = []
    began = time.monotonic()
    manifest = prepare(
        [corpus],
        folder,
        tokenizer,
        held_out=0.01,
        workers=workers,
        piece_bytes=4 * 2**20,
        progress=lambda done: marks.append((time.monotonic(), done.tokens_now)),
    )
    ended = time.monotonic()
    shutil.rmtree(folder)
    tokens = manifest.tokens + manifest.heldout_tokens
    first, done = marks[workers - 1]
    return {"steady": (tokens - done) / (ended - first), "all": tokens / (ended - began), "tokens": tokens}


def main() -> None:
    """Measure in turn, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=80)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        texts = write_corpus(corpus, options.megabytes)
        for _ in range(options.repeats):
            encoder = bare(options.tokenizer, texts, options.workers)
            ours = whole(options.tokenizer, corpus, Path(folder) / "store", options.workers)
            rounds.append({"encoder": encoder, **ours, "ratio": ours["steady"] / encoder})
            print(json.dumps(rounds[-1]), flush=True)
    result = {
        "code": code_version(),
        "python": sys.version.split()[0],
        "tokenizer": options.tokenizer.name,
        "workers": options.workers,
        "megabytes": options.megabytes,
        "rounds": rounds,
        "median ratio": statistics.median(one["ratio"] for one in rounds),
    }
    print(f"prepare reaches {result['median ratio']:.3f} of the bare encoder")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
