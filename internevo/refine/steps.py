"""The steps that a chain can have, by the names that configurations call them by."""

from __future__ import annotations

from internevo.refine.code.code_quality import CodeQuality
from internevo.refine.code.file_dedup import FileDedup
from internevo.refine.code.repositories import Repositories
from internevo.refine.code.repository_documents import RepositoryDocuments
from internevo.refine.extract import Extract
from internevo.refine.filter import Filter
from internevo.refine.language import Language
from internevo.refine.long.length import Length
from internevo.refine.long.long_statistics import LongStatistics
from internevo.refine.long.perplexity_difference import PerplexityDifference
from internevo.refine.near_duplicates.dedup import Dedup
from internevo.refine.quality import Quality
from internevo.refine.rules import Rules
from internevo.refine.safety import Safety
from internevo.refine.sample import Sample
from internevo.refine.step import Step

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
