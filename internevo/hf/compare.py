"""The proof of a conversion: our model and transformers' compute the same, layer by layer.

Both run over the same tokens in fp32. transformers loads the Hugging Face folder as a user would, by `from_pretrained`:
no table and no reader of this package takes part, and a tensor that it does not use is a mismatch. Our side has one
part's weights in memory at a time. So has transformers' where the whole model would need more than WHOLE_BYTES, so that
a model of any size can be checked on any machine; then its classes and names are used, but not its loading.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
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

TOLERANCE = 1e-4  # largest difference of logits in fp32, as a share of the largest logit where that is above one
_WRONG = 1e-3  # a layer whose output differs by this share of its size is wrong; rounding makes less

WHOLE_BYTES = 4 << 30  # size in fp32 up to which transformers loads the whole model

_SLICE = 8192  # rows of the output head that are in fp32 at a time

Parts = list[tuple[str, nn.Module]]  # the parts of a model that are compared, by their names for people
Seen = Callable[[str, Tensor], None]  # takes what a part put out


class Mismatch(UserError):
    """The two models do not compute the same."""


@dataclass(frozen=True)
class Comparison:
    tokens: int
    difference: float  # the largest difference between two logits
    streamed: bool  # whether transformers' model was too large to be loaded whole

    def __str__(self) -> str:
        how = f"; over {WHOLE_BYTES >> 30} GiB, so transformers' side read one layer at a time" if self.streamed else ""
        return f"logits on {self.tokens} tokens differ from transformers' by at most {self.difference:.1e}{how}"


@torch.no_grad()
def compare(
    weights: Weights, config: ModelConfig, folder: Path, tokens: Tensor, dtype: torch.dtype | None = None
) -> Comparison:
    """Run our model with `weights`, rounded to `dtype`, and the model of the Hugging Face `folder` over `tokens`.

    tokens: integers `[1, seq]`. Raises Mismatch, which names the first wrong part, for logits further than TOLERANCE.
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

    def read(name: str) -> Tensor:
        return weights.read("embed.weight" if config.tied and name == "head.weight" else name, dtype)

    parts = _parts(model.embed, model.blocks, model.norm, model.head)
    _stream(model, parts, read)
    _show(parts, seen)
    length = tokens.shape[1]
    model(tokens, torch.arange(length)[None], Documents.of([length]))


def _run_theirs(folder: Path, tokens: Tensor, seen: Seen) -> bool:
    """Let transformers compute; whether its model was streamed."""
    files = TensorFiles(folder)
    streamed = 4 * sum(files.view(name).numel() for name in files.where) > WHOLE_BYTES
    unread = set(files.where)
    with quiet_transformers():
        model = _open_streamed(folder, files, unread) if streamed else _load_whole(folder)
        _show(_parts_of_theirs(model), seen)
        model(input_ids=tokens, use_cache=False)
    if streamed:
        _refuse(folder, "does not use", unread)
    return streamed


def _load_whole(folder: Path) -> Any:
    """The model as a user loads it, in fp32. Raises Mismatch unless it took every stored tensor and missed none."""
    with _refusals(folder):
        model, info = _transformers_class(folder).from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True, trust_remote_code=False
        )
    _refuse(folder, "does not find", info["missing_keys"])
    _refuse(folder, "does not use", info["unexpected_keys"])
    _refuse(folder, "finds in another shape", [one[0] for one in info["mismatched_keys"]])
    return model.eval()


def _open_streamed(folder: Path, files: TensorFiles, unread: set[str]) -> Any:
    """The same with one part's weights in memory at a time, read by transformers' own names and taken off `unread`."""
    from transformers import AutoConfig

    kind = _transformers_class(folder)
    with _refusals(folder):
        config = (getattr(kind, "config_class", None) or AutoConfig).from_pretrained(folder, trust_remote_code=False)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = getattr(kind, "from_config", kind)(config).eval()
    for name, module in list(model.named_modules()):
        if "inv_freq" in module._buffers:  # not a weight: computed from the configuration
            model.set_submodule(name, type(module)(config))
    paths = {module: name for name, module in model.named_modules()}
    head, embed = (f"{paths[one]}.weight" for one in (model.get_output_embeddings(), model.get_input_embeddings()))

    def read(name: str) -> Tensor:
        if name == head and name not in files.where and config.tie_word_embeddings:
            name = embed
        _refuse(folder, "does not find", {name} - files.where.keys())
        unread.discard(name)
        return files.read(name)

    _stream(model, _parts_of_theirs(model), read)
    return model


@contextmanager
def _refusals(folder: Path) -> Iterator[None]:
    """Within, an error of whichever class is a Mismatch: nobody else can load the folder either."""
    try:
        yield
    except Exception as error:
        raise Mismatch(f"transformers cannot load {folder}: {error}") from None


def _refuse(folder: Path, what: str, names: Iterable[str]) -> None:
    """Raise Mismatch for weights with which transformers does something else than ours."""
    if weights := sorted(name for name in names if not NO_WEIGHTS.search(name)):
        raise Mismatch(f"transformers {what} {', '.join(weights[:5])} in {folder}")


def _parts(embed: nn.Module, layers: Iterable[nn.Module], norm: nn.Module, head: nn.Module) -> Parts:
    numbered = ((f"layer {n}", layer) for n, layer in enumerate(layers))
    return [("the embedding", embed), *numbered, ("the last norm", norm), ("the output head", head)]


def _parts_of_theirs(model: Any) -> Parts:
    return _parts(model.get_input_embeddings(), model.model.layers, model.model.norm, model.get_output_embeddings())


def _transformers_class(folder: Path) -> Any:
    """What reads the folder. No code of the folder's is ever run: InternLM2 is the class that our exports ship."""
    if json.loads((folder / "config.json").read_bytes())["model_type"] == "internlm2":
        from internevo.hf.internlm2.modeling_internlm2 import InternLM2ForCausalLM

        return InternLM2ForCausalLM
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM


def _show(parts: Parts, seen: Seen) -> None:
    """Let `seen` have what each part puts out, in fp32."""

    def watch(label: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda module, given, out: seen(label, out[0] if isinstance(out, tuple) else out))

    for label, module in parts:
        watch(label, module)


def _stream(model: nn.Module, parts: Parts, read: Callable[[str], Tensor]) -> None:
    """Let each part of a model on the meta device have its weights only while it runs.

    They are fp32 then, but those of embedding and head, the largest, which are computed with in fp32 in slices.
    """
    paths = {module: name for name, module in model.named_modules()}

    def fill(module: nn.Module, given: Any) -> None:
        for name, _ in list(module.named_parameters()):
            weight = read(f"{paths[module]}.{name}")
            _set(module, name, weight if isinstance(module, nn.Linear | nn.Embedding) else weight.float())

    def empty(module: nn.Module, given: Any, out: Any) -> Any:
        for name, _ in list(module.named_parameters()):
            _set(module, name, torch.empty(0, device="meta"))
        return out.float() if isinstance(out, Tensor) else out

    for _, module in parts:
        if isinstance(module, nn.Linear):
            module.forward = partial(_linear_in_slices, module)  # type: ignore[method-assign]
        module.register_forward_pre_hook(fill)
        module.register_forward_hook(empty)


def _linear_in_slices(module: nn.Linear, x: Tensor) -> Tensor:
    """What the layer computes, in fp32, with some of its rows at a time."""
    return torch.cat([F.linear(x, rows.float()) for rows in module.weight.split(_SLICE)], dim=-1)


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, nn.Parameter(value, requires_grad=False))
