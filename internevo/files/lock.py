"""One process at a time: a locked file, which the kernel lets go however the process that has it ends."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from internevo.files.errors import UserError


@contextmanager
def locked(file: Path, remedy: str = "", *, wait: bool = False) -> Iterator[None]:
    """Hold the folder that `file` is in, and note there who does. The folder is made where it is missing.

    Whoever may write into the folder may take the lock, whatever the umask of the first one was. With `wait`, this
    waits for another holder; else it raises UserError that names the holder and says `remedy`. So does a file system
    without locks.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    new = not file.exists()
    with file.open("a+", encoding="utf-8") as opened:
        if new:
            file.chmod(file.parent.stat().st_mode & 0o666)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            opened.seek(0)
            holder = opened.read().strip() or "another process"
            raise UserError(f"{file.parent} is in use by {holder}. {remedy}".rstrip()) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
            raise UserError(
                f"{file.parent} is on a file system without locks ({error.strerror}), so that two processes could work "
                "there at once. Choose a folder on another disk."
            ) from None
        opened.truncate(0)
        opened.write(f"process {os.getpid()}")
        opened.flush()
        try:
            yield
        finally:
            opened.truncate(0)  # what is made in the folder must not tell which process made it
