"""The GPU, or in its place the CPU, where the tool itself is tried."""

from __future__ import annotations

from functools import cache

import torch


@cache
def device() -> torch.device:
    """What everything runs on."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def wait() -> None:
    """Until the device has done all that it was given."""
    if device().type == "cuda":
        torch.cuda.synchronize()
