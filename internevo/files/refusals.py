"""What the operating system refuses, in a sentence that says what to do."""

from __future__ import annotations

import errno
import os
import pwd
from pathlib import Path

_REMEDIES = {
    errno.EACCES: "Ask its owner for the rights, or work in a folder of your own.",
    errno.EPERM: "Ask its owner for the rights, or work in a folder of your own.",
    errno.EROFS: "Its disk cannot be written to; choose a folder on another one.",
    errno.ENOSPC: "The disk is full; make room there, or choose a folder on another one.",
    errno.EDQUOT: "Your share of the disk is used up; make room there, or choose a folder on another one.",
    errno.EFBIG: "Files may not become so large here (`ulimit -f`); allow larger ones.",
    errno.ENOTDIR: "A part of this path is a file where a folder is needed; rename it, or choose another folder.",
    errno.EEXIST: "Something of this name stands where another thing is needed; rename it, or choose another folder.",
    errno.EISDIR: "It is a folder where a file is needed.",
    errno.ENOENT: "Is the path right?",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "It is a link that leads to itself.",
    errno.EIO: "The disk reports an error; look at the system's log.",
    errno.ESTALE: "The network file system has lost it; try again.",
}


def refusal(error: OSError) -> str | None:
    """The file, what was refused, its owner where that explains it, and what to do; None for any other error."""
    if error.errno not in _REMEDIES:
        return None
    paths = [name for name in (error.filename, error.filename2) if name is not None]
    where = " and ".join(os.fsdecode(name) if isinstance(name, bytes) else str(name) for name in paths)
    owner = _owner(where) if error.errno in (errno.EACCES, errno.EPERM) and len(paths) == 1 else ""
    said = f"{where}: {error.strerror}" if where else str(error.strerror)
    return f"{said}{owner}. {_REMEDIES[error.errno]}"


def _owner(path: str) -> str:
    """Who owns the file, or the folder that it was to be made in."""
    for place in (Path(path), Path(path).parent):
        try:
            number = place.stat().st_uid
        except OSError:
            continue
        try:
            return f" ({place} belongs to {pwd.getpwuid(number).pw_name})"
        except KeyError:
            return f" ({place} belongs to user {number})"
    return ""
