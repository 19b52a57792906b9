"""Small models for tests of conversions: ours, and transformers' own with weights that no default hides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from internevo.config.presets import model_preset
from internevo.hf.internlm2.modeling_internlm2 import InternLM2ForCausalLM
from internevo.model.documents import Documents
from internevo.model.initial import init_weights
from internevo.model.transformer import Transformer

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3_ROPE = {
    "rope_theta": 500000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_theta": 1000000.0,
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}

# name: transformers' class, and what its configuration says beside SIZES
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "internlm2": (InternLM2ForCausalLM, {"rope_theta": 1e6}),
    "llama 2": (transformers.LlamaForCausalLM, {"num_key_value_heads": 4}),
    "llama 3": (transformers.LlamaForCausalLM, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
    "llama 3.1": (transformers.LlamaForCausalLM, {"rope_parameters": LLAMA3_ROPE}),
    "llama 3.2": (transformers.LlamaForCausalLM, {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama, linear scaling": (
        transformers.LlamaForCausalLM,
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}},
    ),
    "mistral": (transformers.MistralForCausalLM, {"sliding_window": None, "head_dim": 32}),
    "qwen2": (transformers.Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen2.5": (transformers.Qwen2ForCausalLM, {"rope_parameters": YARN_ROPE}),
    "qwen3": (transformers.Qwen3ForCausalLM, {"head_dim": 32}),
    "qwen3, tied": (transformers.Qwen3ForCausalLM, {"head_dim": 16, "tie_word_embeddings": True}),
}


def their_model(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model of transformers, all of whose weights are random: norms and biases do not pass by being one and zero."""
    kind, settings = MODELS[name]
    torch.manual_seed(0)
    model = kind(kind.config_class(**{**SIZES, **settings, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / (4 if parameter.ndim == 1 else 30))
    return model.to(dtype).eval()


def save_theirs(name: str, folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """The same, saved by transformers itself."""
    model = their_model(name, dtype, **changes)
    model.save_pretrained(folder)
    return model


class ModelWeights:
    """The weights of a model in memory."""

    def __init__(self, model: Transformer):
        self.state = model.state_dict()

    def dtype(self, name: str) -> torch.dtype:
        return self.state[name].dtype

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        return self.state[name].to(dtype or self.dtype(name))

    def fill(self, into: Mapping[str, Tensor], group: object) -> None:
        for name, tensor in into.items():
            tensor.copy_(self.state[name])


def our_model(seed: int = 0, **changes: Any) -> Transformer:
    """A tiny model of ours with random norms and biases."""
    model = Transformer(model_preset("tiny", **changes))
    init_weights(model, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) / 4)
    return model


@torch.no_grad()
def our_logits(model: Transformer, tokens: Tensor) -> Tensor:
    """Logits of whole rows."""
    batch, seq = tokens.shape
    return model(tokens, torch.arange(seq).expand(batch, seq), Documents.of([seq] * batch))


TOKENS = torch.randint(0, 512, (2, 200), generator=torch.Generator().manual_seed(0))
