"""Tensors of a folder, read whole and in slices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from internevo.hf import files
from internevo.hf.files import TensorFiles


@pytest.mark.parametrize("slice_bytes", [4, 100, 512, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_large_tensor_is_read_in_slices(
    slice_bytes: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_SLICE_BYTES", slice_bytes)
    tensors = {
        "matrix": torch.randn(37, 24).to(dtype),
        "vector": torch.randn(300).to(dtype),
        "scalar": torch.tensor(0.5, dtype=dtype),
        "none": torch.empty(0, 24, dtype=dtype),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    read = TensorFiles(tmp_path)
    for name, tensor in tensors.items():
        assert torch.equal(read.read(name), tensor), name
    assert torch.equal(read.read("matrix", (slice(3, 7), slice(2, 9))), tensors["matrix"][3:7, 2:9])
