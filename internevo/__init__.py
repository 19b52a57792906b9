"""internevo: a distributed LLM pretraining framework on PyTorch. As a library it has what `internevo.library` has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from internevo.version import VERSION as __version__

if TYPE_CHECKING:
    from internevo.library import (
        ModelConfig as ModelConfig,
    )
    from internevo.library import (
        RunConfig as RunConfig,
    )
    from internevo.library import (
        StageConfig as StageConfig,
    )
    from internevo.library import (
        StepResult as StepResult,
    )
    from internevo.library import (
        StoredModel as StoredModel,
    )
    from internevo.library import (
        Tokenizer as Tokenizer,
    )
    from internevo.library import (
        Trainer as Trainer,
    )
    from internevo.library import (
        Transformer as Transformer,
    )
    from internevo.library import (
        UserError as UserError,
    )
    from internevo.library import (
        build_model as build_model,
    )
    from internevo.library import (
        generate as generate,
    )
    from internevo.library import (
        load_config as load_config,
    )
    from internevo.library import (
        load_tokenizer as load_tokenizer,
    )
    from internevo.library import (
        model_preset as model_preset,
    )
    from internevo.library import (
        open_loader as open_loader,
    )
    from internevo.library import (
        open_model as open_model,
    )
    from internevo.library import (
        prepare as prepare,
    )
    from internevo.library import (
        train_run as train_run,
    )
    from internevo.library import (
        train_tokenizer as train_tokenizer,
    )

__all__ = ["__version__"]


def __getattr__(name: str) -> Any:
    """What `internevo.library` has. It brings torch, so it is loaded when something of it is first asked for."""
    from importlib import import_module

    library = import_module("internevo.library")
    if name not in library.__all__:
        raise AttributeError(f"internevo has no {name!r}; it has {', '.join(library.__all__)}")
    return getattr(library, name)
