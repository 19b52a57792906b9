"""What a run's folder keeps of its data, so that it can be used without them: the tokenizer, and how it talks.

A folder that was copied to another machine, without the tokenizer and the token stores that its configuration names,
can still be sampled from, talked to and exported.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from internevo.config.schema import StageConfig
from internevo.files.durable import made_aside, write_durable
from internevo.files.errors import UserError
from internevo.files.json_files import read_mapping
from internevo.files.urls import is_remote
from internevo.hf.tokenizer_files import copy_tokenizer
from internevo.tokens.store import TokenStore
from internevo.tokens.tokenizer import fingerprint, load_tokenizer
from internevo.train.folder import RunFolder


@dataclass(frozen=True)
class StoreChat:
    """How the conversations of a token store were written, from its manifest."""

    stage: str
    """The stage that trains on it."""
    store: str
    """Its path in the configuration."""
    template: str
    """The text of the chat template."""
    variables: dict[str, Any]
    """What `data chat --set` gave the template."""
    stops: tuple[int, ...]
    """Ids that end the assistant's turn."""

    @property
    def way(self) -> tuple[Any, ...]:
        """What two stores agree in when a model that was trained on both talks in one way."""
        return self.template, self.variables, self.stops


def write_own_files(folder: RunFolder, stages: Sequence[StageConfig]) -> None:
    """Keep the tokenizer and the chat templates of the stages' stores in the run's folder, where that is not so yet.

    Raises UserError for a store or a tokenizer that cannot be opened.
    """
    if stages[-1].tokenizer is not None:
        _keep_tokenizer(Path(stages[-1].tokenizer), folder.tokenizer)
    text = json.dumps({"stores": [asdict(one) for one in _of_stores(stages)]}, indent=1) + "\n"
    if not folder.chat.is_file() or folder.chat.read_text(encoding="utf-8") != text:
        write_durable(folder.chat, text)


def read_chats(folder: RunFolder, stages: Sequence[StageConfig]) -> tuple[StoreChat, ...]:
    """How the stores of these stages, the first ones of the run, wrote conversations, in order.

    A run that was begun before this was kept is asked by its stores, as far as they are still there.
    """
    kept = read_mapping(folder.chat).get("stores")
    if not isinstance(kept, list):
        return tuple(_of_stores(stages, missing=True))
    names = {stage.name for stage in stages}
    return tuple(StoreChat(**{**one, "stops": tuple(one["stops"])}) for one in kept if one["stage"] in names)


def kept_tokenizer(folder: RunFolder) -> Path | None:
    """The run's own copy of its tokenizer; None in a run that was begun before it was kept."""
    return folder.tokenizer if folder.tokenizer.is_dir() else None


def _of_stores(stages: Iterable[StageConfig], missing: bool = False) -> list[StoreChat]:
    """In the order of stages and sources; with `missing`, stores that cannot be opened are left out."""
    found = []
    for stage in stages:
        for source in stage.data.sources:
            if missing and is_remote(source.path):
                continue  # nothing is copied from there for this
            try:
                chat = TokenStore.open_source(source.path, stage.data.cache).manifest.get("chat")
            except (UserError, OSError):
                if not missing:
                    raise
                continue
            if chat:
                stops = tuple(chat["stops"])
                found.append(StoreChat(stage.name, source.path, chat["template"], chat["variables"], stops))
    return found


def _keep_tokenizer(tokenizer: Path, own: Path) -> None:
    if own.is_dir():
        if fingerprint(own) == fingerprint(tokenizer):
            return
        shutil.rmtree(own)  # a change of tokenizers was accepted
    file = load_tokenizer(tokenizer).path
    with made_aside(own) as aside:
        copy_tokenizer(file.parent, aside)
        if (stops := file.with_name("generation_config.json")).is_file():
            shutil.copyfile(stops, aside / stops.name)
        if file.suffix != ".json":  # a tokenizer.json beside it would be read in its place
            (aside / "tokenizer.json").unlink(missing_ok=True)
        shutil.copyfile(file, aside / f"tokenizer{file.suffix if file.suffix == '.json' else '.model'}")
