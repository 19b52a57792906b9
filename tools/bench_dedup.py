"""How fast MinHash deduplication is beside datatrove's own, and what either finds.

    python -m tools.bench_dedup --out docs/benchmarks/dedup-cpu.json

The corpus is modules of the interpreter's own library, each with `--versions` in which words are replaced, of
similarities between 0.5 and 1, in shards of JSON lines. In turn, `--repeats` times, on the same number of processes:
our four stages; and datatrove's four with 5-grams, its English tokenizer, its reader and writer, with 128 hashes in 16
buckets of 8, and with 125 in 25 buckets of 5, like ours. Once, in one process: datasketch, as an oracle. Processor time
is that of all processes of a stage, their start and imports included.

What is found is compared with all pairs by their exact Jaccard similarity; datatrove's with exact similarities of *its*
shingles, which are of other words (numbers are all alike to it). A pair is found when both documents are in one
cluster. A false one is a document that is dropped, though none has a similarity of 0.7 to it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasketch import MinHash, MinHashLSH
from datatrove.pipeline.dedup.minhash import MinhashConfig

from internevo.monitor.environment import code_version
from internevo.refine.near_duplicates.dedup import DUPLICATE_OF
from internevo.refine.shards import DROPPED, KEPT, Document, ShardWriter, read_shard, shard_name
from tools.bench_dedup_stage import NGRAMS, STAGES, datatrove_signatures
from tools.near_duplicates import altered, exact_pairs, library, shingle_set, words

HASHES, THRESHOLD = 128, 0.7
BANDS = (25, 5)
"""Ours, and the hashes of each."""
OURS = "internevo"
CONTENDERS = {OURS: BANDS, "datatrove 16 x 8": (16, 8), "datatrove 25 x 5": BANDS}

Rounds = dict[str, list[dict[str, Any]]]
Found = dict[str, list[int]]


def corpus(megabytes: float, versions: int) -> list[str]:
    """Modules and their versions, shuffled, of about this size."""
    chance, texts, size = random.Random(0), [], 0
    modules = [text for _, text in library() if 200 <= len(text) <= 100_000 and len(words(text)) >= 20]
    chance.shuffle(modules)
    for text in modules:
        group = [text, *(altered(text, chance.uniform(0.5, 1), chance) for _ in range(versions))]
        texts += group
        size += sum(map(len, group))
        if size >= megabytes * 1e6:
            break
    chance.shuffle(texts)
    return texts


def write_shards(texts: Sequence[str], folder: Path, shards: int) -> tuple[Path, ...]:
    """A document's id is its number."""
    for shard in range(shards):
        with ShardWriter(folder, shard) as out:
            for number in range(shard, len(texts), shards):
                out.write(Document(texts[number], str(number)))
    return tuple(folder / KEPT / shard_name(shard) for shard in range(shards))


def measured(who: str, *arguments: object) -> dict[str, float]:
    """Seconds by the clock and of processors that a process and its children take for a stage."""
    command = [sys.executable, "-m", "tools.bench_dedup_stage", who, *map(str, arguments)]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"wall": wall, "cpu": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime}


def our_clusters(folder: Path, count: int) -> list[int]:
    """Of each document the one that is kept in its place."""
    found = list(range(count))
    for path in (folder / DROPPED).iterdir():
        for document in read_shard(path):
            found[int(document.id)] = int(document.metadata[DUPLICATE_OF])
    return found


def datatrove_clusters(folder: Path, shards: int, count: int) -> list[int]:
    """Of each document the lowest in its cluster."""
    found, lowest = list(range(count)), {}
    members: list[tuple[int, int]] = []
    for shard in range(shards):
        file = folder / "clusters" / f"{shard:06d}.clusters"
        if file.exists():
            members += [
                (row * shards + shard, cluster) for row, cluster in struct.iter_unpack("<II", file.read_bytes())
            ]
    for number, cluster in sorted(members):
        found[number] = lowest.setdefault(cluster, number)
    return found


def datatrove_shingles(texts: Sequence[str]) -> list[frozenset[int]]:
    """The sets that datatrove compares."""
    with tempfile.TemporaryDirectory() as folder:
        step = datatrove_signatures(folder, MinhashConfig(n_grams=NGRAMS))
        found = [frozenset(step.get_shingles(text).ravel().tolist()) for text in texts]
    return [one or frozenset([-1 - number]) for number, one in enumerate(found)]  # of no words: like no other


def datasketch_clusters(texts: Sequence[str]) -> tuple[list[int], dict[str, float]]:
    """The same by datasketch, with our bands, candidates compared by their signatures."""
    cpu, wall = time.process_time(), time.monotonic()
    index, found, signed = MinHashLSH(num_perm=HASHES, params=BANDS), list(range(len(texts))), []
    for number, text in enumerate(texts):
        one = MinHash(num_perm=HASHES)
        one.update_batch([" ".join(gram).encode() for gram in shingle_set(text, NGRAMS)])
        near = [other for other in index.query(one) if one.jaccard(signed[other]) >= THRESHOLD]
        roots = {found[other] for other in near} | {number}
        if len(roots) > 1:
            found = [min(roots) if root in roots else root for root in found]
        index.insert(number, one)
        signed.append(one)
    return found, {"cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}


def judged(found: Sequence[int], exact: dict[tuple[int, int], float]) -> dict[str, Any]:
    """What was found of all pairs with a similarity from 0.5 on, and what was dropped for nothing."""
    together = {pair: found[pair[0]] == found[pair[1]] for pair in exact}

    def recall(low: float, high: float) -> float | None:
        some = [together[pair] for pair, similarity in exact.items() if low <= similarity < high]
        return sum(some) / len(some) if some else None

    alike = {number for pair, similarity in exact.items() if similarity >= THRESHOLD for number in pair}
    dropped = [number for number, other in enumerate(found) if other != number]
    return {
        "pairs": {f">= {low}": sum(one >= low for one in exact.values()) for low in (0.7, 0.8)},
        "recall": {f">= {low}": recall(low, 2) for low in (0.7, 0.8)},
        "found by similarity": {f"{low / 20:.2f}": recall(low / 20, (low + 1) / 20) for low in range(10, 20)},
        "dropped": len(dropped),
        "false": sum(number not in alike for number in dropped) / max(len(dropped), 1),
    }


def one_round(*arguments: object) -> dict[str, Any]:
    """Each stage, and all together."""
    times = {stage: measured(*arguments, number) for number, stage in enumerate(STAGES)}
    return {**times, "all": {key: sum(one[key] for one in times.values()) for key in ("wall", "cpu")}}


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """By stage and kind of time."""
    return {
        stage: {key: statistics.median(one[stage][key] for one in rounds) for key in ("wall", "cpu")}
        for stage in (*STAGES, "all")
    }


def contend(shards: tuple[Path, ...], folder: Path, count: int, repeats: int, processes: int) -> tuple[Rounds, Found]:
    """The times of all rounds, and what was found in the last, of each contender."""
    rounds: Rounds = {name: [] for name in CONTENDERS}
    found: Found = {}
    corpus_folder = shards[0].parent
    for repeat in range(repeats):
        for who, (buckets, rows) in CONTENDERS.items():
            out = folder / f"{who}-{repeat}"
            if who == OURS:
                times = one_round("internevo", processes, corpus_folder, out)
                found[who] = our_clusters(out, count)
            else:
                times = one_round(f"datatrove-{buckets}-{rows}", processes, corpus_folder, out)
                found[who] = datatrove_clusters(out, len(shards), count)
                if len(set(found[who])) == count:
                    raise SystemExit(f"{who} found no duplicates at all: its log, above, says why")
            rounds[who].append(times)
            print(who, json.dumps(times["all"]), flush=True)
    return rounds, found


def ratios(rounds: Rounds) -> dict[str, Any]:
    """How many times our time each of the others takes: the median of the rounds' ratios."""
    return {
        who: {
            key: statistics.median(
                one["all"][key] / ours["all"][key] for one, ours in zip(some, rounds[OURS], strict=True)
            )
            for key in ("cpu", "wall")
        }
        for who, some in rounds.items()
        if who != OURS
    }


def main() -> None:
    """Measure in turn, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=24)
    parser.add_argument("--versions", type=int, default=2)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    texts = corpus(options.megabytes, options.versions)
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(texts):,} documents, {size:.1f} MB", flush=True)
    with tempfile.TemporaryDirectory() as name:
        shards = write_shards(texts, Path(name) / "corpus", options.shards)
        rounds, found = contend(shards, Path(name), len(texts), options.repeats, options.processes)
    found["datasketch"], oracle = datasketch_clusters(texts)
    exact = exact_pairs([shingle_set(text, NGRAMS) for text in texts], 0.5)
    theirs = exact_pairs(datatrove_shingles(texts), 0.5)
    result = {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "code": code_version(),
        "python": sys.version.split()[0],
        **{library: version(library) for library in ("datatrove", "datasketch", "rensa", "numpy", "spacy")},
        "documents": len(texts),
        "megabytes": size,
        "shards": options.shards,
        "processes": options.processes,
        "median seconds": {who: medians(some) for who, some in rounds.items()} | {"datasketch": {"all": oracle}},
        "times our time": ratios(rounds),
        "quality": {who: judged(one, theirs if "datatrove" in who else exact) for who, one in found.items()},
        "rounds": rounds,
    }
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
