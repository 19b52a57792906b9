"""A user's own function or class, by its name in the configuration."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from internevo.files.errors import UserError


def named_object(name: str, key: str) -> Any:
    """What `module:attribute` names. Raises UserError, which begins with `key`, when it cannot be imported."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise UserError(f"{key}: expected `module:attribute`, found {name!r}")
    try:
        found = getattr(import_module(module), attribute)
    except ImportError as error:
        raise UserError(f"{key}: {module} cannot be imported: {error}. Is its folder in PYTHONPATH?") from None
    except AttributeError:
        raise UserError(f"{key}: {module} has no {attribute!r}") from None
    if not callable(found):
        raise UserError(f"{key}: {name} cannot be called")
    return found
