"""The whole YAML tree, as dataclasses: every key, its type, its default and what it means.

The docstring under a field is the field's documentation: `docs/config.md` is generated from it. A number's range, and
what a text may say, stand in its type.
Reading, merging and checking are in `load.py`; named model shapes are in `presets.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from internevo.config.bounds import Between, Seed, Share, Size, SomeTokens, Steps, Tokens
from internevo.config.choices import Instead, OrYours

MISSING: Any = "???"
"""The default of a key that the configuration must give."""


Precision = Literal["bf16", "fp32"]
_NO_FP16 = "has a range so small that the loss must be scaled, which is not done here; use bf16, which has fp32's range"
_OTHER_PRECISIONS = {
    **dict.fromkeys(("fp16", "float16", "half"), f"{_NO_FP16}, or fp32 on a GPU without bf16"),
    "bfloat16": "is called bf16 here",
    **dict.fromkeys(("float32", "float"), "is called fp32 here"),
    "fp8": "is set by train.fp8, beside bf16",
}


@dataclass
class RopeScalingConfig:
    """How the rotary angles of a model trained on shorter rows are stretched over longer ones. Public checkpoints come
    with it; for a model of your own, raising `rope.base` in a stage is simpler."""

    kind: Literal["none", "linear", "llama3", "yarn"] = "none"
    """`none`; `linear`: positions divided by `factor` (arXiv 2306.15595); `llama3`: long wavelengths only, as in
    Llama 3.1; `yarn`: interpolation by wavelength with a temperature on attention (arXiv 2309.00071)."""
    factor: Annotated[float, Between(1, 10**6)] = 1.0
    """How many times longer the rows become."""
    original_seq_len: Annotated[int, Between(0, 2**30)] = 0
    """The row length before; needed by `llama3` and `yarn`."""
    low_freq_factor: Annotated[float, Between(0, 10**6, open_below=True)] = 1.0
    """`llama3` only: wavelengths above `original_seq_len / low_freq_factor` are stretched by the whole factor."""
    high_freq_factor: Annotated[float, Between(0, 10**6, open_below=True)] = 4.0
    """`llama3` only: wavelengths below `original_seq_len / high_freq_factor` stay as they are."""
    beta_fast: Annotated[float, Between(0, 10**6, open_below=True)] = 32.0
    """`yarn` only: channels that turn more often than this over the original length stay as they are."""
    beta_slow: Annotated[float, Between(0, 10**6, open_below=True)] = 1.0
    """`yarn` only: channels that turn less often than this are stretched by the whole factor."""
    temperature: Annotated[float | None, Between(0, 1000, open_below=True)] = None
    """`yarn` only: cosines and sines are multiplied by it; `0.1 ln(factor) + 1` when absent."""


@dataclass
class RopeConfig:
    """The rotary embedding (arXiv 2104.09864). A stage may change it, and nothing else of `model`."""

    base: Annotated[float, Between(1, 10**15)] = 10000.0
    """Base of the wavelengths. A stage with longer rows usually raises it."""
    scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    """See `model.rope.scaling`."""


@dataclass
class AttentionConfig:
    """How tokens look at the tokens before them."""

    kind: Annotated[Literal["gqa"], OrYours()] = "gqa"
    """What is computed; `train.attention` is the kernel that computes it. `gqa`: grouped-query attention (arXiv
    2305.13245), with as many kv heads as heads the multi-head attention of old."""
    heads: Annotated[int, Between(1, 2**16)] = MISSING
    """Number of query heads."""
    kv_heads: Annotated[int, Between(1, 2**16)] = MISSING
    """Number of key and value heads; each serves `heads / kv_heads` query heads."""
    head_dim: Annotated[int, Between(2, 2**16)] = MISSING
    """Width of one head; `hidden / heads` when absent."""
    bias: bool = False
    """Whether the query, key and value projections have a bias (the Qwen2 shape)."""
    qk_norm: bool = False
    """Whether every query and key head goes through a norm before its rotation (the Qwen3 shape, arXiv 2505.09388)."""
    options: dict[str, Any] = field(default_factory=dict)
    """For a `kind` of your own: what it asks for."""


@dataclass
class FeedForwardConfig:
    """What each token goes through after attention."""

    kind: Annotated[Literal["dense"], OrYours()] = "dense"
    """`dense`: SwiGLU (arXiv 2002.05202), three matrices."""
    width: Annotated[int, Between(1, 2**24)] = MISSING
    """Its inner width."""
    options: dict[str, Any] = field(default_factory=dict)
    """For a `kind` of your own: what it asks for."""


@dataclass
class ModelConfig:
    """The shape of the transformer. `preset` fills every field; fields set beside it win."""

    preset: str | None = None
    """A named shape: `internlm2-1.8b`, `internlm2-7b`, `internlm2-20b`, `llama3-8b`, `qwen2.5-7b`,
    `qwen3-8b`, `tiny`, `tiny-25m`."""
    hidden: Size = MISSING
    """Width of the residual stream."""
    layers: Annotated[int, Between(1, 2**16)] = MISSING
    """Number of transformer blocks."""
    vocab: Annotated[int, Between(2, 2**31)] = MISSING
    """Rows of the embedding and of the output head; at least the tokenizer's number of pieces."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """See `model.attention`."""
    feed_forward: FeedForwardConfig = field(default_factory=FeedForwardConfig)
    """See `model.feed_forward`."""
    rope: RopeConfig = field(default_factory=RopeConfig)
    """See `model.rope`."""
    norm_eps: Share = 1e-5
    """Added to the mean square inside RMSNorm."""
    tied: bool = False
    """Whether the output head shares the embedding's weights."""
    init_std: Annotated[float, Between(0, 100)] = 0.02
    """Standard deviation of the initial weights; projections that write into the residual stream are scaled
    down further by `sqrt(2 * layers)`."""
    width_base: Annotated[int, Between(0, 2**20)] = 0
    """The width that learning rates were found at (muP, arXiv 2203.03466). Another `hidden` is scaled so that
    they suit it too. Initial weights of the blocks scale with `sqrt(width_base / hidden)`, those of the
    head with `width_base / hidden`, and so do the learning rates of both. 0 scales nothing."""


@dataclass
class OptimizerConfig:
    """How weights move."""

    name: Annotated[
        Literal["adamw", "muon", "lion"],
        OrYours(),
        Instead({"adam": "is not offered; adamw is Adam with decoupled decay, plain Adam with weight_decay 0"}),
    ] = "adamw"
    """`adamw`: decoupled weight decay on every matrix, none on norms and biases. `muon`: Muon for the matrices of the
    blocks, AdamW for embedding, head, norms and biases; its updates are scaled such that AdamW's learning rates fit.
    `lion`: the sign of averaged gradients (arXiv 2302.06675), whose authors use learning rates of a third to a tenth of
    AdamW's, and a weight decay that much larger."""
    lr: Annotated[float, Between(0, 1000)] = 3e-4
    """Peak learning rate; `schedule` scales it."""
    betas: Annotated[list[float], Between(0, 1, open_above=True)] = field(default_factory=lambda: [0.9, 0.95])
    """Decay rates of the first and second moment."""
    momentum: Annotated[float, Between(0, 1, open_above=True)] = 0.95
    """`muon` only: the share of the old momentum that a step keeps."""
    state: Literal["fp32", "split", "bf16"] = "fp32"
    """How weights and moments are kept, for bf16 with AdamW or Muon. On one GPU, `fp32` takes 18 bytes a parameter with
    the gradient. `split`: the fp32 weights as bf16 ones and the 16 bits that those lack; the same numbers in 16 bytes,
    14 when a step has one micro-batch. `bf16`: the moments in bf16 too, AdamW's stochastically rounded; 12 bytes or 10.
    Over several GPUs, ZeRO keeps the weights in fp32 parts: `split` is `fp32` there, and `bf16` halves the moments."""
    eps: Annotated[float, Between(0, 1, open_below=True)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Between(0, 100)] = 0.1
    """Decoupled decay, scaled by the learning rate."""
    decay_embeddings: bool = True
    """Whether embedding and output head decay too, as in InternLM2 and Llama. The head's decay bounds the
    logits; set it to false to follow OLMo 2."""
    clip: Annotated[float, Between(0, 10**9)] = 1.0
    """Largest global gradient norm; larger gradients are scaled down to it. 0 turns clipping off."""


@dataclass
class ScheduleConfig:
    """The learning rate over steps, as a share of `optimizer.lr`."""

    name: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """`constant`, `linear`, `cosine` or `wsd` (warmup, stable, decay)."""
    warmup: Steps = 0
    """Steps of a linear climb to the peak. The first stage climbs from zero, a later one from the last learning rate of
    the stage before. With `over: run` only the run's start warms up."""
    final: Share = 0.1
    """The last step's learning rate, as a share of the peak. Ignored by `constant`."""
    decay: Annotated[float, Between(0, 1, open_below=True)] = 0.1
    """`wsd` only: the share of the steps spent in the final linear decay."""
    over: Literal["stage", "run"] = "stage"
    """What one curve spans: `stage` (each stage has its own) or `run` (one curve over all steps of the run)."""


@dataclass
class BatchLeg:
    """A part of a batch-size ramp."""

    until: SomeTokens = MISSING
    """Where it ends, in tokens of the stage."""
    batch_tokens: SomeTokens = MISSING
    """Tokens per optimizer step until then."""


@dataclass
class ObjectiveConfig:
    """What a step makes smaller."""

    kind: Annotated[Literal["next_token"], OrYours()] = "next_token"
    """`next_token`: the cross-entropy of every trained token. `internevo.align.dpo:DPO` learns from pairs which answers
    are preferred."""
    options: dict[str, Any] = field(default_factory=dict)
    """For a kind other than `next_token`: what it asks for."""


@dataclass
class LoraConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685) on the frozen weights that `train.init_from` names. Only they learn,
    and checkpoints hold nothing else."""

    rank: Annotated[int, Between(0, 2**16)] = 0
    """Rows of the first factor, columns of the second; 0 trains the whole model instead."""
    alpha: Annotated[float, Between(0, 10**6, open_below=True)] = 32.0
    """What an adapter adds is scaled by `alpha / rank`."""
    targets: list[str] = field(default_factory=lambda: ["all"])
    """The matrices of the blocks that get an adapter: of `wq`, `wk`, `wv`, `wo`, `gate`, `up` and `down`, or what parts
    of your own call theirs. `[all]`: every one. Embedding and output head have none."""
    dropout: Share = 0.0
    """0; any other value is refused: no mask is built yet that would be the same under every layout."""


@dataclass
class TrainConfig:
    """What one step is, and how long the stage lasts."""

    tokens: Annotated[int | None, Between(1, 10**15)] = None
    """Length of the stage in tokens, rounded up to whole steps. Give this or `steps`."""
    steps: Annotated[int | None, Between(1, 10**9)] = None
    """Length of the stage in optimizer steps. Give this or `tokens`."""
    seq_len: Annotated[int, Between(2, 2**30)] = 4096
    """Tokens in a row. Documents are packed into rows; attention never crosses a document's border."""
    batch_tokens: SomeTokens = 4_000_000
    """Tokens per optimizer step, over all ranks: `batch_tokens // seq_len` rows."""
    batch_ramp: list[BatchLeg] = field(default_factory=list)
    """Smaller batches at the beginning of the stage, `[{until: 9B, batch_tokens: 1M}, {until: 20B, batch_tokens: 2M}]`,
    and `train.batch_tokens` from there on. Schedules count steps, whatever their size."""
    micro_batch: Size = 1
    """Rows that one rank runs at a time; gradients accumulate over the rest of the step."""
    precision: Annotated[Precision, Instead(_OTHER_PRECISIONS)] = "bf16"
    """`bf16`: compute in bfloat16, weights, gradients and optimizer state in fp32. `fp32`: all in fp32."""
    recompute: Literal["none", "selective", "full", "budget"] = "none"
    """What the backward pass recomputes. `none`: nothing, all activations are kept. `selective`: all but attention and
    matrix products. `full`: each block, from its input. `budget`: as little as fits into `activation_gib`, block by
    block."""
    activation_gib: Annotated[float, Between(0, 10**6)] = 0.0
    """With `recompute: budget`: GiB that the blocks' kept activations may take on each GPU."""
    compile: bool = False
    """Compile each block, and the passes over the logits, with torch.compile."""
    compile_mode: Literal["default", "max-autotune-no-cudagraphs", "reduce-overhead"] = "default"
    """torch.compile's mode: `default`, `max-autotune-no-cudagraphs` (tries more kernels, starts later) or
    `reduce-overhead` (CUDA graphs)."""
    attention: Literal["auto", "varlen", "flash", "flex", "sdpa"] = "auto"
    """The attention kernel. `auto` picks for device, precision and head size. `varlen`: torch's flash attention for
    documents of varying length, with FlashAttention 3 or 4 behind it where installed. `flash`: the flash-attn packages.
    `flex`: FlexAttention. `sdpa`: torch's attention, run by run of equally long documents; everywhere."""
    loss: Literal["auto", "chunked", "torch", "liger", "plain"] = "auto"
    """How output head and cross-entropy are computed. `auto` and `chunked`: ours, the logits of a part of the tokens at
    a time. `torch`: torch's linear_cross_entropy. `liger`: Liger-Kernel. `plain`: all logits at once."""
    average: Literal["token", "message", "conversation"] = "token"
    """What counts alike in a step's loss: every trained token, every message (trained tokens side by side), or every
    conversation (a document; an unmasked text too). Exact over the whole step, whatever the layout."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """See `train.objective`."""
    fp8: Literal["none", "tensorwise", "rowwise"] = "none"
    """Matrix products in FP8, by torchao: `none`, `tensorwise` (one scale a tensor, fastest) or `rowwise` (one a row,
    more exact)."""
    init_from: str | None = None
    """Where the weights come from, instead of from `seed`: a Hugging Face folder, an import or another run. Its shape
    must be `model`'s; `rope` may differ. Only the run's first step reads it, and the optimizer
    begins anew."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """See `train.lora`."""
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Instead(dict.fromkeys(("gpu", "GPU", "nvidia"), "is called cuda here"))
    ] = "auto"
    """`auto` (a GPU if there is one), `cpu` or `cuda`."""
    seed: Seed = 1234
    """Seeds the initial weights and the order of the data."""
    max_skipped: Annotated[int, Between(1, 10**9)] = 10
    """Stop after this many steps in a row whose loss or gradient was not finite. Such a step changes nothing
    and is counted as `skipped`."""


@dataclass
class PipelineConfig:
    """Pipeline parallelism: consecutive groups of blocks on different ranks."""

    size: Size = 1
    """Ranks in one pipeline."""
    schedule: Literal["1f1b", "interleaved", "zbv"] = "1f1b"
    """The order of micro-batches: `1f1b` (one part of the model a rank), `interleaved` (two parts a rank or more, a
    smaller bubble) or `zbv` (two parts a rank, backward passes split so that hardly any bubble is left; arXiv
    2401.10241). With `train.recompute`, `train.compile`, `train.fp8` or ZeRO 3, `zbv` does not split them and has a
    bubble between those of the other two."""
    parts: Annotated[int | None, Between(1, 2**10)] = None
    """Parts of the model on each rank: with `interleaved` two or more, of which more make the bubble smaller and send
    more. As few as the schedule has when absent."""


@dataclass
class ContextConfig:
    """Context parallelism: one row's tokens spread over ranks."""

    size: Size = 1
    """Ranks that share a row: `ulysses` times a ring of the rest."""
    ulysses: Any = "auto"
    """How many of them exchange tokens for heads (Ulysses); the rest form a ring. `auto` takes as many as the heads of
    a rank can be shared by."""


@dataclass
class OffloadConfig:
    """Where what does not fit the GPU is kept: `none` (on the GPU), `cpu` (host memory) or `nvme` (a disk)."""

    optimizer: Literal["none", "cpu", "nvme"] = "none"
    """The fp32 weights and the optimizer state; the update is then made on the CPU. `cpu` goes with both engines and,
    with `fsdp`, with every layout; `nvme` with `deepspeed` and zero stage 3."""
    parameters: Literal["none", "cpu", "nvme"] = "none"
    """`deepspeed` with zero stage 3 only: the weights that the passes use. With `fsdp` and zero stage 3 these are made
    from the fp32 weights, wherever they are, and are kept nowhere."""
    path: str | None = None
    """A folder on a local NVMe disk, for `nvme`."""


@dataclass
class ZeroConfig:
    """Sharding of optimizer state, gradients and weights over data-parallel ranks."""

    stage: Annotated[int, Between(0, 3)] = 1
    """0 replicates everything; 1 shards the optimizer state and communicates once a step; 2 keeps gradients sharded
    between micro-batches too; 3 also the weights, which are gathered block by block."""
    shard: Annotated[int, Between(-1, 2**20)] = -1
    """Ranks that share one copy of the sharded state; the rest repeat it (hybrid ZeRO). -1 is all of them."""
    engine: Literal["fsdp", "deepspeed"] = "fsdp"
    """`fsdp`: torch's own sharding, for every layout. `deepspeed`: DeepSpeed (an extra), for data-parallel ranks only,
    where the state of a model fits neither the GPUs nor host memory: see `parallel.zero.offload`."""
    offload: OffloadConfig = field(default_factory=OffloadConfig)
    """See `parallel.zero.offload`."""


@dataclass
class ParallelConfig:
    """How the run is laid out over ranks. Data parallelism takes what the other sizes leave."""

    tensor: Size = 1
    """Ranks that share each matrix."""
    asynchronous: bool = False
    """Let torch's compiler overlap the messages of tensor parallelism with the matrix products beside them (async
    tensor parallelism). Needs `train.compile` and GPUs that reach each other's memory."""
    sequence: bool = True
    """Whether ranks that share matrices also share out each row's tokens between the matrix products (sequence
    parallelism): less memory for the same number of bytes sent."""
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    """See `parallel.pipeline`."""
    context: ContextConfig = field(default_factory=ContextConfig)
    """See `parallel.context`."""
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    """See `parallel.zero`."""


@dataclass
class CheckpointConfig:
    """When a run is saved, and how much of it is kept."""

    every: Steps = 500
    """Steps between checkpoints; each stage's last step is always saved. 0 saves only those."""
    keep: Annotated[int, Between(0, 10**9)] = 3
    """How many of the newest checkpoints to keep beside those at the end of a stage, which stay. 0 keeps all."""
    asynchronous: bool = True
    """Write in the background while training continues, from a copy of the state in host memory."""


@dataclass
class ProfileConfig:
    """A trace of some steps, where each step's time goes, and a memory snapshot: into `RUN/profile/`."""

    first: Steps = 0
    """The first step of the run to profile, counted from 1; 0 profiles none."""
    steps: Annotated[int, Between(1, 10**6)] = 3
    """How many."""


@dataclass
class WandbRunConfig:
    """What a run is called at Weights & Biases, and where it is. What is absent here is taken from wandb's own
    environment variables."""

    project: str | None = None
    """The project; WANDB_PROJECT or `internevo` when absent."""
    entity: str | None = None
    """The user or team that it belongs to; WANDB_ENTITY or the account's own when absent."""
    group: str | None = None
    """Runs of one group are shown together; WANDB_RUN_GROUP when absent, which a sweep sets to its name."""
    tags: list[str] = field(default_factory=list)
    """Words to find the run by; WANDB_TAGS when there are none."""
    name: str | None = None
    """What the run is called; the run's own name when absent."""


@dataclass
class MonitorConfig:
    """What is shown of a run, and where. `metrics.jsonl` always has every step."""

    every: Annotated[int, Between(1, 10**9)] = 1
    """Steps between console lines, and between points sent to wandb and TensorBoard."""
    wandb: bool = False
    """Send metrics to Weights & Biases; the run's address is shown when it begins."""
    wandb_run: WandbRunConfig = field(default_factory=WandbRunConfig)
    """See `monitor.wandb_run`."""
    tensorboard: bool = False
    """Write TensorBoard event files into `RUN/tensorboard/`."""
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    """See `monitor.profile`."""


BLOCK = 4096
"""Documents in a block, unless `data.block` says otherwise."""
MOST_IN_BLOCK = 2**20
"""The most that a block may hold."""
CACHE = "~/.cache/internevo"
"""Where copies of remote token stores go, unless `data.cache` says otherwise."""
Weight = Annotated[float, Between(0, 10**15)]


@dataclass
class SourceConfig:
    """One source of a mixture."""

    path: str = MISSING
    """A token store: a folder that `internevo data prepare` wrote, the path of a Megatron `.bin`/`.idx` pair without
    its ending, a `.ds` file, a `.npy` or `.bin` file that `internevo data index` knows, or a folder of `.ds` or `.npy`
    files. Each may be in object storage, named by a URL:
    `s3://bucket/tokens/web`."""
    weight: Weight = 1.0
    """This source's share of the tokens, relative to the other weights."""
    name: str | None = None
    """How metrics call it; the last part of `path` when absent. Letters and digits of any script and `- _ . +`; not
    `heldout`. Runs and stages are named by the same rule."""
    max_epochs: Annotated[int | None, Between(1, 10**6)] = None
    """How often the run may go through this source. Where its share of a stage would take it further, it gets as much
    less, spread over the stage, and the other sources share the rest by their weights."""
    min_tokens: Tokens = 0
    """Only documents with at least this many tokens, BOS and EOS included. Two sources may be parts of one store: for
    long rows, half the tokens from documents of up to 4,096 and half from longer ones."""
    max_tokens: Annotated[int | None, Between(1, 10**15)] = None
    """Only documents with at most this many tokens."""


@dataclass
class MixtureChange:
    """Other weights from a point within the stage on."""

    at: SomeTokens = MISSING
    """Where, in tokens of the stage; the first step that begins there or later has the new weights."""
    weights: dict[str, Weight] = field(default_factory=dict)
    """New weights by source name; sources that are not named keep theirs, 0 leaves one out."""


@dataclass
class DataConfig:
    """What the stage trains on."""

    sources: list[SourceConfig] = field(default_factory=list)
    """The mixture. Shares are exact in tokens at every step, within one row."""
    changes: list[MixtureChange] = field(default_factory=list)
    """Changes of the mixture within the stage: `[{at: 100B, weights: {code: 0.5}}]`. Shares are counted anew from each
    on."""
    accept: str | None = None
    """A run does not resume when its tokenizer, its token stores or the current stage's mixture are not those that it
    was saved with. It tells what changed, and the word that, here, lets it resume with exactly this change."""
    cache: str = CACHE
    """The folder that remote token stores are copied into, once for each machine; on its fastest disk if possible."""
    packing: Literal["best_fit", "concat"] = "best_fit"
    """How documents fill rows: `best_fit` cuts only documents longer than a row; `concat` joins and cuts.
    In both, the last row of a block may be partly padding."""
    block: Annotated[int, Between(1, MOST_IN_BLOCK)] = BLOCK
    """Documents that are packed together, a block. Where rows hold many of them, larger blocks pad less; smaller
    ones start a run faster. Neither a stage nor a run that has begun can change it."""
    eval_tokens: Tokens = 1_000_000
    """Held-out tokens per source to evaluate at the start and end of a stage; 0 turns evaluation off."""
    eval_every: Steps = 0
    """Steps between further evaluations, within a stage; 0: none. `internevo eval RUN --watch` evaluates beside
    training instead of within it."""


@dataclass
class StageConfig:
    """One stage, resolved: the whole tree as this stage sees it."""

    name: str = "train"
    """Names the stage in metrics, checkpoints and the report."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """See `model`."""
    tokenizer: str | None = None
    """A SentencePiece `.model` file, a `tokenizer.json` or a Hugging Face tokenizer folder. Exports carry it;
    `generate` and `serve` need it. Training only compares it with the one that the token stores were made with."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """See `optimizer`."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """See `schedule`."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """See `train`."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """See `parallel`."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """See `checkpoint`."""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """See `monitor`."""
    data: DataConfig = field(default_factory=DataConfig)
    """See `data`."""


@dataclass
class RunConfig(StageConfig):
    """The file a team writes. A stage inherits every key and may change all but `model`'s shape, `tokenizer`,
    `optimizer.name`, `train.seed`, `train.init_from`, `train.lora` and `data.block`."""

    name: str = MISSING
    """Names the run and its folder."""
    runs: str = "runs"
    """The folder that holds run folders; this run's is `runs/name`."""
    stages: list[StageConfig] = field(default_factory=list)
    """The stages in order, each the same tree with some keys changed. Without any, the run is one stage made of
    the tree itself."""
