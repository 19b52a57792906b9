"""Everything about a configuration that can be found wrong without loading anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from glob import escape
from pathlib import Path

from internevo.config.derive import FEWEST_PARTS, parts_per_rank, places_before, stage_steps, step_from
from internevo.config.names import name_problem
from internevo.config.schema import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
)
from internevo.config.typed import did_you_mean, flatten
from internevo.files.urls import is_remote


def check(config: RunConfig, check_data: bool) -> list[str]:
    """A sentence for each mistake, beginning with the path of its key."""
    problems = []
    if wrong := name_problem(config.name):
        problems.append(f"name: {config.name!r} {wrong}")
    problems += [f"stages: the name {one.name!r} {wrong}" for one in config.stages if (wrong := name_problem(one.name))]
    names = [stage.name for stage in config.stages]
    problems += [f"stages: two are called {name!r}" for name in sorted(set(names)) if names.count(name) > 1]
    problems += _unchanging(config)
    problems += _source_places(config)
    problems += _of_stages({stage.name: _stage(stage) for stage in config.stages})
    return list(dict.fromkeys(problems + (missing_files(config) if check_data else [])))


def missing_files(config: RunConfig) -> list[str]:
    """A sentence for each token store, tokenizer and model that the configuration names and that is not there."""
    stores = {
        stage.name: [
            problem
            for i, one in enumerate(stage.data.sources)
            for problem in _store(f"data.sources[{i}].path", one.path)
        ]
        for stage in config.stages
    }
    problems = _of_stages(stores)
    for key, path in (("train.init_from", config.train.init_from), ("tokenizer", config.tokenizer)):
        if path is not None and not Path(path).exists():
            problems.append(f"{key}: {path} does not exist")
    return list(dict.fromkeys(problems))


def _of_stages(found: Mapping[str, list[str]]) -> list[str]:
    """Problems by stage in one list: those that all stages have without a stage's name."""
    return [
        problem if all(problem in others for others in found.values()) else f"stages.{name}.{problem}"
        for name, problems in found.items()
        for problem in problems
    ]


def _stage(stage: StageConfig) -> list[str]:
    found = [*_model(stage.model), *_optimizer(stage.optimizer)]
    if not found:  # computed from values that are in range
        found += [*_lengths(stage), *_parallel(stage), *_speed(stage), *_lora(stage)]
    return [*found, *_data(stage.data)]


def _get(stage: StageConfig, path: str) -> object:
    value: object = stage
    for key in path.split("."):
        value = getattr(value, key)
    return value


def _model(model: ModelConfig) -> Iterator[str]:
    attention, scaling = model.attention, model.rope.scaling
    if attention.heads % attention.kv_heads:
        shared = f"{attention.heads} heads cannot be shared evenly by {attention.kv_heads} kv heads"
        yield f"model.attention.kv_heads: {shared}"
    if attention.head_dim % 2:
        yield f"model.attention.head_dim: must be even for the rotary embedding, found {attention.head_dim}"
    if model.width_base and model.tied:
        yield "model.width_base: embedding and head scale differently with the width; set model.tied=false"
    if scaling.kind in ("llama3", "yarn") and not scaling.original_seq_len:
        yield f"model.rope.scaling.original_seq_len: {scaling.kind} needs the row length that the model was trained on"
    if scaling.kind == "llama3" and scaling.high_freq_factor <= scaling.low_freq_factor:
        yield "model.rope.scaling.high_freq_factor: must be above low_freq_factor"


def _parallel(stage: StageConfig) -> Iterator[str]:
    """What a layout cuts must be divisible by its sizes."""
    model, parallel, train = stage.model, stage.parallel, stage.train
    tensor, heads = parallel.tensor, model.attention.heads
    if heads % tensor:
        yield f"parallel.tensor: {tensor} ranks cannot share model.attention.heads {heads:,} evenly"
    for key, size in {"feed_forward.width": model.feed_forward.width, "vocab": model.vocab}.items():
        if -(-size // tensor) * (tensor - 1) >= size:
            yield f"parallel.tensor: {tensor} ranks cannot share model.{key} {size:,}: the last has none"
    if tensor % (shared := model.attention.kv_heads) and shared % tensor:
        sizes = f"{tensor} ranks and model.attention.kv_heads {shared}"
        yield f"parallel.tensor: {sizes}: one must be a multiple of the other"
    context, ulysses = parallel.context.size, parallel.context.ulysses
    if ulysses != "auto" and (not isinstance(ulysses, int) or ulysses < 1 or context % ulysses):
        yield f"parallel.context.ulysses: must be auto or a divisor of parallel.context.size {context}, found {ulysses}"
    elif ulysses != "auto" and (heads // tensor) % ulysses:
        yield f"parallel.context.ulysses: {ulysses} ranks cannot share {heads // tensor} heads evenly"
    if train.seq_len % context:
        yield f"parallel.context.size: {context} ranks cannot share rows of {train.seq_len:,} tokens evenly"
    elif parallel.sequence and (train.seq_len // context) % tensor:
        rows = f"rows of {train.seq_len // context:,} tokens"
        yield f"parallel.tensor: {tensor} ranks cannot share {rows} evenly; set parallel.sequence=false"
    pipeline = parallel.pipeline
    parts, fewest = parts_per_rank(pipeline), FEWEST_PARTS[pipeline.schedule]
    if parts < fewest or (parts > fewest and pipeline.schedule != "interleaved"):
        wanted = f"{fewest}{' or more' * (pipeline.schedule == 'interleaved')}"
        yield f"parallel.pipeline.parts: must be {wanted} with the schedule {pipeline.schedule}, found {parts}"
    elif pipeline.size > 1 and model.layers < pipeline.size * parts:
        wanted = f"{pipeline.size * parts} parts ({pipeline.schedule})"
        yield f"parallel.pipeline.size: {model.layers} layers cannot make {wanted}"
    if parallel.zero.shard == 0:
        yield "parallel.zero.shard: must be at least 1, or -1 for all ranks, found 0"
    yield from _offload(stage)


def _offload(stage: StageConfig) -> Iterator[str]:
    """What the DeepSpeed engine can do, and what only it can."""
    parallel, zero = stage.parallel, stage.parallel.zero
    places = {"optimizer": zero.offload.optimizer, "parameters": zero.offload.parameters}
    if zero.engine != "deepspeed":
        if places["optimizer"] == "nvme":
            yield "parallel.zero.offload.optimizer: nvme needs parallel.zero.engine=deepspeed; fsdp has cpu"
        if places["parameters"] != "none":
            yield (
                "parallel.zero.offload.parameters: needs parallel.zero.engine=deepspeed; fsdp with zero stage 3 and "
                "offload.optimizer=cpu keeps no other weights"
            )
        return
    sizes = {"tensor": parallel.tensor, "context.size": parallel.context.size, "pipeline.size": parallel.pipeline.size}
    for name, size in sizes.items():
        if size > 1:
            yield f"parallel.{name}: must be 1 with the engine deepspeed, found {size}; fsdp has every layout"
    if zero.stage not in (2, 3):
        yield f"parallel.zero.stage: the engine deepspeed has 2 and 3, found {zero.stage}"
    if zero.shard != -1:
        yield f"parallel.zero.shard: the engine deepspeed shares the state over all ranks, found {zero.shard}"
    if stage.train.compile:
        yield "train.compile: the engine deepspeed runs uncompiled; set it to false"
    if zero.stage != 3 and places["parameters"] != "none":
        yield f"parallel.zero.offload.parameters: needs parallel.zero.stage 3, found {zero.stage}"
    if zero.stage != 3 and places["optimizer"] == "nvme":
        yield f"parallel.zero.offload.optimizer: nvme needs parallel.zero.stage 3, found {zero.stage}"
    if "nvme" in places.values() and zero.offload.path is None:
        yield "parallel.zero.offload.path: name a folder on a local disk for what is kept on nvme"


def _speed(stage: StageConfig) -> Iterator[str]:
    """Settings that make training faster or smaller, and what they go together with."""
    train, optimizer, parallel = stage.train, stage.optimizer, stage.parallel
    if (train.recompute == "budget") != (train.activation_gib > 0):
        found = f"{train.activation_gib:g} with train.recompute={train.recompute}"
        yield f"train.activation_gib: goes with train.recompute=budget, found {found}"
    if train.compile_mode != "default" and not train.compile:
        yield f"train.compile_mode: {train.compile_mode} needs train.compile=true"
    if train.loss not in ("auto", "chunked") and (parallel.tensor > 1 or parallel.pipeline.size > 1):
        yield f"train.loss: {train.loss} runs without tensor and pipeline parallelism; use chunked"
    if train.attention == "flex" and parallel.context.size > 1:
        yield "train.attention: flex cannot attend over several ranks; use auto"
    if optimizer.state != "fp32":
        if train.precision != "bf16":
            yield f"optimizer.state: {optimizer.state} is for train.precision=bf16, found {train.precision}"
        if optimizer.name not in ("adamw", "muon"):
            yield f"optimizer.state: {optimizer.state} is for optimizer.name adamw or muon, found {optimizer.name}"
    if parallel.zero.engine == "deepspeed":
        for name, value, usual in (
            ("optimizer.name", optimizer.name, "adamw"),
            ("optimizer.state", optimizer.state, "fp32"),
            ("train.fp8", train.fp8, "none"),
        ):
            if value != usual:
                yield f"{name}: must be {usual} with the engine deepspeed, found {value}"
    if parallel.asynchronous and not (train.compile and parallel.tensor > 1 and parallel.sequence):
        yield "parallel.asynchronous: needs train.compile=true, parallel.tensor above 1 and parallel.sequence=true"


def _lora(stage: StageConfig) -> Iterator[str]:
    """What adapters need, and what does not go with weights that are frozen."""
    if not stage.train.lora.rank:
        return
    if stage.train.init_from is None:
        yield "train.lora: needs train.init_from, the model that is adapted: random weights that stay learn nothing"
    if not stage.train.lora.targets:
        yield "train.lora.targets: name matrices, such as [wq, wv], or [all]"
    for key, value, usual in (
        ("train.lora.dropout", stage.train.lora.dropout, 0.0),
        ("train.fp8", stage.train.fp8, "none"),
        ("optimizer.state", stage.optimizer.state, "fp32"),
        ("parallel.zero.engine", stage.parallel.zero.engine, "fsdp"),
    ):
        if value != usual:
            yield f"{key}: must be {usual} with train.lora, found {value}"


def _optimizer(optimizer: OptimizerConfig) -> Iterator[str]:
    if len(optimizer.betas) != 2:
        yield f"optimizer.betas: must be two numbers, found {optimizer.betas}"


def _lengths(stage: StageConfig) -> Iterator[str]:
    train, schedule = stage.train, stage.schedule
    ramp = {f"train.batch_ramp[{i}].batch_tokens": leg.batch_tokens for i, leg in enumerate(train.batch_ramp)}
    for key, batch_tokens in (ramp | {"train.batch_tokens": train.batch_tokens}).items():
        if batch_tokens < train.seq_len:
            yield f"{key}: {batch_tokens:,} is less than one row of seq_len {train.seq_len:,}"
            return
        yield from _micro_batches(key, batch_tokens, train)
    ends = [leg.until for leg in train.batch_ramp]
    if ends != sorted(set(ends)) or (ends and ends[0] < 1):
        yield f"train.batch_ramp: each part must end after the one before; they end at {ends}"
    if (train.tokens is None) == (train.steps is None):
        both = "both are set" if train.tokens is not None else "neither is set"
        yield f"train.tokens, train.steps: give the stage's length as one of them; {both}"
        return
    if stage.data.changes and step_from(train, last := stage.data.changes[-1].at) >= stage_steps(train):
        end = places_before(train, stage_steps(train))
        yield f"data.changes: the last is at {last:,} tokens; no step of the stage, which ends at {end:,}, begins there"
    if schedule.over == "stage" and schedule.warmup >= (steps := stage_steps(train)) and schedule.warmup > 0:
        yield f"schedule.warmup: must be shorter than the stage, which has {steps:,} steps, found {schedule.warmup:,}"


def _micro_batches(key: str, batch_tokens: int, train: TrainConfig) -> Iterator[str]:
    """A step's rows must be whole micro-batches."""
    row, group = train.seq_len, train.micro_batch
    rows = batch_tokens // row
    if rows % group:
        near = sorted({max(1, rows // group) * group * row, (rows // group + 1) * group * row})
        yield (
            f"{key}: {batch_tokens:,} // seq_len {row:,} = {rows:,} rows, which micro-batches of "
            f"{group} cannot divide; near are {' and '.join(f'{size:,}' for size in near)}"
        )


def _data(data: DataConfig) -> Iterator[str]:
    if not data.sources:
        yield "data.sources: the stage has no data; name at least one token store"
    names = [source.name or Path(source.path).name for source in data.sources]
    for i, source in enumerate(data.sources):
        at = f"data.sources[{i}]"
        if wrong := name_problem(names[i]):
            key, more = ("name", "") if source.name else ("path", f"; or give the source a name of its own, {at}.name")
            yield f"{at}.{key}: the name {names[i]!r} {wrong}{more}"
        if source.max_tokens is not None and source.max_tokens < source.min_tokens:
            yield f"{at}.max_tokens: must be at least min_tokens {source.min_tokens}, found {source.max_tokens}"
        if names.count(names[i]) > 1 and names.index(names[i]) == i:
            yield f"{at}: two sources are called {names[i]!r}; give them names of their own"
    yield from _mixtures(data, names)


def _mixtures(data: DataConfig, names: list[str]) -> Iterator[str]:
    """The weights, and what they change to."""
    weights = {name: source.weight for name, source in zip(names, data.sources, strict=True)}
    if weights and not any(weight > 0 for weight in weights.values()):
        yield "data.sources: all weights are 0; at least one source must have more"
    before = 0
    for i, change in enumerate(data.changes):
        at = f"data.changes[{i}]"
        if change.at <= before:
            yield f"{at}.at: must be after {before:,}, found {change.at:,}"
        before = change.at
        for name in change.weights:
            if name not in weights:
                yield f"{at}.weights: there is no source {name!r}{did_you_mean(name, names)}"
        weights |= change.weights
        if weights and not any(weight > 0 for weight in weights.values()):
            yield f"{at}.weights: all weights are 0 from there on; at least one source must have more"


def _store(key: str, path: str) -> Iterator[str]:
    """Whether something is there. What it is shows when it is opened, which is the first thing that a run does."""
    if is_remote(path):
        return
    place = Path(path)
    pair = [f"{escape(place.name)}{ending}" for ending in (".idx", ".bin", "-?????-of-?????.idx")]
    if not place.exists() and not any(any(place.parent.glob(name)) for name in pair):
        yield f"{key}: there is no token store at {path}; `internevo data prepare` makes one"


def _unchanging(config: RunConfig) -> Iterator[str]:
    """What a stage may not change, because weights, tokens and optimizer state continue from the stage before."""
    for stage in config.stages:
        ours, given = flatten(asdict(stage.model)), flatten(asdict(config.model))
        other_width = any(ours[key] != given[key] for key in ("hidden", "attention.heads"))
        for key, value in ours.items():
            if key == "attention.head_dim" and other_width:
                continue  # it follows from these, unless it is given too
            if key != "preset" and not key.startswith("rope.") and value != given.get(key):
                had = given.get(key)
                yield f"stages.{stage.name}.model.{key}: a stage may change model.rope only; the run has {had}"
        for path in ("tokenizer", "optimizer.name", "train.seed", "train.init_from", "train.lora", "data.block"):
            if _get(stage, path) != _get(config, path):
                yield f"stages.{stage.name}.{path}: a stage cannot change it; the run has {_get(config, path)!r}"


def _source_places(config: RunConfig) -> Iterator[str]:
    """A source keeps its place from stage to stage, so its name must mean the same documents."""
    places: dict[str, str] = {}
    for stage in config.stages:
        for source in stage.data.sources:
            name = source.name or Path(source.path).name
            place = source.path + _lengths_of(source)
            if places.setdefault(name, place) != place:
                yield (
                    f"stages.{stage.name}.data.sources: {name!r} is {place} here and {places[name]} in an "
                    "earlier stage; give them names of their own"
                )


def _lengths_of(source: SourceConfig) -> str:
    if not source.min_tokens and source.max_tokens is None:
        return ""
    most = "any number of" if source.max_tokens is None else f"{source.max_tokens:,}"
    return f" (documents of {source.min_tokens:,} to {most} tokens)"
