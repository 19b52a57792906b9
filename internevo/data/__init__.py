"""Data: text to tokens, tokens to rows. A batch is a function of (seed, stage, step), never of ranks."""
