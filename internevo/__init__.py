"""internevo: a distributed LLM pretraining framework on PyTorch. As a library it has what `internevo.library` has."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from internevo.version import VERSION as __version__

if TYPE_CHECKING:
    from internevo.library import *  # noqa: F403

__all__ = ["__version__"]


def __getattr__(name: str) -> Any:
    """What `internevo.library` has. It brings torch, so it is loaded when something of it is first asked for."""
    if find_spec(f"internevo.{name}"):  # Python imports a room by itself
        raise AttributeError(f"internevo.{name} is not imported yet: `import internevo.{name}`")
    library = import_module("internevo.library")
    if name not in library.__all__:
        raise AttributeError(f"internevo has no {name!r}; it has {', '.join(library.__all__)}")
    return getattr(library, name)
