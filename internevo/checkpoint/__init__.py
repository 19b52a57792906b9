"""Checkpoints: written aside, checksummed, committed by one rename. Knows tensors and paths, not models."""
