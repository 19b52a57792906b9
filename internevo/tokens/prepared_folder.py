"""A prepared folder: what its files are called, and where it may be made."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from internevo.files.errors import UserError
from internevo.files.urls import was_url

TRAIN, HELDOUT = "train", "heldout"
MANIFEST = "manifest.json"
NEGATED, COMPLEMENT = "negated", "complement"
"""How a store marks a token `id` that nothing is to learn to predict: as `-id`, as InternEvo does, which leaves no mark
for token 0, or as its complement `-1 - id`, which does: 0, 1, 2 become -1, -2, -3."""


def check_output(output: Path, inputs: Iterable[Path]) -> None:
    """Raises UserError for a name that is taken or is a URL, or below an input: the next run would read the store."""
    if was_url(output):
        raise UserError(
            f"{output} is in object storage, and stores are made on disks. Name a folder, and copy it then."
        )
    if os.path.lexists(output):
        what = "exists already" if output.exists() else "is a link to nowhere"
        raise UserError(f"{output} {what}; it is not overwritten. Choose another name or remove it.")
    for folder in inputs:
        if folder.is_dir() and output.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{output} is in {folder}, which is read: it would be its own input. Choose another place.")
