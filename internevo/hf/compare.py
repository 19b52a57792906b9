"""The proof of a conversion: our model and transformers' compute the same, layer by layer.

Both run over the same tokens with one part's weights in memory at a time, in fp32, so that a model of any size can be
checked on any machine. Transformers' side reads the Hugging Face folder by its own names: no table of ours takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internevo.config.errors import UserError
from internevo.config.schema import ModelConfig
from internevo.hf.config_json import read_facts
from internevo.hf.families import FAMILIES
from internevo.hf.files import TensorFiles
from internevo.hf.tokenizer_files import quiet_transformers
from internevo.hf.weights import Weights
from internevo.model.documents import Documents
from internevo.model.transformer import Transformer

TOLERANCE = 1e-4
"""Largest difference of logits in fp32, as a share of the largest logit where that is above one."""
_WRONG = 1e-3
"""A layer whose output differs by this share of its size is wrong; rounding makes less."""

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

    _run_theirs(folder, tokens, check)
    allowed = TOLERANCE * max(1.0, ours[-1][1].abs().max().item())
    if not difference <= allowed:
        first = f"the first part to differ is {wrong[0]}" if wrong else "no part by itself is far off"
        raise Mismatch(f"logits differ by {difference:.2e}, {allowed:.0e} is allowed; {first}")
    return Comparison(tokens.shape[1], difference)


def _run_ours(
    weights: Weights,
    config: ModelConfig,
    tokens: Tensor,
    dtype: torch.dtype | None,
    seen: Seen,
) -> None:
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


def _run_theirs(folder: Path, tokens: Tensor, seen: Seen) -> None:
    files, facts = TensorFiles(folder), read_facts(folder)
    with quiet_transformers():
        kind = _transformers_class(FAMILIES[facts.family].architecture)
        config = kind.config_class.from_pretrained(folder)
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            model = kind(config).eval()
        for name, module in list(model.named_modules()):
            if "inv_freq" in module._buffers:  # not a weight: computed from the configuration
                model.set_submodule(name, type(module)(config))
    paths = {id(module): name for name, module in model.named_modules()}
    head = paths[id(model.get_output_embeddings())]
    modules: list[tuple[str, Any]] = [
        ("the embedding", model.get_input_embeddings()),
        *((f"layer {n}", layer) for n, layer in enumerate(model.model.layers)),
        ("the last norm", model.model.norm),
        ("the output head", model.get_output_embeddings()),
    ]
    parts = [(label, paths[id(module)], module) for label, module in modules]

    def read(name: str) -> Tensor:
        tied = facts.model.tied and name == f"{head}.weight"
        return files.read(f"{paths[id(model.get_input_embeddings())]}.weight" if tied else name)

    with _streamed(parts, read, seen):
        model(input_ids=tokens, use_cache=False)


def _transformers_class(name: str) -> Any:
    if name == "InternLM2ForCausalLM":
        from internevo.hf.internlm2.modeling_internlm2 import InternLM2ForCausalLM

        return InternLM2ForCausalLM
    import transformers

    return getattr(transformers, name)


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
