"""Any of datatrove's filters as a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from internevo.files.errors import UserError
from internevo.refine.scorers import named_object
from internevo.refine.shards import Document
from internevo.refine.step import Sift


@dataclass
class Filter(Sift):
    """Drop what a filter of datatrove's, or one of your own in its manner, drops; its reasons are kept."""

    use: str = ""
    """`module:attribute`, a class below `datatrove.pipeline.filters.base_filter.BaseFilter`, such as
    `datatrove.pipeline.filters:GopherQualityFilter`. Some need spaCy, or download something at their first use."""
    options: dict[str, Any] = field(default_factory=dict)
    """The parameters that it is made with, by their names."""

    def __post_init__(self) -> None:
        from datatrove.pipeline.filters.base_filter import BaseFilter

        if not self.use:
            raise UserError("filter.use: missing; name a class such as datatrove.pipeline.filters:GopherQualityFilter")
        kind = named_object(self.use, "filter.use")
        if not (isinstance(kind, type) and issubclass(kind, BaseFilter)):
            raise UserError(f"filter.use: {self.use} is no filter of datatrove's")
        try:
            kind(**self.options)
        except (TypeError, ValueError, ImportError) as error:
            raise UserError(f"filter.options: {self.use} cannot be made with them: {error}") from None

    def prepare(self) -> None:
        self._filter = named_object(self.use, "filter.use")(**self.options)

    def judge(self, document: Document) -> str | None:
        from datatrove.data import Document as Theirs

        theirs = Theirs(text=document.text, id=document.id, metadata=document.metadata)
        verdict = self._filter.filter(theirs)
        keeps, reason = verdict if isinstance(verdict, tuple) else (verdict, type(self._filter).__name__)
        document.text = theirs.text
        return None if keeps else str(reason)
