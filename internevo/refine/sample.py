"""Some documents more often than others, by a class that a step before has given them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

from internevo.config.bounds import Between, Seed
from internevo.files.hashing import share_of
from internevo.refine.shards import Document, Judged, read_shard
from internevo.refine.step import Phase, Place, Step

NOT_SAMPLED = "not sampled"


@dataclass
class Sample(Step):
    """Repeats documents or leaves them out, by weight: 2.5 makes two or three of one, 0.3 keeps three in ten.

    Which ones follows from a hash of the id, so every run and every number of shards agrees.
    """

    by: str = "quality"
    """The key of a document's metadata that has its class."""
    weights: dict[str, Annotated[float, Between(0, 10**6)]] = field(default_factory=dict)
    """How often a document of each class occurs on average."""
    other: Annotated[float, Between(0, 10**6)] = 1.0
    """The same for documents of no class, or of one that is not named."""
    seed: Seed = 0
    """Another number chooses other documents."""

    def phases(self, place: Place) -> list[Phase]:
        return [place.sifting("sample", partial(_sampled, self, place))]

    def copies(self, document: Document) -> int:
        """How often this document is kept."""
        weight = self.weights.get(str(document.metadata.get(self.by)), self.other)
        chance = share_of(f"{self.seed}:{document.id}".encode(errors="surrogatepass"))
        return int(weight) + (chance < weight - int(weight))


def _sampled(step: Sample, place: Place, number: int) -> Iterator[Judged]:
    for document in read_shard(place.shards[number]):
        copies = step.copies(document)
        yield document, None if copies else f"{NOT_SAMPLED}: {document.metadata.get(step.by)}"
        for copy in range(2, copies + 1):
            yield Document(document.text, f"{document.id}@{copy}", {**document.metadata, "copy": copy}), None
