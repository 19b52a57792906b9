"""What MinHash deduplication takes for many documents: time, memory and disk by stage.

    python -m tools.scale_dedup --out docs/benchmarks/dedup-scale-cpu.json

A million pages of `--words` random words each, a fifth of them versions of the page before in which one word of forty
is another, in shards of ten thousand. Memory is the largest resident size of any process of a stage; what it maps of
files counts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from internevo.refine.shards import COUNTS, KEPT, Document, ShardWriter, Tally
from tools.bench_dedup_stage import STAGES

VERSIONS = 5
"""Every one of so many pages is a version of the one before."""


def write(folder: Path, documents: int, shards: int, words: int) -> float:
    """Shards of pages; their size in MB of text."""
    chance, size = random.Random(0), 0
    vocabulary = [f"word{number}" for number in range(50_000)]
    page: list[str] = []
    for shard in range(shards):
        with ShardWriter(folder, shard) as out:
            for number in range(documents * shard // shards, documents * (shard + 1) // shards):
                if number % VERSIONS == 1:
                    page = list(page)
                    for _ in range(max(words // 40, 1)):
                        page[chance.randrange(words)] = chance.choice(vocabulary)
                else:
                    page = chance.choices(vocabulary, k=words)
                text = " ".join(page)
                size += len(text)
                out.write(Document(text, str(number)))
    return size / 1e6


def stage(number: int, processes: int, corpus: Path, folder: Path) -> dict[str, float]:
    """Seconds, the largest process in MiB, and the MB on the disk for the work afterwards."""
    began = time.monotonic()
    command = [sys.executable, "-m", "tools.bench_dedup_stage", "internevo"]
    child = os.posix_spawn(sys.executable, [*command, *map(str, (processes, corpus, folder, number))], dict(os.environ))
    _, status, used = os.wait4(child, 0)
    if status:
        sys.exit(f"stage {number} failed")
    files = [path for path in (folder / "work").rglob("*") if path.is_file()]
    return {
        "wall": time.monotonic() - began,
        "cpu": used.ru_utime + used.ru_stime,
        "peak MiB": used.ru_maxrss / 1024,
        "work MB": sum(path.stat().st_size for path in files) / 1e6,
    }


def main() -> None:
    """Write pages, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--words", type=int, default=80)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        corpus, folder = Path(name) / "corpus", Path(name) / "step"
        megabytes = write(corpus, options.documents, options.shards, options.words)
        print(f"{megabytes:.0f} MB", flush=True)
        stages = {}
        for number, title in enumerate(STAGES):
            stages[title] = stage(number, options.processes, corpus / KEPT, folder)
            print(title, json.dumps(stages[title]), flush=True)
        tally = Tally()
        for path in (folder / COUNTS).iterdir():
            tally.merge(Tally.load(path))
    result = {
        "documents": options.documents,
        "shards": options.shards,
        "megabytes": megabytes,
        "processes": options.processes,
        "stages": stages,
        "MB per second of processor": megabytes / sum(one["cpu"] for one in stages.values()),
        "kept": tally.kept.documents,
        "dropped": {reason: heap.documents for reason, heap in tally.dropped.items()},
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
