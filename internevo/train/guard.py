"""What cannot be trained on: numbers that are not finite, ids that the model does not have."""

from __future__ import annotations

from internevo.data.batch import Batch
from internevo.files.errors import UserError


class TrainingDiverged(UserError):
    """Too many steps in a row had no finite loss or gradient."""


def check_skipped(in_a_row: int, limit: int, step: int) -> None:
    """Raise TrainingDiverged when `in_a_row` skipped steps reach `limit`."""
    if in_a_row >= limit:
        raise TrainingDiverged(
            f"step {step}: the loss or the gradient has not been finite for {in_a_row} steps in a row "
            f"(train.max_skipped = {limit}); none of them changed the weights. Lower optimizer.lr, lengthen "
            "schedule.warmup or look at the data of these steps; the run resumes from its last checkpoint."
        )


def check_ids(batch: Batch, vocab: int) -> None:
    """Raise UserError for a token id outside the vocabulary, which would be an opaque crash on a GPU."""
    if (least := int(batch.tokens.min())) < 0:
        raise UserError(
            f"the data holds token id {least:,} (sources of this batch: {', '.join(sorted(set(batch.sources)))}). "
            'Negative ids are masked tokens only where the manifest.json beside them says "masked": true.'
        )
    if (largest := int(batch.tokens.max())) >= vocab:
        raise UserError(
            f"the data holds token id {largest:,}, but model.vocab is {vocab:,} (sources of this batch: "
            f"{', '.join(sorted(set(batch.sources)))}). Prepare the data with the model's tokenizer, or raise "
            "model.vocab."
        )
