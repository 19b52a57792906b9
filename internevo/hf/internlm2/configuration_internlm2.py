"""The configuration of InternLM2 models (arXiv 2403.17297), as transformers reads it with `trust_remote_code=True`."""

from transformers import PretrainedConfig


class InternLM2Config(PretrainedConfig):
    """Sizes and rotary embedding under the names of the release's `config.json`.

    `rope_scaling` is None or `{"type": "linear", "factor": float}`. Raises ValueError for any other scaling.
    """

    model_type = "internlm2"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size=92544,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=None,
        max_position_embeddings=2048,
        initializer_range=0.02,
        rms_norm_eps=1e-5,
        use_cache=True,
        rope_theta=10000.0,
        rope_scaling=None,
        rope_parameters=None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        rope = rope_parameters or rope_scaling or {}  # the first is what transformers 5 saves
        self.rope_theta = rope.get("rope_theta") or rope_theta
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind not in ("default", "linear"):
            raise ValueError(f"rope_scaling of type {kind!r}: this InternLM2 code knows linear scaling only")
        if kind == "linear":
            # from transformers 5 on, `rope_scaling` is a property that shows `rope_parameters`
            name = "rope_parameters" if hasattr(type(self), "rope_scaling") else "rope_scaling"
            kwargs[name] = {"type": "linear", "factor": rope["factor"]}
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)
