"""A prepared folder: what its files are called, and where it may be made."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from internevo.files.errors import UserError
from internevo.files.urls import was_url

TRAIN, HELDOUT = "train", "heldout"
MANIFEST = "manifest.json"


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
