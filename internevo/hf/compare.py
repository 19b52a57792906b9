"""The proof of a conversion: our model and transformers' compute the same, layer by layer.

Both run over the same tokens in fp32. transformers loads the Hugging Face folder as a user would, by `from_pretrained`:
no table and no reader of this package takes part, and a tensor that it does not use is a mismatch. Our side has one
part's weights in memory at a time. So has transformers' where the whole model would need more than WHOLE_BYTES, so that
a model of any size can be checked on any machine; then its classes and names are used, but not its loading.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internevo.config.schema import ModelConfig
from internevo.files.errors import UserError
from internevo.files.quiet import quiet_transformers
from internevo.hf.files import TensorFiles
from internevo.hf.weights import NO_WEIGHTS, Weights
from internevo.model.documents import Documents
from internevo.model.transformer import Transformer

TOLERANCE = 1e-4
"""Largest difference of logits in fp32, as a share of the largest logit where that is above one."""
_WRONG = 1e-3
"""A layer whose output differs by this share of its size is wrong; rounding makes less."""

WHOLE_BYTES = 4 << 30
"""Size in fp32 up to which transformers loads the whole model."""

_SLICE = 8192
"""Rows of the output head that are in fp32 at a time."""

Seen = Callable[[str, Tensor], None]
"""Takes what a part of the model, by its name for people, put out."""


class Mismatch(UserError):
    """The two models do not compute the same."""


@dataclass(frozen=True)
class Comparison:
    """How far apart the two are."""

    tokens: int
    difference: float
    """The largest difference between two logits."""
    streamed: bool
    """Whether transformers' model was too large to be loaded whole."""

    def __str__(self) -> str:
        how = f"; over {WHOLE_BYTES >> 30} GiB, so transformers' side read one layer at a time" if self.streamed else ""
        return f"logits on {self.tokens} tokens differ from transformers' by at most {self.difference:.1e}{how}"


@torch.no_grad()
def compare(
    weights: Weights, config: ModelConfig, folder: Path, tokens: Tensor, dtype: torch.dtype | None = None
) -> Comparison:
    """Run our model with `weights`, rounded to `dtype`, and the model of the Hugging Face `folder` over `tokens`.

    tokens: integers `[1, seq]`. Raises Mismatch when logits differ by more than TOLERANCE; it names the first part of
    the model that came out wrong.
    """
    ours: list[tuple[str, Tensor]] = []
    _run_ours(weights, config, tokens, dtype, lambda name, out: ours.append((name, out)))
    wrong: list[str] = []
    expected = iter(ours)
    difference = 0.0

    def check(name: str, theirs: Tensor) -> None:
        nonlocal difference
        known, mine = next(expected)
        assert known == name
        share = ((mine - theirs).norm() / theirs.norm().clamp(min=1e-30)).item()
        if not share <= _WRONG:
            wrong.append(f"{name} (by {share:.1%} of its size)")
        difference = (mine - theirs).abs().max().item()

    streamed = _run_theirs(folder, tokens, check)
    allowed = TOLERANCE * max(1.0, ours[-1][1].abs().max().item())
    if not difference <= allowed:
        first = f"the first part to differ is {wrong[0]}" if wrong else "no part by itself is far off"
        raise Mismatch(f"logits differ by {difference:.2e}, {allowed:.0e} is allowed; {first}")
    return Comparison(tokens.shape[1], difference, streamed)


def _run_ours(weights: Weights, config: ModelConfig, tokens: Tensor, dtype: torch.dtype | None, seen: Seen) -> None:
    with torch.device("meta"):
        model = Transformer(config)
    parts: list[tuple[str, str, nn.Module]] = [
        ("the embedding", "embed", model.embed),
        *((f"layer {n}", f"blocks.{n}", block) for n, block in enumerate(model.blocks)),
        ("the last norm", "norm", model.norm),
        ("the output head", "head", model.head),
    ]

    def read(name: str) -> Tensor:
        return weights.read("embed.weight" if config.tied and name == "head.weight" else name, dtype)

    length = tokens.shape[1]
    with _streamed(parts, read, seen):
        model(tokens, torch.arange(length)[None], Documents.of([length]))


def _run_theirs(folder: Path, tokens: Tensor, seen: Seen) -> bool:
    """Let transformers compute; whether its model was streamed."""
    files = TensorFiles(folder)
    nbytes = sum(torch.Size(files.shape(name)).numel() * 4 for name in files.where)
    with quiet_transformers():
        if nbytes > WHOLE_BYTES:
            _run_streamed(folder, files, tokens, seen)
            return True
        model = _load_whole(folder)
        handles = [
            module.register_forward_hook(
                lambda module, arguments, out, label=label: seen(label, out[0] if isinstance(out, tuple) else out)
            )
            for label, module in _parts(model)
        ]
        model(input_ids=tokens, use_cache=False)
        for handle in handles:
            handle.remove()
    return False


def _load_whole(folder: Path) -> Any:
    """The model as a user loads it, in fp32. Raises Mismatch unless it took every stored tensor and missed none."""
    kind = _transformers_class(folder)
    try:
        model, info = kind.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:  # of whichever class: nobody else can load it either
        raise Mismatch(f"transformers cannot load {folder}: {error}") from None
    for what, names in (
        ("does not find", info["missing_keys"]),
        ("does not use", [name for name in info["unexpected_keys"] if not NO_WEIGHTS.search(name)]),
        ("finds in another shape", [one[0] for one in info["mismatched_keys"]]),
    ):
        if names:
            raise Mismatch(f"transformers {what} {', '.join(sorted(names)[:5])} in {folder}")
    return model.eval()


def _run_streamed(folder: Path, files: TensorFiles, tokens: Tensor, seen: Seen) -> None:
    """The same with one part's weights in memory at a time, read by transformers' own names."""
    kind = _transformers_class(folder)
    from transformers import AutoConfig

    reader = getattr(kind, "config_class", None) or AutoConfig
    try:
        config = reader.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise Mismatch(f"transformers cannot load {folder}: {error}") from None
    config._attn_implementation = "sdpa"
    build = getattr(kind, "from_config", kind)
    with torch.device("meta"):
        model = build(config).eval()
    for name, module in list(model.named_modules()):
        if "inv_freq" in module._buffers:  # not a weight: computed from the configuration
            model.set_submodule(name, type(module)(config))
    paths = {id(module): name for name, module in model.named_modules()}
    embed, head = (paths[id(one)] for one in (model.get_input_embeddings(), model.get_output_embeddings()))
    read: set[str] = set()

    def read_weight(name: str) -> Tensor:
        if name == f"{head}.weight" and name not in files.where and config.tie_word_embeddings:
            name = f"{embed}.weight"
        if name not in files.where:
            raise Mismatch(f"transformers does not find {name} in {folder}")
        read.add(name)
        return files.read(name)

    with _streamed([(label, paths[id(module)], module) for label, module in _parts(model)], read_weight, seen):
        model(input_ids=tokens, use_cache=False)
    if unread := sorted(name for name in files.where if name not in read and not NO_WEIGHTS.search(name)):
        raise Mismatch(f"transformers does not use {', '.join(unread[:5])} in {folder}")


def _parts(model: Any) -> list[tuple[str, Any]]:
    """The parts of transformers' model that are compared, by our names for people."""
    return [
        ("the embedding", model.get_input_embeddings()),
        *((f"layer {n}", layer) for n, layer in enumerate(model.model.layers)),
        ("the last norm", model.model.norm),
        ("the output head", model.get_output_embeddings()),
    ]


def _transformers_class(folder: Path) -> Any:
    """What reads the folder. No code of the folder's is ever run: InternLM2 is the class that our exports ship."""
    if json.loads((folder / "config.json").read_bytes())["model_type"] == "internlm2":
        from internevo.hf.internlm2.modeling_internlm2 import InternLM2ForCausalLM

        return InternLM2ForCausalLM
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM


@contextmanager
def _streamed(parts: list[tuple[str, str, nn.Module]], read: Callable[[str], Tensor], seen: Seen) -> Iterator[None]:
    """Let each part, (label, path, module on the meta device), have its weights only while it runs.

    Weights are fp32 then, but embedding and head, which are the largest: they stay as they are stored, and are computed
    with in fp32 a slice at a time. What a part puts out is shown to `seen`.
    """
    handles = []
    for label, path, module in parts:
        names = [name for name, _ in module.named_parameters()]
        large = isinstance(module, nn.Linear | nn.Embedding)
        if isinstance(module, nn.Linear):
            module.forward = partial(_linear_in_slices, module)  # type: ignore[method-assign]

        def fill(
            module: nn.Module, arguments: Any, path: str = path, names: list[str] = names, large: bool = large
        ) -> None:
            for name in names:
                weight = read(f"{path}.{name}")
                _set(module, name, weight if large else weight.float())

        def empty(module: nn.Module, arguments: Any, out: Any, label: str = label, names: list[str] = names) -> Any:
            out = out.float() if isinstance(out, Tensor) else out
            seen(label, out[0] if isinstance(out, tuple) else out)
            for name in names:
                _set(module, name, torch.empty(0, device="meta"))
            return out

        handles += [module.register_forward_pre_hook(fill), module.register_forward_hook(empty)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _linear_in_slices(module: nn.Linear, x: Tensor) -> Tensor:
    """What the layer computes, in fp32, with some of its rows at a time."""
    return torch.cat([F.linear(x, rows.float()) for rows in module.weight.split(_SLICE)], dim=-1)


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, nn.Parameter(value, requires_grad=False))
