"""Standard input, output and error, where whoever started the process has closed them."""

from __future__ import annotations

import os


def open_streams() -> None:
    """Nothing in the place of a standard stream that is closed, here and in processes that are started from here.

    Otherwise the next file that is opened gets its number, and what a library prints would end up in that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
