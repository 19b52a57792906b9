"""The command line in a child of this process: as another user, or on a disk that is full."""

from __future__ import annotations

import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

NOBODY = 65534


def command(*arguments: str | Path) -> int:
    """The command line in this process: its exit code. Raises what no verb may raise."""
    from internevo.cli import main

    before = sys.argv
    sys.argv = ["internevo", *map(str, arguments)]
    try:
        main()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 1
    finally:
        sys.argv = before


def in_child(log: Path, action: Callable[[], int]) -> tuple[int, str]:
    """What `action` returns in a forked process, or 99 when it raises; and what was printed."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            for number in (1, 2):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), number)
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (pytest has put its own in the place)
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            code = action()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8")


def become_nobody(group: int = NOBODY) -> None:
    """Give up root's rights; who has none keeps what they have."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(group)
        os.setuid(NOBODY)


def fill_disk(size: int) -> None:
    """No file of this process may grow past `size` bytes: writing fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
