"""The steps that a chain can have, by the names that configurations call them by."""

from __future__ import annotations

from internevo.data.refine.code.code_quality import CodeQuality
from internevo.data.refine.code.file_dedup import FileDedup
from internevo.data.refine.code.repositories import Repositories
from internevo.data.refine.code.repository_documents import RepositoryDocuments
from internevo.data.refine.extract import Extract
from internevo.data.refine.filter import Filter
from internevo.data.refine.language import Language
from internevo.data.refine.long.length import Length
from internevo.data.refine.long.long_statistics import LongStatistics
from internevo.data.refine.long.perplexity_difference import PerplexityDifference
from internevo.data.refine.near_duplicates.dedup import Dedup
from internevo.data.refine.quality import Quality
from internevo.data.refine.rules import Rules
from internevo.data.refine.safety import Safety
from internevo.data.refine.sample import Sample
from internevo.data.refine.step import Step

STEPS: dict[str, type[Step]] = {
    "extract": Extract,
    "language": Language,
    "rules": Rules,
    "dedup": Dedup,
    "safety": Safety,
    "quality": Quality,
    "filter": Filter,
    "repositories": Repositories,
    "file_dedup": FileDedup,
    "code_quality": CodeQuality,
    "sample": Sample,
    "repository_documents": RepositoryDocuments,
    "length": Length,
    "long_statistics": LongStatistics,
    "perplexity_difference": PerplexityDifference,
}
