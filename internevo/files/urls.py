"""Paths that are URLs of object storage."""

from __future__ import annotations

import re
from pathlib import Path


def is_remote(path: str | Path) -> bool:
    """Whether it names something that fsspec reads, such as `s3://bucket/tokens/web`, and no file of this machine."""
    return isinstance(path, str) and re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def was_url(path: Path) -> bool:
    """Whether a path was made of a URL: its double slash has become one."""
    return re.match(r"[a-z][a-z0-9+.-]+:/", str(path)) is not None
