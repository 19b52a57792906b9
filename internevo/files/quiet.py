"""Other libraries' remarks, kept away from our users."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Use another library within, or import it: its warnings and log lines below errors do not appear.

    They speak to programmers, of files that it did not find, or of calls that will be named otherwise.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
