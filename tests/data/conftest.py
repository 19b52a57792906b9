"""What tests of reading share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that a user without rights may work in, as such a user; the superuser may read everything."""
    folder = Path(tempfile.mkdtemp())  # pytest's own are closed to others
    folder.chmod(0o777)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(before)
    shutil.rmtree(folder)
