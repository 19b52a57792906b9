"""Documents as sets of shingles: n-grams of words, hashed to 64 bits, many documents at a time.

A word is a run of letters, marks, digits and underscores of any script, in either case. In Chinese, Japanese, Thai,
Lao, Khmer and Burmese, which have no spaces, each character is a word. So no language has to be known, and a text may
mix them. What is between words does not count.

The hash of characters c[i..j) is sum(value[c[k]] * B**(k - i)) modulo 2**64 (Karp and Rabin, 1987). There is no loop
over words: a word's hash is the difference of two places of the running sum over the text, times a power of 1/B. An
n-gram's hash is such a sum over the hashes of its words.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np

from internevo.files.hashing import hash64
from internevo.refine.near_duplicates.ragged import Ragged, running

_SEPARATOR, _PART, _ALONE = 0, 1, 2  # what a character is: between words, a part of one, or a word by itself

_SCRIPTS_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # 々〆〇
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # Katakana of half width
    (0x20000, 0x3FFFF),  # Han, two planes of nothing else
)
_MIXED_PLANES = 0x20000
"""Below, some characters are letters and some are not. After the planes of Han there are none."""

_PIECE = 2**17  # characters that are looked at together: their arrays fit into a core's cache
_BASE = 0xD1342543DE82EF97
_NGRAM_BASE = 0x9E3779B97F4A7C15  # odd, so that they have inverses modulo 2**64


def shingles(texts: Sequence[str], ngrams: int) -> Ragged:
    """The shingles of each text, hashes uint64, as often as they occur.

    A text of fewer than `ngrams` words has one shingle, a hash of all its characters: it is like no text but the same.
    """
    words, begins = _words("\n".join(texts))
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    borders = np.searchsorted(begins, running(lengths + 1))
    total = max(len(words) - ngrams + 1, 0)
    hashes = np.zeros(total, np.uint64)
    for place in range(ngrams):
        hashes = hashes * np.uint64(_NGRAM_BASE) + words[place : place + total]
    within = np.arange(ngrams, ngrams + total) <= np.repeat(borders[1:], np.diff(borders))[:total]
    counts = np.maximum(np.diff(borders) - ngrams + 1, 0)
    short = np.flatnonzero(counts == 0)
    whole = np.array([hash64(texts[number].encode(errors="surrogatepass")) for number in short.tolist()], np.uint64)
    hashes = np.insert(_mixed(hashes[within]), running(counts)[short], whole)
    return Ragged(hashes, running(np.maximum(counts, 1)))


def _words(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Every word's hash, uint64, and the character that it begins at, int64."""
    hashes, begins = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    start = 0
    while start < len(text):
        end = min(start + _PIECE, len(text))
        if end < len(text):  # between two words, unless there is but one
            space = max(text.rfind("\n", start, end), text.rfind(" ", start, end))
            end = space if space > start else end
        found, places = _words_of_piece(text[start:end])
        hashes.append(found)
        begins.append(places + start)
        start = end
    return np.concatenate(hashes), np.concatenate(begins)


def _words_of_piece(text: str) -> tuple[np.ndarray, np.ndarray]:
    kind, value, power, inverse = _tables()
    if text.isascii():
        codes = np.frombuffer(text.encode("ascii"), np.uint8)
    else:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = np.zeros(len(codes) + 2, np.uint8)
    np.take(kind, codes, out=kinds[1:-1])
    alone, part = kinds[1:-1] == _ALONE, kinds[1:-1] == _PART
    begins = np.flatnonzero(alone | (part & (kinds[:-2] != _PART)))
    ends = np.flatnonzero(alone | (part & (kinds[2:] != _PART))) + 1
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(value[codes] * power[: len(codes)], out=sums[1:])
    return (sums[ends] - sums[begins]) * inverse[begins], begins


@cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """By character: its kind, uint8, and value, uint64, the same for both cases. By place i: B**i and B**-i, uint64."""
    size = 0x110000
    kind, folded = np.full(size, _SEPARATOR, np.uint8), np.arange(size, dtype=np.uint64)
    for code in range(_MIXED_PLANES):
        character = chr(code)
        if character == "_" or unicodedata.category(character)[0] in "LMN":
            kind[code] = _PART
            lower = character.lower()
            folded[code] = ord(lower) if len(lower) == 1 else code
    kind[_MIXED_PLANES:0x40000] = _PART
    for first, last in _SCRIPTS_WITHOUT_SPACES:
        of_script = kind[first : last + 1]
        of_script[of_script == _PART] = _ALONE
    return kind, _mixed(folded + np.uint64(1)), _powers(_BASE), _powers(pow(_BASE, -1, 2**64))


def _powers(base: int) -> np.ndarray:
    factors = np.full(_PIECE, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Each bit dependent on all: the finaliser of splitmix64 (Steele, Lea and Flood, 2014)."""
    values = values * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
