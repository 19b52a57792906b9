"""MinHash signatures and their bands (Broder, 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, ch. 3).

Two documents' signatures agree in a share of places that estimates the Jaccard similarity of their sets of shingles,
with a standard deviation of at most sqrt(J (1 - J) / hashes): 0.04 at J = 0.7 with 128 hashes. A band is a few places
side by side; documents that agree in all of a band are candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from internevo.refine.near_duplicates.ragged import Ragged

_SEED = 42
_FOUND_AT_THRESHOLD = 0.98


@dataclass(frozen=True)
class Bands:
    """How a signature is cut."""

    count: int
    rows: int  # hashes of a band

    def found(self, similarity: float) -> float:
        """The probability that two documents of this Jaccard similarity are candidates: 1 - (1 - J**rows)**count."""
        return 1 - (1 - similarity**self.rows) ** self.count


def bands_for(hashes: int, threshold: float) -> Bands:
    """The longest bands, so the fewest useless candidates, that miss at most one in fifty at the threshold itself.

    128 hashes and 0.7 give 25 bands of 5: 99.0% found at 0.7, 99.995% at 0.8. Less similar candidates are compared.
    """
    cuts = [Bands(hashes // rows, rows) for rows in range(hashes, 0, -1)]
    return next((bands for bands in cuts if bands.found(threshold) >= _FOUND_AT_THRESHOLD), cuts[-1])


def signatures(shingles: Ragged, hashes: int) -> np.ndarray:
    """MinHash signatures, uint32 (documents, hashes), of each document's shingles, hashes uint64.

    By rensa's R-MinHash, after Dahlgaard, Knudsen and Thorup, Fast Similarity Sketching (arXiv 1704.04370): a few
    operations a shingle instead of one for each hash.
    """
    from rensa import RMinHash

    borders = shingles.borders.astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles.values, borders, hashes, _SEED)
    return np.array(matrix.to_rows(), np.uint32).reshape(len(shingles), hashes)


def band_hashes(signed: np.ndarray, bands: Bands) -> np.ndarray:
    """A hash of each band of signatures (documents, hashes): uint64 (bands, documents)."""
    result = np.zeros((bands.count, len(signed)), np.uint64)
    used = signed[:, : bands.count * bands.rows].reshape(len(signed), bands.count, bands.rows)
    for row in range(bands.rows):
        result = (result ^ used[:, :, row].T) * np.uint64(0x9E3779B97F4A7C15)
        result ^= result >> np.uint64(29)
    return result
