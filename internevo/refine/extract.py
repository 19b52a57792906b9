"""The first step: from what was collected to documents of text, each with an id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from internevo.config.bounds import Between
from internevo.files.errors import UserError
from internevo.refine.corpus_files import corpus_files, is_warc, passed_over
from internevo.refine.html import TooLong, cpu_limit, decode
from internevo.refine.read import Page, read
from internevo.refine.shards import QUOTE, Document, Judged
from internevo.refine.step import Phase, Place, Step

NO_TEXT = "no main text"
TOO_LONG = "too much CPU time"
TOO_LARGE = "page too large"
FAILED = "extraction failed"

_MOST_SHARDS = 1000


@dataclass
class Extract(Step):
    """Read the input, take the text out of web pages, and give each document an id. Links to folders are followed;
    hidden files and those of other kinds are passed over."""

    reads_input: ClassVar[bool] = True
    follows_links: ClassVar[bool] = True

    shards: Annotated[int, Between(0, 10**6)] = 0
    """Number of shards to write, and of tasks in each step. A file goes into one shard. 0: one for each file, at most
    1,000."""
    text_key: str = "text"
    """Where a JSON line or a parquet row has its text."""
    id_key: str = "id"
    """Where it has its id. Without one, a document is called `FILE:LINE`."""
    fast: bool = False
    """Skip trafilatura's further extractors, which run where the first finds little: about twice as fast."""
    favor: Literal["balanced", "precision", "recall"] = "balanced"
    """`precision`: less text, with fewer menus in it; `recall`: the opposite; or `balanced`."""
    tables: bool = True
    """Whether tables are text."""
    comments: bool = False
    """Whether readers' comments are text."""
    cpu_seconds: Annotated[float, Between(0, 10**6, open_below=True)] = 10.0
    """CPU time that a page may take. Time on the clock would drop good pages on a busy machine."""
    max_bytes: Annotated[int, Between(1, 10**12)] = 10_000_000
    """Larger pages are left out."""

    def phases(self, place: Place) -> list[Phase]:
        groups = self._groups(place)
        archives = any(is_warc(file) for group in groups for file in group)
        for package in ("warcio", "trafilatura") if archives else ():
            if find_spec(package) is None:
                raise UserError(f"web archives need {package}: pip install 'internevo[refine]'")
        return [place.sifting("extract", partial(_extracted, self, groups), len(groups))]

    def kept(self, place: Place) -> tuple[Path, ...]:
        return place.kept(len(self._groups(place)))

    def passed_over(self, inputs: Sequence[Path]) -> Counter[str]:
        return passed_over(inputs)

    def _groups(self, place: Place) -> tuple[tuple[Path, ...], ...]:
        """Each shard's files: neighbours, and about as many bytes in each."""
        files = corpus_files(place.shards)
        count = min(self.shards or _MOST_SHARDS, len(files))
        sizes = [file.stat().st_size + 1 for file in files]  # the 1 is for empty files
        groups: list[list[Path]] = [[]]
        left = sum(sizes)
        room = left / count
        for number, (file, size) in enumerate(zip(files, sizes, strict=True)):
            wanted = count - len(groups)  # more groups, which need a file each
            if groups[-1] and wanted and (room < size / 2 or len(files) - number == wanted):
                groups.append([])
                room = left / wanted
            groups[-1].append(file)
            room, left = room - size, left - size
        return tuple(tuple(group) for group in groups)


def _extracted(step: Extract, groups: tuple[tuple[Path, ...], ...], number: int) -> Iterator[Judged]:
    for file in groups[number]:
        for found in read(file, step.text_key, step.id_key):
            one = _from_page(step, found) if isinstance(found, Page) else found
            document, reason = (one, None) if isinstance(one, Document) else one
            if reason is None and not document.text.strip():
                reason = NO_TEXT
            yield document, reason


def _from_page(step: Extract, page: Page) -> Judged:
    """The page's document, or the beginning of its HTML and why it has none."""
    if len(page.body) > step.max_bytes:
        return Document("", page.id, page.metadata), TOO_LARGE
    import trafilatura  # ACL 2021, demo 15; its import is not counted as a page's CPU time

    html, text, reason = "", None, NO_TEXT
    try:
        with cpu_limit(step.cpu_seconds):
            html = decode(page.body, page.charset)
            if page.plain:
                text = html
            else:
                text = trafilatura.extract(
                    html,
                    url=page.metadata["url"],
                    fast=step.fast,
                    favor_precision=step.favor == "precision",
                    favor_recall=step.favor == "recall",
                    include_tables=step.tables,
                    include_comments=step.comments,
                )
    except TooLong:
        reason = TOO_LONG
    except Exception:  # pages that no parser is ready for: counted, and kept to be looked at
        reason = FAILED
    if text is None:
        return Document(html[:QUOTE], page.id, page.metadata), reason
    return Document(text, page.id, page.metadata), None
