"""What ranks do in tests: train a tiny model under a layout and tell all about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from internevo.checkpoint.tensors import Piece, read_tensors, write_tensors
from internevo.config.presets import model_preset
from internevo.config.schema import (
    ContextConfig,
    LoraConfig,
    OffloadConfig,
    OptimizerConfig,
    ParallelConfig,
    PipelineConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
    ZeroConfig,
)
from internevo.data.batch import IGNORE, Batch
from internevo.data.loader import Loader
from internevo.data.mixing import Plan
from internevo.model import initial
from internevo.optim import muon
from internevo.parallel import build_rank_model
from internevo.parallel.asynchronous import FoldReshapes
from internevo.parallel.tensor import local
from internevo.parallel.world import World
from internevo.tokens.store_writer import TokenStoreWriter
from internevo.train.build import make_engine
from internevo.train.engine import Engine, TorchEngine
from internevo.train.initial_weights import begin_from
from internevo.train.pipelined import Pipelined
from internevo.train.step import train_step

SEQ_LEN, ROWS, VOCAB, LR = 64, 8, 512, 3e-3
ALONE = World(0, 1, torch.device("cpu"), None, None, None)


@dataclass
class Trained:
    """What a few steps did."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    """Those of the first step, whole."""
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """Those before the first step, whole."""


def write_documents(prefix: Path, vocab: int = VOCAB, masked: bool = False) -> Path:
    """Documents of wildly different lengths: many of one token, some longer than a row. Stretches may be masked."""
    rng = np.random.default_rng(5)
    with TokenStoreWriter(prefix, np.int32 if masked else np.uint16) as writer:
        for number in range(400):
            length = [1, int(rng.integers(2, 8)), int(rng.integers(8, 64)), int(rng.integers(64, 200))][number % 4]
            ids = 3 + rng.geometric(0.03, length) % (vocab - 3)
            writer.append(np.where(np.arange(length) % 11 < number % 9, ~ids, ids) if masked else ids)
    if masked:
        prefix.with_name("manifest.json").write_text('{"masked": true, "masking": "complement"}')
    return prefix


def stage_of(changes: dict[str, Any]) -> StageConfig:
    """A stage of a tiny model. `changes`: sizes of the layout, and keys of train or model."""
    parallel = ParallelConfig(
        tensor=changes.get("tensor", 1),
        sequence=changes.get("sequence", True),
        pipeline=PipelineConfig(changes.get("pipeline", 1), changes.get("schedule", "1f1b"), changes.get("parts")),
        context=ContextConfig(changes.get("context", 1), changes.get("ulysses", "auto")),
        zero=ZeroConfig(
            changes.get("zero", 1), changes.get("shard", -1), offload=OffloadConfig(changes.get("offload", "none"))
        ),
    )
    model = model_preset(
        "tiny",
        layers=changes.get("layers", 4),
        attention={
            "heads": 8,
            "kv_heads": changes.get("kv_heads", 4),
            "bias": changes.get("qkv_bias", False),
            "qk_norm": changes.get("qk_norm", False),
            **changes.get("attention", {}),
        },
        feed_forward={"width": changes.get("width", 160), **changes.get("feed_forward", {})},
        **{key: changes[key] for key in ("hidden", "tied", "vocab") if key in changes},
    )
    seq_len = changes.get("seq_len", SEQ_LEN)
    train = TrainConfig(
        seq_len=seq_len,
        batch_tokens=seq_len * ROWS,
        micro_batch=changes.get("micro_batch", 1),
        precision=changes.get("precision", "fp32"),
        recompute=changes.get("recompute", "none"),
        activation_gib=changes.get("activation_gib", 0.0),
        compile=changes.get("compile", False),
        fp8=changes.get("fp8", "none"),
        average=changes.get("average", "token"),
        loss=changes.get("loss", "auto"),
        steps=20,
        lora=LoraConfig(**changes.get("lora", {})),
    )
    optimizer = OptimizerConfig(name=changes.get("optimizer", "adamw"), state=changes.get("state", "fp32"))
    return StageConfig(model=model, train=train, parallel=parallel, optimizer=optimizer)


def engine_of(stage: StageConfig, world: World) -> TorchEngine:
    """The engine of the stage's layout."""
    engine = make_engine(stage, world)
    assert isinstance(engine, TorchEngine)
    return engine


def whole(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every tensor joined from its parts, on all ranks."""
    full = {name: joined(t) for name, t in tensors.items()}
    if dist.is_initialized():
        everyones: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyones, full)  # stages of a pipeline hold different names
        full = {name: tensor for one in everyones for name, tensor in one.items()}
    return full


def joined(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that all ranks of its mesh have a part of."""
    if isinstance(tensor, Piece):
        mesh = tensor.like.device_mesh
        parts: list[Any] = [(tensor.first, tensor.part)]
        for dim in range(mesh.ndim):
            everyones: list[Any] = [None] * mesh.size(dim)
            dist.all_gather_object(everyones, parts, group=mesh.get_group(dim))
            parts = [part for one in everyones for part in one]
        full = torch.full(tensor.shape, torch.nan)
        for first, part in parts:
            full[tuple(slice(at, at + size) for at, size in zip(first, part.shape, strict=True))] = part
        assert not full.isnan().any()
        return full
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def begun(world: World, changes: dict[str, Any], path: str) -> dict[str, torch.Tensor]:
    """What the engine of a layout holds when it has begun from `path`, whole."""
    stage = stage_of(changes)
    stage.train.init_from = path
    engine = make_engine(stage, world)
    begin_from(engine, stage, world)
    return whole(engine.state())


def weights_of(engine: TorchEngine) -> dict[str, torch.Tensor]:
    """The whole weights by their names."""
    state = engine.state()
    return {name.removeprefix("model/"): t for name, t in whole(state).items() if name.startswith("model/")}


def train(world: World, changes: dict[str, Any], store: Path, steps: int, after: bool = False) -> Trained:
    """Train `steps` steps on the documents of `store`. The result's weights are those from before, or from `after`."""
    engine = engine_of(stage_of(changes), world)
    result = Trained(weights=weights_of(engine))
    keep_gradients(engine, result)
    with _loader(store, "best_fit", engine) as loader:
        for _ in range(steps):
            one_step(engine, loader.next(), result)
    if after:
        result.weights = weights_of(engine)
    return result if world.main else strip(result)


def train_strictly(world: World, changes: dict[str, Any], store: Path, steps: int) -> Trained:
    """`train`, where what should be compiled never runs uncompiled because other jobs have compiled much before."""
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=32):
        return train(world, changes, store, steps)


def notes_of(world: World, changes: dict[str, Any]) -> tuple[str, ...]:
    """What the engine of a layout tells a person."""
    return engine_of(stage_of(changes), world).notes


@dataclass
class Built:
    """What a rank held while its part of a model was built."""

    whole_at_once: int
    """Parameters whose whole values were in memory at one time."""
    excess: dict[str, int]
    """Bytes that a part keeps alive beside its own, by name."""


def build_and_look(world: World, changes: dict[str, Any]) -> Built:
    """Build the engine of a layout."""
    drawn: list[StorageWeakRef] = []
    most = 0

    def watched(*arguments: Any) -> torch.Tensor:
        nonlocal most
        values = initial.initial_values(*arguments)
        drawn.append(StorageWeakRef(values.untyped_storage()))
        most = max(most, sum(not one.expired() for one in drawn))
        return values

    build_rank_model.initial_values = watched
    try:
        engine = engine_of(stage_of(changes), world)
    finally:
        build_rank_model.initial_values = initial.initial_values
    parts = {name: local(p.detach()) for name, p in engine.parameters.items()}
    return Built(most, {name: part.untyped_storage().nbytes() - part.nbytes for name, part in parts.items()})


def count_orthogonalised(world: World, changes: dict[str, Any], store: Path) -> int:
    """How many matrices this rank makes orthogonal in a step."""
    counted = 0

    def count(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
        nonlocal counted
        counted += 1
        return matrix

    before, muon.orthogonalise = muon.orthogonalise, count
    try:
        train(world, changes, store, 1)
    finally:
        muon.orthogonalise = before
    return counted


def order_of_work(world: World, changes: dict[str, Any], store: Path) -> str:
    """A letter for each gather of weights (g), attention forward (a) and backward (b), reduction of gradients (r)."""
    letters = {"sdpa": "a", "sdpa_backward": "b", "_allgather_base_": "g", "_reduce_scatter_base_": "r"}
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
            name = function.overloadpacket.__name__
            if name in letters:
                seen.append(letters[name])
            return function(*arguments, **(named or {}))

    engine = engine_of(stage_of({"micro_batch": 4, **changes}), world)
    with _loader(store, "best_fit", engine) as loader:
        staged = engine.stage_batch(loader.next())
        engine.forward_backward(staged)
        with Watch():
            engine.forward_backward(staged)
    return "".join(seen)


def most_in_flight(world: World, changes: dict[str, Any], store: Path) -> int:
    """For how many micro-batches this rank's stages of a pipeline have at most run forward only, added up."""
    engine = engine_of(stage_of(changes), world)
    runner = engine.runner
    assert isinstance(runner, Pipelined)
    now: dict[int, int] = {}
    most = 0

    def watch(number: int) -> None:
        def forward(module: Any, inputs: Any, output: torch.Tensor) -> None:
            nonlocal most
            now[number] = now.get(number, 0) + 1
            most = max(most, sum(now.values()))
            if output.requires_grad:
                output.register_hook(backward)

        def backward(gradient: torch.Tensor) -> None:
            now[number] -= 1

        runner.models[number].register_forward_hook(forward)

    for number in runner.models:
        watch(number)
    with _loader(store, "best_fit", engine) as loader:
        one_step(engine, loader.next(), Trained())
    return most


@dataclass
class Compiled:
    """What compiled steps did, and what torch's pass for async tensor parallelism finds in a block's two graphs.

    For each gather how many products take it, and for each scatter whether a product gives it.
    """

    losses: list[float]
    norms: list[float]
    breaks: dict[str, int]
    forward: tuple[list[int], list[bool]]
    backward: tuple[list[int], list[bool]]


def compile_and_look(world: World, changes: dict[str, Any], store: Path, steps: int) -> Compiled:
    """Train some steps with compiled blocks."""
    from torch._inductor import config as inductor
    from torch._inductor.fx_passes import micro_pipeline_tp as passes

    found: list[tuple[list[int], list[bool]]] = []

    def look(graph: torch.fx.Graph) -> None:
        gathers, scatters = passes.find_all_gather_patterns(graph), passes.find_reduce_scatter_patterns(graph)
        takers = [len(passes._find_consumer_matmuls(one.res_node)) for one in gathers]
        found.append((takers, [passes._find_producer_matmul(one.input_node) is not None for one in scatters]))

    torch._dynamo.reset()
    counters.clear()
    result = Trained()
    stage = stage_of(changes)
    stage.train.compile = True
    fold = FoldReshapes()
    with inductor.patch(post_grad_custom_pre_pass=fold, post_grad_custom_post_pass=look, force_disable_caches=True):
        engine = engine_of(stage, world)
        once = torch._dynamo.config.patch(error_on_recompile=True)
        with _loader(store, "best_fit", engine) as loader, once:
            for _ in range(steps):
                one_step(engine, loader.next(), result)
    return Compiled(result.losses, result.norms, dict(counters["graph_break"]), found[0], found[1])


def one_row_batch(engine: Engine) -> Batch:
    """An engine's part of a batch whose first row is one document, and whose other rows are documents of one token."""
    tokens = np.random.default_rng(0).integers(0, VOCAB, (ROWS, SEQ_LEN))
    labels = np.full((ROWS, SEQ_LEN), IGNORE)
    labels[0, :-1] = tokens[0, 1:]
    positions = np.zeros((ROWS, SEQ_LEN), np.int64)
    positions[0] = np.arange(SEQ_LEN)
    lengths = ((SEQ_LEN,), *(((1,) * SEQ_LEN,) * (ROWS - 1)))
    share = ROWS // engine.part.parts
    rows = slice(engine.part.number * share, (engine.part.number + 1) * share)
    facts = lengths, (SEQ_LEN,) * ROWS, ("web",) * ROWS, SEQ_LEN - 1, rows
    return Batch(tokens[rows], labels[rows], positions[rows], *facts)


def train_on_one_row(world: World, changes: dict[str, Any]) -> Trained:
    """One step on `one_row_batch`."""
    result = Trained()
    engine = engine_of(stage_of(changes), world)
    keep_gradients(engine, result)
    one_step(engine, one_row_batch(engine), result)
    return result


def digests(world: World, changes: dict[str, Any]) -> dict[str, str]:
    """Of `one_row_batch`, and of batches that differ from it in the last row by one number."""
    engine = engine_of(stage_of(changes), world)
    batch = one_row_batch(engine)
    batches = {"the batch": batch}
    for name in ("tokens", "labels", "positions"):
        numbers = getattr(batch, name).copy()
        if batch.rows.stop == ROWS:  # the last row is here
            numbers[-1, 3] = 5
        batches[name] = replace(batch, **{name: numbers})
    batches["borders"] = replace(batch, lengths=(*batch.lengths[:-1], (2, *batch.lengths[-1][2:])))
    return {name: engine.digest(one) for name, one in batches.items()}


def keep_gradients(engine: TorchEngine, result: Trained) -> None:
    """Let `result` have the gradients of the first step, as the optimizer gets them."""

    def keep(*_: object) -> None:
        if not result.gradients:
            gradients = {name: p.grad for name, p in engine.local.items() if p.grad is not None}
            result.gradients = whole({name: engine.stored(name, gradient) for name, gradient in gradients.items()})

    engine.optimizers.all[0].register_step_pre_hook(keep)


def save(world: World, changes: dict[str, Any], store: Path, folder: Path, steps: int) -> dict[str, torch.Tensor]:
    """Train, write model and optimizer to `folder`, and tell their whole values."""
    engine = engine_of(stage_of(changes), world)
    with _loader(store, "concat", engine) as loader:
        for _ in range(steps):
            one_step(engine, loader.next(), Trained())
    write_tensors(engine.state(), folder, world.control)
    state = whole(engine.state())
    return state if world.main else {}


def load(world: World, changes: dict[str, Any], folder: Path) -> dict[str, torch.Tensor]:
    """Model and optimizer out of `folder`, whole."""
    engine = engine_of(stage_of(changes), world)
    engine.load(lambda tensors: read_tensors(folder, tensors, world.control))
    state = whole(engine.state())
    return state if world.main else {}


def next_batches(store: Path, engine: Engine, count: int) -> Iterator[Batch]:
    """This process's share of the first batches."""
    with _loader(store, "best_fit", engine) as loader:
        for _ in range(count):
            yield loader.next()


def _loader(store: Path, packing: str, engine: Engine) -> Loader:
    source, train = SourceConfig(str(store), name="web"), engine.stage.train
    plan = Plan.constant([source], seq_len=train.seq_len, rows=ROWS, packing=packing)
    return Loader(replace(plan, average=train.average), seed=1, part=engine.part)


def one_step(engine: TorchEngine, batch: Batch, result: Trained) -> None:
    """Train on one batch and note what happened."""
    done = train_step(engine, engine.stage_batch(batch), LR)
    result.losses.append(done.loss)
    result.norms.append(done.grad_norm)
    result.digests.append(engine.digest(batch))


def strip(result: Trained) -> Trained:
    """Without the tensors, which the first rank sends for all."""
    return Trained(result.losses, result.norms, result.digests)
