"""internevo: a distributed LLM pretraining framework on PyTorch. As a library it has what `internevo.library` has."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from internevo.version import VERSION as __version__

if TYPE_CHECKING:  # for editors and mypy; while a program runs, `__getattr__` gives the same
    from internevo.library import *  # noqa: F403

__all__ = ["__version__"]


def __getattr__(name: str) -> Any:
    """What `internevo.library` has. It brings torch, so it is loaded when something of it is first asked for."""
    library = import_module("internevo.library")
    if name not in library.__all__:
        raise AttributeError(f"internevo has no {name!r}; it has {', '.join(library.__all__)}")
    return getattr(library, name)
