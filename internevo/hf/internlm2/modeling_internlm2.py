"""InternLM2 (arXiv 2403.17297) for transformers, with the tensor names and the grouped `wqkv` of its release.

The architecture is Llama's, and so is every computation here, transformers' own; what differs is how weights are called
and that queries, keys and values come out of one matrix, kv head by kv head: first the query heads of the group, then
its key, then its value.
"""

from torch import nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
    LlamaRMSNorm,
)

from .configuration_internlm2 import InternLM2Config


class InternLM2Attention(LlamaAttention):
    """Llama's attention, whose three projections are parts of `wqkv`."""

    def __init__(self, config, layer_idx=None):
        super().__init__(config, layer_idx)
        del self.q_proj, self.k_proj, self.v_proj, self.o_proj
        self.kv_heads = config.num_key_value_heads
        heads = config.num_attention_heads
        self.wqkv = nn.Linear(config.hidden_size, (heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.wo = nn.Linear(heads * self.head_dim, config.hidden_size, bias=False)

    def _project(self, x, first, last):
        groups = self.wqkv.weight.view(self.kv_heads, -1, self.head_dim, x.shape[-1])
        return F.linear(x, groups[:, first:last].reshape(-1, x.shape[-1]))

    def q_proj(self, x):
        return self._project(x, 0, -2)

    def k_proj(self, x):
        return self._project(x, -2, -1)

    def v_proj(self, x):
        return self._project(x, -1, None)

    def o_proj(self, x):
        return self.wo(x)


class InternLM2MLP(nn.Module):
    """SwiGLU under the release's names: `w1` is the gate, `w3` goes up, `w2` down."""

    def __init__(self, config):
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class InternLM2DecoderLayer(LlamaDecoderLayer):
    """Llama's layer; its forward pass finds the parts under Llama's names through the properties."""

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        for name in ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm"):
            del self._modules[name]
        self.attention = InternLM2Attention(config, layer_idx)
        self.feed_forward = InternLM2MLP(config)
        self.attention_norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.ffn_norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __getattr__(self, name):
        theirs = {
            "self_attn": "attention",
            "mlp": "feed_forward",
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "ffn_norm",
        }
        return super().__getattr__(theirs.get(name, name))


class InternLM2Model(LlamaModel):
    """Embedding, layers and last norm."""

    config_class = InternLM2Config
    _no_split_modules = ["InternLM2DecoderLayer"]
    _can_record_outputs = {"hidden_states": InternLM2DecoderLayer, "attentions": InternLM2Attention}

    def __init__(self, config):
        super().__init__(config)
        del self._modules["embed_tokens"]
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(InternLM2DecoderLayer(config, n) for n in range(config.num_hidden_layers))
        self.post_init()

    def __getattr__(self, name):
        return super().__getattr__("tok_embeddings" if name == "embed_tokens" else name)

    def get_input_embeddings(self):
        return self.tok_embeddings

    def set_input_embeddings(self, value):
        self.tok_embeddings = value


class InternLM2ForCausalLM(LlamaForCausalLM):
    """The model with its output head."""

    config_class = InternLM2Config
    _no_split_modules = ["InternLM2DecoderLayer"]
    _tied_weights_keys = {"output.weight": "model.tok_embeddings.weight"}

    def __init__(self, config):
        super(LlamaForCausalLM, self).__init__(config)
        self.model = InternLM2Model(config)
        self.vocab_size = config.vocab_size
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def __getattr__(self, name):
        return super().__getattr__("output" if name == "lm_head" else name)

    def get_input_embeddings(self):
        return self.model.tok_embeddings

    def set_input_embeddings(self, value):
        self.model.tok_embeddings = value

    def get_output_embeddings(self):
        return self.output

    def set_output_embeddings(self, value):
        self.output = value
