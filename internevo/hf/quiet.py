"""transformers without a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from internevo.files.quiet import quiet


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Use transformers within, imports included: no remarks of it or of what it imports, and no progress bars."""
    with quiet():
        from transformers.utils import logging

        before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(before)
            if bars:
                logging.enable_progress_bar()
