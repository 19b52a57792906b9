"""One stage of a deduplication that `bench_dedup.py` measures, in a process that imports nothing of another's.

python -m tools.bench_dedup_stage internevo PROCESSES CORPUS FOLDER STAGE
python -m tools.bench_dedup_stage datatrove-16-8 PROCESSES CORPUS FOLDER STAGE
"""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from typing import Any

NGRAMS = 5
STAGES = ("signatures", "pairs", "clusters", "sift")


def internevo_stage(processes: int, corpus: Path, folder: Path, number: int) -> None:
    """Its tasks in processes."""
    from internevo.refine.near_duplicates.dedup import Dedup
    from internevo.refine.step import Place

    stage = Dedup(keep="first").phases(Place(tuple(sorted(corpus.iterdir())), folder))[number]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        pool.map(stage.run, range(stage.tasks), chunksize=1)
        pool.close()
        pool.join()


def datatrove_stage(buckets: int, rows: int, processes: int, corpus: Path, folder: Path, number: int) -> None:
    """The same as datatrove's own examples have it."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from loguru import logger

    logger.remove()
    config = MinhashConfig(n_grams=NGRAMS, num_buckets=buckets, hashes_per_bucket=rows)
    signatures, pairs, clusters = (str(folder / name) for name in ("signatures", "buckets", "clusters"))
    tasks = [len(list(corpus.iterdir())), buckets, 1, len(list(corpus.iterdir()))][number]
    reader = JsonlReader(str(corpus), glob_pattern="*.jsonl.zst", doc_progress=False)
    pipeline: list[Any]
    if number == 0:
        pipeline = [reader, datatrove_signatures(signatures, config)]
    elif number == 1:
        pipeline = [MinhashDedupBuckets(signatures, pairs, config=config)]
    elif number == 2:
        pipeline = [MinhashDedupCluster(pairs, clusters, config=config, save_cluster_id=True)]
    else:
        kept, dropped = (JsonlWriter(str(folder / name), compression="zstd") for name in ("kept", "dropped"))
        pipeline = [reader, MinhashDedupFilter(clusters, exclusion_writer=dropped), kept]
    logs = str(folder / "logs" / str(number))
    LocalPipelineExecutor(
        pipeline, tasks=tasks, workers=min(processes, tasks), logging_dir=logs, start_method="fork"
    ).run()


def datatrove_signatures(folder: str, config: Any) -> Any:
    """datatrove's first stage, with a hash function that works."""
    from datatrove.pipeline.dedup import MinhashDedupSignature

    step = MinhashDedupSignature(folder, config)
    step._hash_func = xxhash64
    return step


def xxhash64(text: str) -> int:
    """What datatrove 0.10.1 means by it: its own hands xxhash a string, which that takes no more since 4.0."""
    import xxhash

    return xxhash.xxh64_intdigest(text.encode())


def main() -> None:
    """As the arguments say."""
    who, processes, corpus, folder, number = sys.argv[1:]
    name, *bands = who.split("-")
    common = (int(processes), Path(corpus), Path(folder), int(number))
    if name == "internevo":
        internevo_stage(*common)
    else:
        datatrove_stage(*map(int, bands), *common)


if __name__ == "__main__":
    main()
