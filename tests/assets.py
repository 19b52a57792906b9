"""Files too large for the repository, used where they are present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ASSETS = Path(os.environ.get("INTERNEVO_ASSETS", Path(__file__).parents[2] / "shared" / "assets"))
"""Where they lie: `$INTERNEVO_ASSETS`, or `shared/assets` beside the repository."""
INTERNLM2 = ASSETS / "tokenizer_internlm2.model"
"""The tokenizer of the InternLM2 release, `tokenizer.model` there."""
needs_internlm2 = pytest.mark.skipif(not INTERNLM2.is_file(), reason=f"{INTERNLM2.name} is not in {ASSETS}")
