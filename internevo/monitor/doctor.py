"""What is installed on this machine, and which features lack a package."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch

from internevo.monitor.environment import DRIVER_VERSION, output, package_version


@dataclass(frozen=True)
class Finding:
    name: str
    found: str  # a version or a count; empty when it is missing
    purpose: str
    remedy: str  # how to get it
    needed: bool = False  # whether nothing works without it

    @property
    def good(self) -> bool:
        return bool(self.found)


_REFINE = "pip install 'internevo[refine]'"
_PACKAGES = (
    ("torch", "everything", ""),
    ("transformers", "export, import, tokenizers", ""),
    ("sentencepiece", "tokenizers", ""),
    ("safetensors", "export, import", ""),
    ("pyarrow", "parquet and .zst corpora", "pip install 'internevo[data]'"),
    ("tiktoken", "byte-level BPE, several times faster", "pip install 'internevo[data]'"),
    ("datatrove", "internevo data refine", _REFINE),
    ("orjson", "data refine: JSON lines", _REFINE),
    ("warcio", "data refine: web archives", _REFINE),
    ("trafilatura", "data refine: extract, the text of pages", _REFINE),
    ("lxml_html_clean", "data refine: extract", _REFINE),
    ("charset-normalizer", "data refine: extract, encodings", _REFINE),
    ("pycld2", "data refine: language", _REFINE),
    ("rensa", "data refine: dedup, signatures", _REFINE),
    ("scipy", "data refine: dedup, clusters", _REFINE),
    ("scikit-learn", "data refine: quality; data classifier train", _REFINE),
    ("s3fs", "token stores at s3://", "pip install 'internevo[s3]'"),
    ("wandb", "monitor.wandb", "pip install 'internevo[wandb]'"),
    ("tensorboard", "monitor.tensorboard", "pip install 'internevo[tensorboard]'"),
    ("flash-attn", "train.attention=flash; varlen needs none", "pip install flash-attn, with a CUDA compiler"),
    ("torchao", "train.fp8", "pip install 'internevo[fp8]'"),
    ("liger-kernel", "train.loss=liger", "pip install 'internevo[liger]'"),
    ("deepspeed", "parallel.zero.engine=deepspeed", "pip install 'internevo[deepspeed]'"),
    ("lm-eval", "internevo eval --tasks", "pip install 'internevo[eval]'"),
    ("vllm", "internevo serve, first choice", "pip install vllm"),
    ("lmdeploy", "internevo serve, second choice", "pip install lmdeploy"),
    ("fastapi", "internevo serve, by transformers", "pip install 'internevo[serve]'"),
)
"""Name, what it is for, and how to get it; empty for what comes with the package, without which nothing works."""
_COMMANDS = (
    ("sbatch", "internevo launch --slurm", "load Slurm's module, or log in where Slurm is"),
    ("ssh", "internevo launch --nodes", "install an ssh client"),
    ("git", "the code's version in every run's record", "install git"),
    ("cc", "train.compile on CPUs, DeepSpeed's offloading", "install a C compiler"),
)


def examine() -> list[Finding]:
    """Look at this machine. No optional package is imported."""
    findings = [Finding("python", platform.python_version(), "everything", "Python 3.11 or newer", True)]
    findings += [
        Finding(name, package_version(name) or "", purpose, remedy or "pip install internevo", needed=not remedy)
        for name, purpose, remedy in _PACKAGES
    ]
    findings += [Finding(name, shutil.which(name) or "", purpose, remedy) for name, purpose, remedy in _COMMANDS]
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return [
        *findings,
        *_gpus(),
        Finding("cores", str(os.cpu_count()), "data, CPU training", ""),
        Finding("disk here", f"{free:,.0f} GiB free", "checkpoints: 12 bytes a parameter each", ""),
    ]


def _gpus() -> list[Finding]:
    count = torch.cuda.device_count()
    names = {torch.cuda.get_device_name(n) for n in range(count)}
    gpus = f"{count} x {', '.join(sorted(names))}" if count else ""
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else ""
    driver = (output(*DRIVER_VERSION) or "").partition("\n")[0]  # a line a GPU
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if count else ""
    # torch without CUDA on a machine with GPUs is the usual mistake
    remedy = "a torch built for CUDA: see pytorch.org" if driver and not build else "training works on CPUs, slowly"
    return [
        Finding("GPUs", gpus, "training at speed", remedy),
        Finding("torch's CUDA", build, "GPUs", "a torch built for CUDA: see pytorch.org"),
        Finding("driver", driver, "GPUs", "NVIDIA's driver"),
        Finding("NCCL", nccl, "several GPUs", "comes with torch built for CUDA"),
    ]


def broken_imports() -> list[str]:
    """Needed packages that are installed and cannot be imported, with the reason: a broken environment."""
    broken = []
    for name in ("transformers", "sentencepiece", "safetensors", "omegaconf", "tokenizers"):
        try:
            import_module(name)
        except Exception as error:
            broken.append(f"{name} is installed in {sys.prefix} and cannot be imported: {error}")
    return broken
