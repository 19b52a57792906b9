"""Random combinations of model, layout and settings, each compared with the float64 trainer of `reference.py`.

A number gives a combination. It goes through the real check of a configuration: what is refused there needs a message
and no training; all else must train as the reference does.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from internevo.checkpoint.tensors import read_tensors, write_tensors
from internevo.config.load import load_config
from internevo.config.schema import ParallelConfig, StageConfig
from internevo.data.loader import Loader
from internevo.data.mixing import Plan
from internevo.files.errors import UserError
from internevo.optim.schedule import learning_rate
from internevo.parallel.world import World
from internevo.tokens.store import TokenStore
from internevo.tokens.store_writer import TokenStoreWriter
from internevo.train.build import check_engine, make_engine
from internevo.train.engine import TorchEngine
from internevo.train.step import train_step
from tests.parallel import reference
from tests.parallel.jobs import ALONE, Trained, keep_gradients, whole, write_documents
from tests.parallel.ranks import HangError, RankPool

STEPS = 3
IDS = 250
"""Token ids in the documents; every vocabulary is larger."""
BEFORE = 6
"""Updates that a continued optimizer's moments say they have seen."""

ALLOWED = {
    "fp32": {
        "loss": 5e-6,
        "norm": 5e-5,
        "gradients": 1e-4,
        "exp_avg": 1e-3,
        "exp_avg_sq": 1e-3,
        "momentum_buffer": 1e-3,
        "weights": 1e-2,
    },
    "bf16": {
        "loss": 5e-3,
        "norm": 2e-2,
        "gradients": 0.15,
        "exp_avg": 0.15,
        "exp_avg_sq": 0.15,
        "momentum_buffer": 0.15,
        "weights": 0.5,
    },
}
"""The largest relative error, by precision. Of the weights it is that of what the steps changed: Adam's first updates
are nearly signs, which turn where a gradient is nothing but rounding."""

AS_BAD = 3.0
"""In bf16 more is allowed where one rank in bf16 is nearly as far from the reference: so many times its error."""
NEGLIGIBLE = 1e-4
"""Tensors whose norm is a smaller share of the largest one's are mostly rounding: errors are relative to this share."""


@dataclass(frozen=True)
class Combination:
    """A configuration, and how it is run."""

    world: int
    tree: dict[str, Any]
    continued: bool
    """Whether it starts from a checkpoint whose norms, biases and moments are away from their initial values."""


def combination(number: int) -> Combination:
    """The combination of this number. Most sizes fit each other; some do not, and must be refused."""
    draw = random.Random(number)
    world = draw.choices([1, 2, 4, 8], [2, 10, 9, 1])[0]
    parallel, data = _parallel(draw, world)
    model = _model(draw, parallel)
    optimizer = _optimizer(draw, model)
    train = _train(draw, data, parallel)
    if train["precision"] == "bf16" and optimizer["name"] in ("adamw", "muon"):
        optimizer["state"] = draw.choice(["fp32", "split"])
    schedule = {
        "name": draw.choice(["constant", "linear", "cosine", "wsd"]),
        "warmup": draw.choice([0, 0, 1, 2]),
        "final": draw.choice([0.0, 0.1, 0.5]),
        "decay": draw.choice([0.1, 0.5, 1.0]),
    }
    tree = {"model": model, "optimizer": optimizer, "schedule": schedule, "train": train, "parallel": parallel}
    tree["data"] = {"packing": draw.choice(["best_fit", "concat"]), "block": draw.choice([64, 4096])}
    tree["data"]["sources"] = [{"path": name} for name in draw.choice([("web",), ("masked",), ("web", "masked")])]
    continued = draw.random() < 0.6
    train["average"] = draw.choice(["token", "message", "conversation"])
    return Combination(world, tree, continued)


def write_stores(folder: Path) -> Path:
    """The sources that a combination may name: documents of very different lengths, some with labels masked."""
    (folder / "masked").mkdir(parents=True)
    write_documents(folder / "web", IDS)
    store = TokenStore(folder / "web")
    with TokenStoreWriter(folder / "masked" / "train", np.int16) as writer:
        for number in range(len(store)):
            ids = store.read(number).astype(np.int16)
            writer.append(np.where(ids % 3 == 0, -ids, ids))
    (folder / "masked" / "manifest.json").write_text('{"masked": true}')
    return folder


def _rarely(draw: random.Random) -> bool:
    """Whether to draw without looking at what fits."""
    return draw.random() < 0.06


def _parallel(draw: random.Random, world: int) -> tuple[dict[str, Any], int]:
    """A layout of `world` ranks, and how many of them have rows of their own."""
    sizes = {"data": 1, "tensor": 1, "context": 1, "pipeline": 1}
    left = world
    while left > 1:
        sizes[draw.choice(list(sizes))] *= 2
        left //= 2
    same_weights = sizes["data"] * sizes["context"]
    schedule = draw.choice(["1f1b", "interleaved", "zbv"])
    split = schedule == "zbv" and sizes["pipeline"] > 1
    zero: dict[str, Any] = {"stage": draw.randrange(3 if split and not _rarely(draw) else 4)}
    if draw.random() < 0.3:
        zero["shard"] = draw.choice([n for n in (1, 2, 4, 8) if same_weights % n == 0])
    if sizes["data"] == world and draw.random() < 0.2:
        zero = {"stage": draw.choice([2, 3]), "engine": "deepspeed"}
    elif world > 1 and draw.random() < 0.1:
        zero["offload"] = {"optimizer": "cpu"}
    parallel = {
        "tensor": sizes["tensor"],
        "sequence": draw.random() < 0.6,
        "pipeline": {"size": sizes["pipeline"], "schedule": schedule},
        "context": {
            "size": sizes["context"],
            "ulysses": draw.choice(["auto", *(n for n in (1, 2, 4, 8) if sizes["context"] % n == 0)]),
        },
        "zero": zero,
    }
    return parallel, sizes["data"]


def _model(draw: random.Random, parallel: Mapping[str, Any]) -> dict[str, Any]:
    tensor, pipeline = parallel["tensor"], parallel["pipeline"]
    ulysses = parallel["context"]["ulysses"]

    def fitting(sizes: list[int], by: int = tensor) -> int:
        """One of the sizes; nearly always one that `by` divides."""
        return draw.choice(sizes if _rarely(draw) else [size for size in sizes if size % by == 0] or sizes)

    heads = fitting([2, 4, 4, 6, 8, 8], tensor * (1 if ulysses == "auto" else ulysses))
    # kv heads that ranks can share, or have one of each several times
    shared = [n for n in range(1, heads + 1) if heads % n == 0 and (n % tensor == 0 or tensor % n == 0)]
    model: dict[str, Any] = {
        "attention": {
            "heads": heads,
            "kv_heads": draw.choice(shared),
        },
        "hidden": heads * draw.choice([6, 8, 8, 10]),
        "layers": draw.choice([1, 2, 2, 3]),
        "feed_forward": {"width": draw.choice([32, 64, 80, 96, 33, 50, 52])},
        "vocab": draw.choice([256, 264, 288, 257, 258, 260]),
        "norm_eps": draw.choice([1e-5, 1e-6, 1e-3]),
        "rope": {"base": draw.choice([100.0, 10_000.0, 1_000_000.0]), "scaling": _scaling(draw)},
        "tied": draw.random() < 0.25,
        "init_std": draw.choice([0.02, 0.1]),
    }
    model["attention"] |= {"bias": draw.random() < 0.4, "qk_norm": draw.random() < 0.35}
    if draw.random() < 0.35:
        model["attention"]["head_dim"] = draw.choice([4, 8, 12, 16])
    if draw.random() < 0.2:
        model["width_base"] = draw.choice([16, 64])
        model["tied"] = _rarely(draw)
    if pipeline["size"] > 1:
        stages = pipeline["size"] * (1 if pipeline["schedule"] == "1f1b" else 2)
        model["layers"] = draw.choice([stages, stages, stages + 1, 2 * stages]) - _rarely(draw)
    return model


def _scaling(draw: random.Random) -> dict[str, Any]:
    kind = draw.choice(["none", "none", "linear", "llama3", "yarn"])
    scaling = {"kind": kind, "factor": draw.choice([2.0, 4.0]) if kind != "none" else 1.0}
    if kind in ("llama3", "yarn"):
        scaling["original_seq_len"] = draw.choice([16, 32])
    if kind == "yarn" and draw.random() < 0.3:
        scaling |= {"temperature": 1.2, "beta_fast": 8.0, "beta_slow": 0.5}
    return scaling


def _optimizer(draw: random.Random, model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": "muon" if draw.random() < 0.2 else "adamw",
        "lr": draw.choice([1e-3, 5e-3]),
        "betas": draw.choice([[0.9, 0.95], [0.8, 0.99]]),
        "momentum": draw.choice([0.95, 0.8]),
        "eps": draw.choice([1e-8, 1e-5]),
        "weight_decay": draw.choice([0.0, 0.1, 1.0]),
        "decay_embeddings": draw.random() < 0.6,
        "clip": draw.choice([0.0, 0.3, 1.0]),
    }


def _train(draw: random.Random, data: int, parallel: Mapping[str, Any]) -> dict[str, Any]:
    pipeline, schedule = parallel["pipeline"]["size"], parallel["pipeline"]["schedule"]
    seq_len, micro_batch = draw.choice([32, 48, 64]), draw.choice([1, 1, 2])
    # micro-batches on each data rank: a pipeline wants at least one for each of its ranks
    fitting = [n for n in range(pipeline, 3 * pipeline + 3) if schedule != "interleaved" or n % pipeline == 0]
    counts = sorted(draw.choices(range(1, 9) if _rarely(draw) else fitting[:5], k=3))
    steps = [count * data * micro_batch * seq_len for count in counts]
    split = schedule == "zbv" and pipeline > 1
    recompute = ["none"] if split and not _rarely(draw) else ["none", "none", "selective", "full", "budget"]
    whole = parallel["tensor"] * pipeline == 1 or _rarely(draw)
    train: dict[str, Any] = {
        "seq_len": seq_len,
        "batch_tokens": steps[-1] + draw.choice([0, 0, 5]),
        "micro_batch": micro_batch,
        "precision": draw.choice(["fp32", "fp32", "fp32", "bf16"]),
        "recompute": draw.choice(recompute),
        "loss": draw.choice(["auto", "chunked", "torch", "plain"]) if whole else "auto",
        "steps": STEPS + draw.choice([0, 1, 7]),
        "seed": draw.randrange(1000),
        "device": "cpu",
    }
    if train["recompute"] == "budget":
        train["activation_gib"] = draw.choice([1e-4, 1e-3])
    if draw.random() < 0.35:
        train["batch_ramp"] = [{"until": draw.choice([1, steps[0]]), "batch_tokens": steps[0]}]
        if draw.random() < 0.5:
            train["batch_ramp"].append({"until": steps[0] + 1, "batch_tokens": steps[1]})
    return train


@dataclass
class Outcome:
    """What became of a combination."""

    kind: str
    """`exact`; `refused` at load; `wrong`: other numbers; `failed`: an error; `hang`."""
    why: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    """The worst relative error of each thing compared ..."""
    where: dict[str, str] = field(default_factory=dict)
    """... and whose it is."""


def try_combination(one: Combination, stores: Path, folder: Path, ranks: Callable[[int], RankPool]) -> Outcome:
    """Check and train one combination on what `write_stores` wrote into `stores`. `folder`, new, is for its files."""
    try:
        stage = load(write_config(one, stores, folder), one.world)
    except UserError as error:
        return Outcome("refused", str(error).replace(f"{folder}/", ""))
    expected, digests, start = expectation(stage, one, folder)
    saved = folder / "start" if one.continued else None
    try:
        results = ranks(one.world).run(go, stage, saved)
    except HangError as error:
        return Outcome("hang", str(error))
    except AssertionError as error:
        return Outcome("failed", str(error))
    errors = errors_of(results[0], expected, start)
    allowed = ALLOWED[stage.train.precision]
    if stage.train.precision == "bf16":
        rounding = errors_of(go(ALONE, alone(stage), saved), expected, start)
        allowed = {what: max(most, AS_BAD * rounding.get(what, ("", 0.0))[1]) for what, most in allowed.items()}
    why = differences(results, digests, start, one) or [
        f"{what} {name}: off by {error:.2g}" for what, (name, error) in errors.items() if not error <= allowed[what]
    ]
    outcome = Outcome("wrong" if why else "exact", "; ".join(why))
    outcome.where = {what: name for what, (name, _) in errors.items()}
    outcome.errors = {what: error for what, (_, error) in errors.items()}
    return outcome


def write_config(one: Combination, stores: Path, folder: Path) -> Path:
    """The file of a combination that trains on what `write_stores` wrote into `stores`, in a new `folder`."""
    folder.mkdir(parents=True)
    sources = [{**source, "path": str(stores / source["path"])} for source in one.tree["data"]["sources"]]
    tree = {"name": "sample", **one.tree, "data": {**one.tree["data"], "sources": sources}}
    (path := folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return path


def load(path: Path, world: int) -> StageConfig:
    """The stage of a configuration, checked as `internevo train` does. Raises UserError."""
    (stage,) = load_config(path).stages
    check_engine(stage, world, torch.device("cpu"))
    return stage


def go(world: World, stage: StageConfig, start: Path | None) -> Trained:
    """Train a few steps, from the stage's seed or from the checkpoint `start`.

    The result's weights are the whole state before the first step, named as in a checkpoint, then that after the last
    under names that begin with `after/`.
    """
    engine = make_engine(stage, world)
    if start is not None:
        engine.load(lambda tensors: read_tensors(start, tensors, world.control))
    result = Trained(weights=whole(engine.state()))
    if isinstance(engine, TorchEngine):
        keep_gradients(engine, result)
    with Loader(Plan.of(stage), seed=stage.train.seed, part=engine.part) as loader:
        for step in range(STEPS):
            batch = loader.next()
            done = train_step(engine, engine.stage_batch(batch), learning_rate([stage], 0, step))
            result.losses.append(done.loss)
            result.norms.append(done.grad_norm)
            result.digests.append(engine.digest(batch))
    result.weights |= {f"after/{name}": value for name, value in whole(engine.state()).items()}
    engine.close()
    return result if world.main else Trained(result.losses, result.norms, result.digests)


def alone(stage: StageConfig) -> StageConfig:
    """The same on one rank."""
    return replace(stage, parallel=ParallelConfig())


def expectation(
    stage: StageConfig, one: Combination, folder: Path
) -> tuple[reference.Trained, list[str], dict[str, Tensor]]:
    """What the reference does, one rank's digests, and the state that both begin with."""
    engine = make_engine(alone(stage), ALONE)
    start = {name: value.clone() for name, value in engine.state().items()}
    if one.continued:
        _disturb(start, stage.train.seed)
        write_tensors(start, folder / "start")
    with Loader(Plan.of(stage), seed=stage.train.seed) as loader:
        batches = [loader.next() for _ in range(STEPS)]
    rows = [
        reference.Rows(
            torch.from_numpy(b.tokens),
            torch.from_numpy(b.labels),
            b.lengths,
            None if b.weights is None else torch.from_numpy(b.weights),
        )
        for b in batches
    ]
    weights, moments = split_state(start)
    expected = reference.train(asdict(stage), weights, rows, moments, BEFORE * one.continued)
    digests = [engine.digest(batch) for batch in batches]
    engine.close()
    return expected, digests, start


def split_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Weights by name, and moments by kind and name, of a checkpoint's tensors."""
    weights, moments = {}, {}
    for key, value in state.items():
        part, _, name = key.partition("/")
        name, _, kind = name.partition("/")
        if part == "model":
            weights[key.partition("/")[2]] = value
        elif kind != "step":
            moments.setdefault(kind, {})[name] = value
    return weights, moments


@torch.no_grad()
def _disturb(state: dict[str, Tensor], seed: int) -> None:
    """Move norms, biases and the optimizer's moments away from their initial values, in place."""
    draw = torch.Generator().manual_seed(seed)
    for name, value in state.items():
        noise = torch.randn(value.shape, generator=draw)
        if name.endswith("/step"):
            value.fill_(BEFORE)
        elif name.endswith("/exp_avg_sq"):
            value.copy_((1e-3 + 1e-3 * noise.abs()) ** 2)
        elif name.startswith("optimizer/"):
            value.copy_(1e-3 * noise)
        elif value.ndim == 1:
            value.add_(0.3 * noise)


def differences(results: list[Trained], digests: list[str], start: Mapping[str, Tensor], one: Combination) -> list[str]:
    """What must be the same to the last bit, and is not."""
    got = results[0]
    before = {name: value for name, value in got.weights.items() if not name.startswith("after/")}
    updates = BEFORE * one.continued + STEPS
    found = {
        "ranks whose numbers are not the first's": [
            rank
            for rank, other in enumerate(results)
            if (other.digests, other.losses, other.norms) != (got.digests, got.losses, got.norms)
        ],
        "digests that are not one rank's": [n for n in range(STEPS) if got.digests[n] != digests[n]],
        "names that only one state has": sorted(set(before) ^ set(start)),
        "other values before the first step": [
            name for name in set(before) & set(start) if not torch.equal(before[name], start[name])
        ],
        f"updates that are not {updates}": [
            name
            for name, value in got.weights.items()
            if name.startswith("after/") and name.endswith("/step") and value != updates
        ],
    }
    return [f"{what}: {where[:4]}" for what, where in found.items() if where]


def errors_of(got: Trained, expected: reference.Trained, start: Mapping[str, Tensor]) -> dict[str, tuple[str, float]]:
    """The worst relative error of each thing that is compared, and whose it is."""
    after = {name.removeprefix("after/"): value for name, value in got.weights.items() if name.startswith("after/")}
    weights, moments = split_state(after)
    first, _ = split_state(start)
    pairs: dict[str, dict[str, tuple[Tensor, Tensor]]] = {
        "loss": {"": (torch.tensor(got.losses), torch.tensor(expected.losses))},
        "norm": {"": (torch.tensor(got.norms), torch.tensor(expected.norms))},
        "weights": {
            name: (v - first[name].double(), expected.weights[name] - first[name]) for name, v in weights.items()
        },
        **{kind: {name: (v, expected.moments[kind][name]) for name, v in of.items()} for kind, of in moments.items()},
    }
    if got.gradients:
        pairs["gradients"] = {name: (got.gradients[name], v) for name, v in expected.gradients.items()}
    return {
        what: max(_relative(of), key=lambda one: math.inf if math.isnan(one[1]) else one[1])
        for what, of in pairs.items()
    }


def _relative(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> list[tuple[str, float]]:
    """Of each `(got, wanted)` the error's norm over that of what is wanted."""
    norms = {name: float(wanted.double().norm()) for name, (_, wanted) in pairs.items()}
    least = max(NEGLIGIBLE * max(norms.values()), 1e-30)
    return [
        (name, float((got.double() - wanted.double()).norm()) / max(norms[name], least))
        for name, (got, wanted) in pairs.items()
    ]
