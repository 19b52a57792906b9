"""Model folders of other frameworks: what a folder is, by its files, and what to do with it."""

from __future__ import annotations

from pathlib import Path

from internevo.hf.internevo import is_internevo, is_part

_CONVERT = "which is not read; convert it to a Hugging Face folder with its maker's tools first"
_KNOWN = {
    "adapter_config.json": "is a LoRA adapter without its base model; merge the two first (peft's merge_and_unload)",
    "consolidated.*.pth": f"is a checkpoint in Meta's own format, {_CONVERT}",
    "latest_checkpointed_iteration.txt": f"is a checkpoint of Megatron-LM's, {_CONVERT}",
    "mp_rank_*": f"is a checkpoint of Megatron-LM's, {_CONVERT}",
    "*.nemo": f"holds a model of NeMo's, {_CONVERT}",
    "ckpt.pt": "is a checkpoint of nanoGPT's, a GPT-2 model, which is not of a family that is known here",
    "*.gguf": "holds a GGUF file, which is for inference; import the folder that it was made from",
}
"""By pattern of a file's name: what a folder with such a file is."""


def described(folder: Path) -> str | None:
    """A sentence about a folder without `config.json`, ending without a full stop; None when its files say nothing."""
    if folder.is_file() and is_part(folder):
        return f"{folder} is a part of a checkpoint of InternEvo's; name its folder, {folder.parent}"
    if not folder.is_dir() or (folder / "config.json").is_file():
        return None
    if inside := [one for one in sorted(folder.iterdir()) if is_internevo(one)]:
        return f"{folder} holds checkpoints of InternEvo's; name one of them, such as {inside[-1]}"
    return next((f"{folder} {what}" for pattern, what in _KNOWN.items() if any(folder.glob(pattern))), None)
