"""InternLM2 (arXiv 2403.17297) for transformers from 4.38 on, with the tensor names and grouped `wqkv` of its release.

Everything that is computed is written out here: what other models' classes compute changes from one version of
transformers to the next. Queries, keys and values come out of one matrix, kv head by kv head: first the query heads of
the group, then its key, then its value.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_internlm2 import InternLM2Config


class InternLM2RMSNorm(nn.Module):
    """Division by the root of the mean square, in fp32."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        exact = x.float()
        exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * exact.to(x.dtype)


def rotary_angles(config, head_dim, positions):
    """fp32 `[batch, 1, seq, head_dim]` for `positions` `[batch, seq]`.

    They are computed anew in every pass: a buffer would not survive how some versions load a model.
    """
    factor = (getattr(config, "rope_scaling", None) or {}).get("factor", 1.0)
    halves = torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim
    angles = (positions.float() / factor)[:, None, :, None] * config.rope_theta**-halves
    return torch.cat([angles, angles], dim=-1)


def rotate(x, cos, sin):
    """Turn queries or keys `[batch, heads, seq, head_dim]` by their positions."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class InternLM2Attention(nn.Module):
    """Attention with grouped queries."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.kv_heads = config.num_key_value_heads
        self.group = config.num_attention_heads // self.kv_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        width = self.kv_heads * self.group * self.head_dim
        self.wqkv = nn.Linear(config.hidden_size, width + 2 * self.kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(width, config.hidden_size, bias=False)

    def forward(self, x, cos, sin, mask, cache):
        batch, seq, _ = x.shape
        parts = self.wqkv(x).view(batch, seq, self.kv_heads, self.group + 2, self.head_dim)
        q = rotate(parts[..., :-2, :].flatten(2, 3).transpose(1, 2), cos, sin)
        k = rotate(parts[..., -2, :].transpose(1, 2), cos, sin)
        v = parts[..., -1, :].transpose(1, 2)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        k, v = k.repeat_interleave(self.group, dim=1), v.repeat_interleave(self.group, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and seq > 1)
        return self.wo(out.transpose(1, 2).flatten(2))


class InternLM2MLP(nn.Module):
    """SwiGLU under the release's names: `w1` is the gate, `w3` goes up, `w2` down."""

    def __init__(self, config):
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class InternLM2DecoderLayer(nn.Module):
    """Attention and feed-forward, each after a norm and added to its input."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.attention = InternLM2Attention(config, layer_idx)
        self.feed_forward = InternLM2MLP(config)
        self.attention_norm = InternLM2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn_norm = InternLM2RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, cos, sin, mask, cache):
        x = x + self.attention(self.attention_norm(x), cos, sin, mask, cache)
        return x + self.feed_forward(self.ffn_norm(x))


class PairsCache:
    """(keys, values) of every layer, the form of a cache before transformers had a class for it."""

    def __init__(self, pairs):
        self.pairs = list(pairs)

    def get_seq_length(self):
        return self.pairs[0][0].shape[2]

    def update(self, keys, values, layer):
        before = self.pairs[layer]
        self.pairs[layer] = (torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2))
        return self.pairs[layer]


class InternLM2PreTrainedModel(PreTrainedModel):
    """What transformers asks of every model."""

    config_class = InternLM2Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternLM2DecoderLayer"]
    _skip_keys_device_placement = "past_key_values"
    _supports_sdpa = True
    _supports_cache_class = True

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, InternLM2RMSNorm):
            nn.init.ones_(module.weight)


def attention_mask_of(attention_mask, seq, past, device):
    """Which keys a query sees, bool `[batch, 1, seq, past + seq]`; None when plain causal attention says the same.

    attention_mask: None, or ones for tokens and zeros for padding, `[batch, past + seq]`; one with four dimensions is
    used as it is.
    """
    if attention_mask is not None and attention_mask.ndim == 4:
        return attention_mask
    if attention_mask is not None and attention_mask.all():
        attention_mask = None
    if attention_mask is None and (past == 0 or seq == 1):
        return None
    keys = torch.arange(past + seq, device=device)
    queries = keys[past:, None]
    mask = (keys <= queries)[None, None]
    if attention_mask is not None:
        # padding sees itself, since attention to nothing gives NaN
        mask = mask & (attention_mask[:, None, None].bool() | (keys == queries))
    return mask


class InternLM2Model(InternLM2PreTrainedModel):
    """Embedding, layers and last norm."""

    def __init__(self, config):
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(InternLM2DecoderLayer(config, n) for n in range(config.num_hidden_layers))
        self.norm = InternLM2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.tok_embeddings

    def set_input_embeddings(self, value):
        self.tok_embeddings = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        """past_key_values: a `Cache`, or (keys, values) of every layer; what comes back is of the same kind."""
        if output_attentions:
            raise ValueError("output_attentions: this InternLM2 code does not keep attention weights")
        x = self.tok_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        checkpointing = self.gradient_checkpointing and self.training
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        cache = past_key_values
        if isinstance(cache, (tuple, list)):
            cache = PairsCache(cache)
        elif cache is None and use_cache and not checkpointing:
            cache = DynamicCache()
        elif getattr(cache, "is_compileable", False):
            raise ValueError("this InternLM2 code works with caches that grow; a static cache is not among them")
        past = cache.get_seq_length() if cache is not None else 0
        if position_ids is None:
            position_ids = torch.arange(past, past + x.shape[1], device=x.device)[None]
        angles = rotary_angles(self.config, self.layers[0].attention.head_dim, position_ids)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        mask = attention_mask_of(attention_mask, x.shape[1], past, x.device)
        seen = []
        for layer in self.layers:
            seen.append(x)
            if checkpointing:
                x = self._gradient_checkpointing_func(layer.__call__, x, cos, sin, mask, cache)
            else:
                x = layer(x, cos, sin, mask, cache)
        x = self.norm(x)
        if isinstance(cache, PairsCache):
            cache = tuple(cache.pairs)
        out = BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=cache if use_cache else None,
            hidden_states=(*seen, x) if output_hidden_states else None,
        )
        return out.to_tuple() if return_dict is False else out


class InternLM2ForCausalLM(InternLM2PreTrainedModel, GenerationMixin):
    """The model with its output head."""

    _tied_weights_keys = {"output.weight": "model.tok_embeddings.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = InternLM2Model(config)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.tok_embeddings

    def set_input_embeddings(self, value):
        self.model.tok_embeddings = value

    def get_output_embeddings(self):
        return self.output

    def set_output_embeddings(self, value):
        self.output = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        logits_to_keep=0,
    ):
        """labels: `[batch, seq]`, the tokens themselves, -100 where none counts. logits_to_keep: how many of
        the last tokens have logits, 0 for all."""
        out = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
        )
        logits = self.output(out.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            wanted = labels[:, 1:].flatten().to(logits.device)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted)
        found = CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=out.past_key_values, hidden_states=out.hidden_states
        )
        return found.to_tuple() if return_dict is False else found

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, **kwargs):
        """What `forward` takes at one step of generation: the tokens that the cache does not have yet."""
        past = 0
        if isinstance(past_key_values, (tuple, list)):
            past = PairsCache(past_key_values).get_seq_length()
        elif past_key_values is not None:
            past = past_key_values.get_seq_length()
        inputs = {"input_ids": input_ids[:, past:].contiguous(), "attention_mask": attention_mask}
        if attention_mask is not None:
            inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
        rest = {key: kwargs[key] for key in ("use_cache", "logits_to_keep") if kwargs.get(key) is not None}
        return {**inputs, "past_key_values": past_key_values, **rest}

    @staticmethod
    def _reorder_cache(past_key_values, beam_idx):
        """Rows of the cache for the beams that continue; some versions ask the model, some the cache."""
        if not isinstance(past_key_values, (tuple, list)):
            past_key_values.reorder_cache(beam_idx)
            return past_key_values
        return tuple(
            tuple(part.index_select(0, beam_idx.to(part.device)) for part in layer) for layer in past_key_values
        )
