"""InternLM2 for transformers, which has no class of its own for it. Exports carry the other files of this folder."""
