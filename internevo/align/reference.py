"""What a reference model thinks of the answers of a store of pairs: computed once, and kept beside the store.

For `train` and `heldout` of a prepared folder, `reference/MODEL-PRECISION/NAME.npy` holds fp32 `[pairs, 2]`: the
log-probability of the chosen and the rejected side's trained tokens, in nats, in the order of the store. `MODEL` is a
hash of the model's shape and weights, the same whether it is a run, an import or a Hugging Face folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from internevo.config.schema import BLOCK, Precision, StageConfig, TrainConfig
from internevo.data.loader import Extras, materialise
from internevo.data.packing import Pieces, pack_best_fit
from internevo.data.source_stream import Row, row_of
from internevo.files.durable import write_durable
from internevo.files.errors import UserError
from internevo.hf.weights import load_model
from internevo.model.transformer import Transformer
from internevo.parallel.block_settings import compute_dtype, stage_kernel
from internevo.parallel.layout import ONE_PROCESS
from internevo.parallel.world import World
from internevo.tokens.store import TokenStore
from internevo.train.build import choose_device
from internevo.train.micro_batch import Staged
from internevo.train.recorder import Recorder
from internevo.train.sequential import Sequential
from internevo.train.stored_model import StoredModel, open_model

_FOLDER = "reference"
_NOT_THE_MODEL = ("preset", "init_std")
"""Keys of a shape that say nothing of what the model computes."""
_ROW = 2048
"""Tokens of a row, where the longest pair is shorter."""


def model_name(model: StoredModel) -> str:
    """A hash of a model's shape and weights, 12 hex digits. Reads all weights, one at a time."""
    found = hashlib.blake2b(digest_size=6)
    shape = {key: value for key, value in asdict(model.config).items() if key not in _NOT_THE_MODEL}
    found.update(json.dumps(shape, sort_keys=True).encode())
    with torch.device("meta"):
        names = sorted(name for name, _ in Transformer(model.config).named_parameters())
    for name in names:
        weight = model.weights.read(name)
        found.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        found.update(weight.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def reference_file(store: TokenStore, model: str, precision: str) -> Path:
    """Where the log-probabilities of a store's pairs are kept."""
    return store.path.parent / _FOLDER / f"{model}-{precision}" / f"{store.path.name}.npy"


@dataclass(frozen=True)
class Made:
    """What `make_references` did."""

    model: str
    written: tuple[Path, ...]
    kept: tuple[Path, ...]
    """Files that were there already."""


def make_references(
    path: str,
    model: Path | str,
    *,
    precision: Precision = "bf16",
    device: str = "auto",
    rows: int = 1,
    progress: Callable[[int, int, int], None] = lambda done, total, pairs: None,
) -> Made:
    """Compute what the model thinks of all pairs of the prepared folder `path`, where it is not there already.

    `precision` is what the model computes in: it has to be the stage's `train.precision`. `rows` run at a time.
    `progress` is called with bytes of the store done, all its bytes, and pairs done. Raises UserError for a store that
    holds no pairs, and a model that does not fit it.
    """
    opened = [TokenStore.open_source(path), TokenStore.open_heldout(path)]
    stores = [store for store in opened if store is not None]
    check_pairs(path, stores[0])
    stored = open_model(model)
    pieces = stores[0].manifest.get("vocab_size")
    if isinstance(pieces, int) and pieces > stored.config.vocab:
        raise UserError(f"{path} was made with {pieces:,} pieces, but {stored.name} has {stored.config.vocab:,}")
    name = model_name(stored)
    files = {reference_file(store, name, precision): store for store in stores}
    todo = {file: store for file, store in files.items() if not file.exists()}
    total = sum(store.tokens * store.dtype.itemsize for store in todo.values())
    done = pairs = 0
    for file, store in todo.items():
        values = np.full((len(store), 2), np.nan, np.float32)
        for documents, sums in _log_probs(stored, store, precision, choose_device(device), rows):
            values[documents] = sums
            done += int(store.lengths(documents).sum()) * store.dtype.itemsize
            pairs += len(documents)
            progress(done, total, pairs)
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).any(1).sum())
            raise UserError(f"{stored.name} gives {bad:,} pairs of {store.path} a log-probability that is not finite")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_durable(file, lambda out, values=values: np.save(out, values))  # type: ignore[misc]
    return Made(name, tuple(todo), tuple(file for file in files if file not in todo))


def check_pairs(path: str, store: TokenStore) -> None:
    """Raise UserError for a store that does not hold pairs."""
    if not store.paired:
        raise UserError(f"{path} holds no pairs (chosen, rejected); `internevo data pairs` makes such a store")


def _log_probs(
    stored: StoredModel, store: TokenStore, precision: Precision, device: torch.device, rows: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs, and fp32 `[pairs, 2]` of them, until all are done."""
    stage: StageConfig | None = None
    for first in range(0, len(store), BLOCK):
        documents = np.arange(first, min(first + BLOCK, len(store)))
        starts, lengths = store.spans(documents)
        if stage is None:
            longest = max(_ROW, int(store.lengths(np.arange(len(store))).max()))
            stage = _stage(stored, longest, precision, rows)
            runner = _runner(stored, stage, device)
        packed = pack_best_fit(Pieces.whole(lengths), stage.train.seq_len)
        for begin in range(0, len(packed), rows):
            together = [packed[number] for number in range(begin, min(begin + rows, len(packed)))]
            found = [row_of(store, one, documents, starts, lengths) for one in together]
            yield _sums(runner, store, found, stage)


def _stage(stored: StoredModel, seq_len: int, precision: Precision, rows: int) -> StageConfig:
    train = TrainConfig(seq_len=seq_len, batch_tokens=seq_len * rows, micro_batch=rows, precision=precision)
    return StageConfig(model=stored.config, train=train)


def _runner(stored: StoredModel, stage: StageConfig, device: torch.device) -> Sequential:
    model = load_model(stored.weights, stored.config, device, compute_dtype(stage))
    return Sequential(stage, World.alone(device).mesh(ONE_PROCESS), Recorder(), model)


@torch.no_grad()
def _sums(runner: Sequential, store: TokenStore, rows: list[Row], stage: StageConfig) -> tuple[np.ndarray, np.ndarray]:
    batch = materialise([("pairs", store, row) for row in rows], stage.train.seq_len)
    device = runner.mesh.device
    staged = Staged.of(batch, len(rows), device, kernel=stage_kernel(stage, device))
    ((losses, _),) = runner.losses(staged)
    numbers, sums = [], []
    for row, found in zip(rows, losses.double().cpu(), strict=True):
        sides = found[: int(row.length.sum())].split(row.length.tolist())
        numbers.append(row.document[::2])
        sums.append(-torch.stack([side.sum() for side in sides]).view(-1, 2))
    return np.concatenate(numbers), torch.cat(sums).float().numpy()


@dataclass(frozen=True)
class References:
    """The log-probabilities of a stage's sources under its reference model."""

    model: str
    values: Mapping[Path, np.ndarray]
    """fp32 `[pairs, 2]` by the path of the store, mapped into memory."""

    @classmethod
    def of(cls, stage: StageConfig, world: World) -> References:
        """Those of a stage, on all ranks together. Raises UserError when the model's are not there."""
        named = stage.train.objective.options.get("reference")
        path = stage.train.init_from
        model = str(named) if named is not None else world.on_main(lambda: model_name(open_model(Path(str(path)))))
        values: dict[Path, np.ndarray] = {}
        for source in stage.data.sources:
            for store in (
                TokenStore.open_source(source.path, stage.data.cache),
                TokenStore.open_heldout(source.path, stage.data.cache),
            ):
                if store is not None:
                    check_pairs(source.path, store)
                    values[store.path] = _read(store, model, stage, source.path)
        return cls(model, values)

    @property
    def extras(self) -> Extras:
        """As a batch has them: `side`, counted from 1 over the sides of a row, and at each side's first place its
        `reference`."""
        return Extras({"side": np.int64, "reference": np.float32}, self._of_row)

    def _of_row(self, store: TokenStore, row: Row) -> dict[str, np.ndarray]:
        ends = np.cumsum(row.length)
        reference = np.zeros(ends[-1], np.float32)
        reference[ends - row.length] = self.values[store.path][row.document[::2]].ravel()
        return {"side": np.repeat(np.arange(1, len(ends) + 1), row.length), "reference": reference}


def _read(store: TokenStore, model: str, stage: StageConfig, source: str) -> np.ndarray:
    file = reference_file(store, model, stage.train.precision)
    if not file.is_file():
        others = sorted(one.parent.name for one in file.parent.parent.glob(f"*/{file.name}"))
        there = f"; there are {', '.join(others)}, of another model or precision" if others else ""
        raise UserError(
            f"{file} is missing{there}. `internevo data reference {source} --model {stage.train.init_from} "
            f"--precision {stage.train.precision}` makes it."
        )
    try:
        values = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{file} is damaged: {error}. Remove it and make it again.") from None
    if values.shape != (len(store), 2) or values.dtype != np.float32:
        raise UserError(
            f"{file} holds {values.dtype} {list(values.shape)}, but {store.path} has {len(store):,} pairs. Remove it "
            "and make it again."
        )
    return values
