"""What runs, stages, sources, sweeps and refineries may be called; and what other frameworks call our keys."""

from __future__ import annotations

import unicodedata

MOST_BYTES = 200
"""Of a name in UTF-8: a file system's 255, less what is put after it."""
RESERVED = ("heldout",)
"""The documents that are kept from training are called so."""
_MARKS = "-_.+"
ELSEWHERE = {
    **dict.fromkeys(("ffn", "ffn_hidden_size", "intermediate_size", "mlp_ratio"), "model.feed_forward.width"),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim"), "model.hidden"),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers", "n_layer"), "model.layers"),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_heads", "n_head"), "model.attention.heads"),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads"), "model.attention.kv_heads"),
    **dict.fromkeys(("qkv_bias", "attention_bias"), "model.attention.bias"),
    **dict.fromkeys(("rope_theta", "rope_base", "rotary_base"), "model.rope.base"),
    "tie_word_embeddings": "model.tied",
    **dict.fromkeys(("learning_rate", "max_lr"), "optimizer.lr"),
    **dict.fromkeys(("clip_grad", "max_grad_norm", "gradient_clipping"), "optimizer.clip"),
    **dict.fromkeys(("global_batch_size", "global_bsz"), "train.batch_tokens"),
    **dict.fromkeys(("micro_batch_size", "micro_bsz", "local_batch_size"), "train.micro_batch"),
    **dict.fromkeys(("max_seq_len", "sequence_length"), "train.seq_len"),
    **dict.fromkeys(("max_steps", "total_steps", "train_iters"), "train.steps"),
    **dict.fromkeys(("tensor_parallel", "tensor_parallel_degree", "tensor_model_parallel_size"), "parallel.tensor"),
    **dict.fromkeys(("pipeline_parallel", "pipeline_parallel_degree"), "parallel.pipeline.size"),
    **dict.fromkeys(("context_parallel", "context_parallel_degree"), "parallel.context.size"),
}
"""Keys of Hugging Face's, Megatron-LM's, torchtitan's and InternEvo's configurations, and what they are here."""


def name_problem(name: str) -> str | None:
    """What is wrong with a name, to be put after it; None when nothing is.

    A name becomes a folder, a part of a chart's name, and a word on a console. So it has letters and digits of any
    script and the marks `- _ . +`, begins with a letter, a digit or `_`, is not long, and is no word that means
    something else here.
    """
    if not name:
        return "is empty"
    if name in RESERVED:
        return "is what the documents kept from training are called; choose another name"
    if len(name.encode(errors="replace")) > MOST_BYTES:
        return f"is longer than {MOST_BYTES} bytes; choose a shorter name"
    # letters, what is written above and below them, digits
    strange = [one for one in name if one not in _MARKS and unicodedata.category(one)[0] not in "LMN"]
    if strange:
        return f"has {strange[0]!a}; use letters and digits of any script, and - _ . +"
    if name[0] != "_" and unicodedata.category(name[0])[0] not in "LN":
        return "must begin with a letter, a digit or _"
    return None
