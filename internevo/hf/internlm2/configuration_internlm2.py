"""The configuration of InternLM2 models (arXiv 2403.17297), as transformers reads it with `trust_remote_code=True`."""

from transformers import LlamaConfig


class InternLM2Config(LlamaConfig):
    """A Llama configuration under another name: the sizes and the rotary embedding mean the same."""

    model_type = "internlm2"
