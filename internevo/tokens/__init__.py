"""Tokenizers, token stores, and text to tokens."""
