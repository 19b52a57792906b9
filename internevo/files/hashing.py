"""Numbers that depend on nothing but some bytes: the same on every machine and in every run."""

from __future__ import annotations

from hashlib import blake2b


def hash64(content: bytes) -> int:
    """A whole number below 2**64."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


def share_of(content: bytes) -> float:
    """A number in [0, 1), by which a share of all contents is chosen."""
    return hash64(content) / 2**64
