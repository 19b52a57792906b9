"""What the files of a prepared folder are called."""

from __future__ import annotations

TRAIN, HELDOUT = "train", "heldout"
MANIFEST = "manifest.json"
