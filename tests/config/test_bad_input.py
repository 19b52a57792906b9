"""Everything a person can get wrong in a config: one clear message that names the key, and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from internevo.config.load import load_config
from internevo.config.read import ConfigError
from internevo.launch.sweep import read_sweep
from internevo.refine.config import load_refinery
from tests.tokens.stores import numbered, write_store

GOOD = """
name: run
model: {preset: tiny}
train: {seq_len: 64, batch_tokens: 512, micro_batch: 4, steps: 10}
data: {sources: [{path: tokens/web}]}
"""
STAGED = """
name: run
model: {preset: tiny}
train: {seq_len: 64, batch_tokens: 512}
data: {sources: [{path: tokens/web}]}
stages:
  - {name: base, train: {steps: 10}}
  - {name: long, train: {steps: 10, seq_len: 128}}
"""

OVERRIDES = {
    # names
    "a typo in a key": ("train.seq_length=64", "train.seq_length: unknown key; did you mean seq_len?"),
    "a name of another framework": (
        "model.num_hidden_layers=3",
        "model.num_hidden_layers: unknown key; did you mean model.layers?",
    ),
    "an old name": ("model.ffn=3", "model.ffn: unknown key; did you mean model.feed_forward.width?"),
    "a typo in a section": ("optimiser.lr=1", "optimiser: unknown key; did you mean optimizer?"),
    "a key of another section": ("model.lr=1", "model.lr: unknown key; did you mean optimizer.lr?"),
    "a key without its section": ("lr=1e-3", "lr: unknown key; did you mean optimizer.lr?"),
    "a key whose section is a typo's neighbour": ("steps=9", "steps: unknown key; did you mean train.steps or monitor"),
    "a key of a part of a section": ("parallel.schedule=1f1b", "did you mean schedule or parallel.pipeline.schedule?"),
    "a key of a source": ("data.weight=1", "data.weight: unknown key; did you mean data.sources.NAME.weight?"),
    "a key that is everywhere": ("data.name=web", "data.name: unknown key; known are sources, changes"),
    "a source that is not there": (
        "data.sources.wob.weight=1",
        "override 'data.sources.wob.weight=1': there is no source 'wob'; did you mean web?",
    ),
    "a source's key that is not there": ("data.sources.web.wait=1", "data.sources[0].wait: unknown key; did you mean"),
    "a typo in a preset": (
        "model.preset=internlm-7b",
        "model.preset: unknown preset 'internlm-7b'; known are internlm2-1.8b, internlm2-7b,",
    ),
    "a typo in a choice": ("schedule.name=cosin", "schedule.name: unknown value 'cosin'; did you mean cosine?"),
    "an optimizer that is not there": ("optimizer.name=sgd", "optimizer.name: unknown value 'sgd'; known are adamw"),
    "a kernel that is not there": ("train.attention=xformers", "train.attention: unknown value 'xformers'"),
    "an unknown precision": ("train.precision=fp64", "train.precision: unknown value 'fp64'"),
    "a precision that would need a scaled loss": (
        "train.precision=fp16",
        "train.precision: fp16 has a range so small that the loss must be scaled, which is not done here; use bf16, "
        "which has fp32's range, or fp32 on a GPU without bf16",
    ),
    "a precision by another name": ("train.precision=bfloat16", "train.precision: bfloat16 is called bf16 here"),
    "a precision of another key": ("train.precision=fp8", "train.precision: fp8 is set by train.fp8, beside bf16"),
    "Adam without its W": ("optimizer.name=adam", "optimizer.name: adam is not offered; adamw is Adam with decoupled"),
    "a block of nothing": ("data.block=0", "data.block: must be at least 1, found 0"),
    "a block of everything": ("data.block=2000000", "data.block: must be at most 1,048,576, found 2,000,000"),
    "an unknown packer": ("data.packing=best-fit", "data.packing: unknown value 'best-fit'; did you mean best_fit?"),
    "a name that is no folder": ("name=a/b", "name: 'a/b' has '/'; use letters and digits of any script"),
    "a name that is hidden": ("name=.run", "name: '.run' must begin with a letter, a digit or _"),
    # speed and memory
    "a recomputation that is not there": ("train.recompute=some", "train.recompute: unknown value 'some'"),
    "a budget of nothing": (
        "train.recompute=budget",
        "train.activation_gib: goes with train.recompute=budget, found 0",
    ),
    "GiB without a budget": ("train.activation_gib=20", "found 20 with train.recompute=none"),
    "a mode of a compiler that is off": ("train.compile_mode=reduce-overhead", "needs train.compile=true"),
    "a loss that cannot share the vocabulary": (
        "train.loss=torch; parallel.tensor=2",
        "train.loss: torch runs without tensor and pipeline parallelism",
    ),
    "flex over ranks": ("train.attention=flex; parallel.context.size=2", "train.attention: flex cannot attend over"),
    "split weights in fp32": (
        "optimizer.state=split; train.precision=fp32",
        "optimizer.state: split is for train.precision=bf16, found fp32",
    ),
    "split weights under Lion": (
        "optimizer.state=bf16; optimizer.name=lion",
        "optimizer.name adamw or muon, found lion",
    ),
    "momentum of one": ("optimizer.momentum=1", "optimizer.momentum: must be below 1, found 1"),
    "asynchronous and uncompiled": ("parallel.asynchronous=true", "parallel.asynchronous: needs train.compile=true"),
    "Muon under DeepSpeed": (
        "optimizer.name=muon; parallel.zero.engine=deepspeed; parallel.zero.stage=2",
        "optimizer.name: must be adamw with the engine deepspeed, found muon",
    ),
    "a profile of no steps": ("monitor.profile={first: 3, steps: 0}", "monitor.profile.steps: must be at least 1"),
    # types
    "text for a number": ("train.seq_len=long", "train.seq_len: expected a whole number (4096, 4M), found 'long'"),
    "a share for a count": ("train.micro_batch=1.5", "train.micro_batch: expected a whole number"),
    "a count in pieces": ("train.steps=10.5", "it is not whole"),
    "a number for a switch": ("monitor.wandb=1", "monitor.wandb: expected true or false, found 1"),
    "text for a switch": ("monitor.wandb=maybe", "monitor.wandb: expected true or false, found 'maybe'"),
    "a switch for a number": ("optimizer.lr=true", "optimizer.lr: expected a number (0.1, 3e-4), found True"),
    "nothing for a number": ("optimizer.lr=", "optimizer.lr: expected a number (0.1, 3e-4), found nothing"),
    "a number for text": ("name=7", "name: expected text, found 7 (put it in quotes)"),
    "a list for a number": ("train.seq_len=[64]", "train.seq_len: expected a whole number"),
    "a value for a section": (
        "model=tiny",
        "model: expected a mapping with preset, hidden, layers, vocab, ..., found 'tiny'",
    ),
    "a section for a value": ("train.seq_len={a: 1}", "train.seq_len: expected a whole number"),
    "a path for a list": ("data.sources=tokens/web", "data.sources: expected a list, found 'tokens/web'"),
    "a path for a source": ("data.sources=[tokens/web]", "data.sources[0]: expected a mapping"),
    "infinity": ("optimizer.lr=inf", "optimizer.lr: expected a number (0.1, 3e-4), found 'inf' (it must be finite)"),
    "not a number": ("optimizer.eps=.nan", "optimizer.eps: expected a number"),
    # units
    "a section for a switch": ("monitor.wandb.project=x", "did you mean monitor.wandb_run.project?"),
    "a wrong unit": ("train.batch_tokens=4G", "unknown unit 'G'; known are K, M, B and T"),
    "a unit spelled out": ("train.batch_tokens=4 million", "unknown unit 'million'"),
    "a unit that leaves a fraction": ("train.steps=1.2345K", "it is not whole"),
    # ranges
    "no learning rate": ("optimizer.lr=-1e-3", "optimizer.lr: must be at least 0, found -0.001"),
    "one beta": ("optimizer.betas=[0.9]", "optimizer.betas: must be two numbers, found [0.9]"),
    "a beta of one": ("optimizer.betas=[0.9, 1]", "optimizer.betas[1]: must be below 1, found 1"),
    "a percentage for a share": ("schedule.final=10", "schedule.final: must be at most 1, found 10"),
    "no decay for wsd": ("schedule.decay=0", "schedule.decay: must be above 0, found 0"),
    "rows of one token": ("train.seq_len=1", "train.seq_len: must be at least 2, found 1"),
    "no rows": ("train.micro_batch=0", "train.micro_batch: must be at least 1, found 0"),
    "a negative interval": ("checkpoint.every=-1", "checkpoint.every: must be at least 0, found -1"),
    "a fourth stage of ZeRO": ("parallel.zero.stage=4", "parallel.zero.stage: must be at most 3, found 4"),
    # sizes that do not fit together
    "heads that do not divide": (
        "model.attention.kv_heads=3",
        "model.attention.kv_heads: 4 heads cannot be shared evenly by 3 kv heads",
    ),
    "a width that heads do not divide": (
        "model.attention.heads=6",
        "model.attention.heads: hidden 64 is not divisible by 6 heads",
    ),
    "no heads": ("model.attention.heads=0", "model.attention.heads: must be at least 1, found 0"),
    "odd heads": (
        "model.attention.head_dim=15",
        "model.attention.head_dim: must be even for the rotary embedding, found 15",
    ),
    "a batch below a row": ("train.batch_tokens=63", "train.batch_tokens: 63 is less than one row of seq_len 64"),
    "rows that do not divide": ("train.micro_batch=3", "micro-batches of 3 cannot divide; near are 384 and 576"),
    "warmup without end": (
        "schedule.warmup=10",
        "schedule.warmup: must be shorter than the stage, which has 10 steps, found 10",
    ),
    "kv heads that ranks cannot share": (
        "model.attention={heads: 12, kv_heads: 3, head_dim: 8}; parallel.tensor=2",
        "2 ranks and model.attention.kv_heads 3: one must be a multiple of the other",
    ),
    "a context that rows cannot be shared by": ("parallel.context.size=3", "3 ranks cannot share rows of 64 tokens"),
    "a Ulysses that is no part": (
        "parallel.context={size: 2, ulysses: 4}",
        "auto or a divisor of parallel.context.size 2",
    ),
    "a Ulysses past the heads": ("parallel.context={size: 8, ulysses: 8}", "8 ranks cannot share 4 heads evenly"),
    "more stages than layers": ("parallel.pipeline.size=3", "parallel.pipeline.size: 2 layers cannot make 3 parts"),
    "a schedule that is not there": ("parallel.pipeline.schedule=gpipe", "unknown value 'gpipe'; known are 1f1b"),
    "a shard of no ranks": ("parallel.zero.shard=0", "parallel.zero.shard: must be at least 1, or -1 for all"),
    "a disk without DeepSpeed": (
        "parallel.zero.offload.optimizer=nvme",
        "parallel.zero.offload.optimizer: nvme needs parallel.zero.engine=deepspeed; fsdp has cpu",
    ),
    "weights off the GPU without DeepSpeed": (
        "parallel.zero.offload.parameters=cpu",
        "parallel.zero.offload.parameters: needs parallel.zero.engine=deepspeed",
    ),
    "DeepSpeed with a stage it lacks": (
        "parallel.zero={engine: deepspeed, stage: 1}",
        "parallel.zero.stage: the engine deepspeed has 2 and 3, found 1",
    ),
    "DeepSpeed over tensor ranks": (
        "parallel={tensor: 2, zero: {engine: deepspeed, stage: 3}}",
        "parallel.tensor: must be 1 with the engine deepspeed, found 2",
    ),
    "weights off the GPU, but not cut": (
        "parallel.zero={engine: deepspeed, stage: 2, offload: {parameters: cpu}}",
        "parallel.zero.offload.parameters: needs parallel.zero.stage 3, found 2",
    ),
    "a disk without a folder": (
        "parallel.zero={engine: deepspeed, stage: 3, offload: {optimizer: nvme}}",
        "parallel.zero.offload.path: name a folder on a local disk",
    ),
    "a place that is not there": (
        "parallel.zero={engine: deepspeed, stage: 3, offload: {optimizer: disk}}",
        "parallel.zero.offload.optimizer: unknown value 'disk'; known are",
    ),
    # length
    "both lengths": ("train.tokens=1M", None),  # the override displaces the file's steps
    "no step": ("train.steps=0", "train.steps: must be at least 1, found 0"),
    "no token": ("train.tokens=0", "train.tokens: must be at least 1, found 0"),
    # data
    "no data": ("data.sources=[]", "data.sources: the stage has no data; name at least one token store"),
    "no path": ("data.sources=[{weight: 1}]", "data.sources[0].path: missing"),
    "no weight": ("data.sources=[{path: tokens/web, weight: 0}]", "data.sources: all weights are 0"),
    "a weight below nothing": (
        "data.sources=[{path: tokens/web, weight: -1}]",
        "data.sources[0].weight: must be at least 0, found -1",
    ),
    "no epochs": (
        "data.sources=[{path: tokens/web, max_epochs: 0}]",
        "data.sources[0].max_epochs: must be at least 1, found 0",
    ),
    "half an epoch": (
        "data.sources=[{path: tokens/web, max_epochs: 0.5}]",
        "data.sources[0].max_epochs: expected a whole number",
    ),
    "lengths that exclude each other": (
        "data.sources=[{path: tokens/web, min_tokens: 9, max_tokens: 8}]",
        "data.sources[0].max_tokens: must be at least min_tokens 9, found 8",
    ),
    "a change of no source": (
        "data.changes=[{at: 1K, weights: {webb: 1}}]",
        "data.changes[0].weights: there is no source 'webb'; did you mean web?",
    ),
    "a change to nothing": (
        "data.changes=[{at: 1K, weights: {web: 0}}]",
        "data.changes[0].weights: all weights are 0 from there on",
    ),
    "a change to a word": (
        "data.changes=[{at: 1K, weights: {web: more}}]",
        "data.changes[0].weights.web: expected a number",
    ),
    "changes out of order": (
        "data.changes=[{at: 1K, weights: {web: 2}}, {at: 900, weights: {web: 1}}]",
        "data.changes[1].at: must be after 1,000, found 900",
    ),
    "a change behind the end": (
        "data.changes=[{at: 1M, weights: {web: 2}}]",
        "data.changes: the last is at 1,000,000 tokens; no step of the stage, which ends at 5,120, begins there",
    ),
    "a change in the last step": (
        "data.changes=[{at: 4700, weights: {web: 2}}]",
        "data.changes: the last is at 4,700 tokens; no step of the stage, which ends at 5,120, begins there",
    ),
    "a change without a place": ("data.changes=[{weights: {web: 2}}]", "data.changes[0].at: missing"),
    "a ramp of less than a row": (
        "train.batch_ramp=[{until: 1K, batch_tokens: 63}]",
        "train.batch_ramp[0].batch_tokens: 63 is less than one row of seq_len 64",
    ),
    "a ramp of broken micro-batches": (
        "train.batch_ramp=[{until: 1K, batch_tokens: 128}]",
        "train.batch_ramp[0].batch_tokens: 128 // seq_len 64 = 2 rows, which micro-batches of 4 cannot divide",
    ),
    "a ramp that goes back": (
        "train.batch_ramp=[{until: 2K, batch_tokens: 256}, {until: 1K, batch_tokens: 512}]",
        "train.batch_ramp: each part must end after the one before; they end at [2000, 1000]",
    ),
    "a missing store": ("data.sources=[{path: tokens/cod}]", "data.sources[0].path: there is no token store at"),
    "two of one name": ("data.sources=[{path: a/web}, {path: b/web}]", "two sources are called 'web'; give them"),
    "a missing tokenizer": ("tokenizer=no.model", "tokenizer: no.model does not exist"),
    # the override itself
    "no value": ("train.seq_len", "override 'train.seq_len': expected key=value, for example train.seq_len=8192"),
    "no key": ("=5", "override '=5': expected key=value"),
    "an empty key": ("train..seq_len=5", "expected key=value"),
    "broken YAML": ("train.seq_len=[5", "the value is not valid YAML"),
}

FILES = {
    "an empty file": ("", "is empty; a configuration is a mapping of keys to values"),
    "a list": ("- name: run", "holds a list; a configuration is a mapping of keys to values"),
    "a bare word": ("run", "holds a str; a configuration is a mapping of keys to values"),
    "broken YAML": ("name: [run\nmodel: {", "run.yaml:2:6: not valid YAML"),
    "tabs": ("name: run\n\tmodel: {}", "run.yaml:2:1: not valid YAML"),
    "a key twice": ("name: run\nname: walk", "not valid YAML"),
    "no name": (GOOD.replace("name: run", ""), "name: every run needs a name"),
    "no shape": (
        GOOD.replace("{preset: tiny}", "{hidden: 64, layers: 2}"),
        "model.vocab, model.attention.heads, model.attention.kv_heads, model.feed_forward.width",
    ),
    "no length": (GOOD.replace(", steps: 10", ""), "give the stage's length as one of them; neither is set"),
    "two lengths": (GOOD.replace("steps: 10", "steps: 10, tokens: 1M"), "one of them; both are set"),
    "a base that is missing": ("_base_: no.yaml\n" + GOOD, "its _base_"),
    "a base that is a number": ("_base_: 7\n" + GOOD, "_base_ must be a path or a list of paths, found 7"),
    "a base that is itself": ("_base_: run.yaml\n" + GOOD, "_base_ goes in a circle"),
    "an unknown interpolation": (GOOD + "runs: ${nothing}", "nothing"),
    "stages that are a mapping": (GOOD + "stages: {base: {}}", "stages: expected a list of stages"),
    "a stage without a name": (GOOD + "stages: [{train: {steps: 5}}]", "stages[0].name: every stage needs a name"),
    "a stage that is a word": (
        GOOD + "stages: [base]",
        "expected a mapping with name, model, tokenizer, optimizer, ..., found 'base'",
    ),
    "two stages of one name": (GOOD + "stages: [{name: a}, {name: a}]", "stages: two are called 'a'"),
    "a stage without a length": (STAGED.replace("{steps: 10}", "{}"), "stages.base.train.tokens, train.steps: give"),
    "a typo in a stage": (STAGED.replace("128}", "128, lr: 1}"), "stages.long.train.lr: unknown key"),
    "runs in a stage": (STAGED.replace("128}", "128}, runs: x"), "stages.long.runs: unknown key"),
    "a stage of another shape": (
        STAGED.replace("128}", "128}, model: {feed_forward: {width: 9}}"),
        "stages.long.model.feed_forward.width: a stage may",
    ),
    "a stage of another seed": (STAGED.replace("128}", "128, seed: 7}"), "stages.long.train.seed: a stage cannot"),
    "a stage of other blocks": (STAGED.replace("128}", "128}, data: {block: 8}"), "stages.long.data.block: a stage"),
    "a stage of other rows": (STAGED.replace("128}", "1024}"), "stages.long.train.batch_tokens: 512 is less than"),
    "a source that moves": (
        STAGED.replace("128}", "128}, data: {sources: [{path: other/web}]}"),
        "stages.long.data.sources: 'web' is other/web here and tokens/web in an earlier stage",
    ),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one token store."""
    write_store(tmp_path / "tokens" / "web" / "train", numbered([5]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def message(file: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    return str(caught.value)


def config(text: str) -> Path:
    file = Path("run.yaml")
    file.write_text(text, encoding="utf-8")
    return file


def test_the_good_ones_are_good() -> None:
    assert load_config(config(GOOD)).stages[0].train.steps == 10
    assert [stage.name for stage in load_config(config(STAGED)).stages] == ["base", "long"]


@pytest.mark.parametrize("case", OVERRIDES)
def test_a_bad_value(case: str) -> None:
    override, expected = OVERRIDES[case]
    if expected is None:
        assert load_config(config(GOOD), [override]).stages[0].train.steps is None
    else:
        assert expected in message(config(GOOD), *override.split("; "))


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file(case: str) -> None:
    text, expected = FILES[case]
    said = message(config(text))
    assert expected in said
    assert "run.yaml" in said


def test_files_that_cannot_be_read(here: Path) -> None:
    assert "no.yaml does not exist" in message(Path("no.yaml"))
    assert "tokens is a folder; give a YAML file" in message(Path("tokens"))
    Path("latin.yaml").write_bytes(b"name: caf\xe9")
    assert "latin.yaml is not UTF-8 text (byte 9)" in message(Path("latin.yaml"))


SWEEP = "config: run.yaml\ngrid: {optimizer.lr: [1e-3]}\n"
REFINERY = "name: web\ninput: [crawl]\nsteps: [rules]\n"


def test_a_file_of_another_verb_is_told_with_its_verb() -> None:
    """Each of the three kinds, given to the readers of the other two."""
    readers = {"run": load_config, "sweep": read_sweep, "refinery": load_refinery}
    verbs = {"run": "internevo train", "sweep": "internevo sweep", "refinery": "internevo data refine"}
    for kind, text in (("run", STAGED), ("sweep", SWEEP), ("refinery", REFINERY)):
        file = config(text)
        for wanted, read in readers.items():
            if wanted != kind:
                with pytest.raises(ConfigError) as caught:
                    read(file)
                assert str(caught.value) == f"run.yaml describes a {kind}, not a {wanted}: `{verbs[kind]} run.yaml`"


def test_configurations_of_others_are_told() -> None:
    Path("7B_sft.py").write_text("model = dict(num_layers=32)\n", encoding="utf-8")
    assert "7B_sft.py is Python, as InternEvo's own configurations are" in message(Path("7B_sft.py"))
    Path("config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}', encoding="utf-8")
    assert "config.json is the config.json of a Hugging Face model" in message(Path("config.json"))
    Path("runs").mkdir()
    Path("runs/config.yaml").write_text(GOOD, encoding="utf-8")
    assert message(Path("runs")) == "runs is a folder; give a YAML file; its own is runs/config.yaml"


def test_bases_in_a_circle_are_told_in_order() -> None:
    Path("a.yaml").write_text("_base_: b.yaml", encoding="utf-8")
    Path("b.yaml").write_text("_base_: a.yaml", encoding="utf-8")
    assert "a.yaml -> " in message(Path("a.yaml"))


def test_all_mistakes_are_told_at_once() -> None:
    said = message(config(GOOD), "train.seq_length=5", "optimizer.lr=fast", "model.preset=tny")
    for part in ("train.seq_length", "optimizer.lr", "model.preset: unknown preset 'tny'; known are"):
        assert part in said


def test_a_mistake_that_all_stages_share_is_told_once() -> None:
    said = message(config(STAGED), "optimizer.betas=[0.9]")
    assert said.count("optimizer.betas") == 1
    assert "stages." not in said


def test_an_override_that_every_stage_hides() -> None:
    said = message(config(STAGED), "train.steps=7")
    assert "every stage sets it. Name the stage: stages.base.train.steps=7" in said
    assert "there is no stage 'bas'; did you mean base?" in message(config(STAGED), "stages.bas.train.steps=7")
