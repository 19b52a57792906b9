"""Which device a process trains on."""

from __future__ import annotations

import torch

from internevo.files.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device that `train.device` means. Raises UserError when it asks for a GPU and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"train.device is cuda, but this torch ({torch.__version__}) sees no GPU. Check `nvidia-smi` and that "
            "torch is a CUDA build, or set train.device to auto or cpu."
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
