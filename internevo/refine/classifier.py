"""The quality classifier that ships: logistic regression over hashed n-grams, fitted on examples of good and bad text.

Words and pairs of words; in scripts without spaces, characters, pairs and threes. The file is a safetensors file of the
weights; nothing in it is ever executed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from internevo.files.durable import write_durable
from internevo.files.errors import UserError
from internevo.files.hashing import share_of
from internevo.text.corpus import read_documents
from internevo.text.documents import Document

_FORMAT = "hashed n-grams, logistic regression, 1"
_TOKEN = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|\w+|[^\w\s]")
_STRENGTH = 10.0  # scikit-learn's `C`: more follows the examples more closely
_LONGEST = 100_000  # characters of a text that are looked at: more cost time and change little


@dataclass(frozen=True)
class Fitted:
    """How well a classifier does on documents that it has not learned from."""

    learned: int
    held_out: int
    accuracy: float
    auc: float  # the chance that a good document scores higher than a bad one


class Classifier:
    """A weight for each hash of an n-gram."""

    def __init__(self, weights: np.ndarray, bias: float):
        self._weights, self._bias = weights, bias
        self._vectorizer = _vectorizer(len(weights))

    def score(self, text: str) -> float:
        """The chance that the text is good, between 0 and 1."""
        hashed = self._vectorizer.transform([text])
        logit = float(hashed.data @ self._weights[hashed.indices]) + self._bias
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, logit))))

    def save(self, path: Path) -> None:
        from safetensors.numpy import save

        head = {"internevo": json.dumps({"format": _FORMAT, "bias": self._bias})}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durable(path, save({"weights": self._weights}, metadata=head))


def load_classifier(path: Path) -> Classifier:
    """Raises UserError for a file that is no classifier."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            head: dict[str, Any] = json.loads((file.metadata() or {}).get("internevo", "{}"))
            if head.get("format") != _FORMAT:
                raise UserError(f"{path} is not a classifier of this version: expected {_FORMAT!r} in its head")
            return Classifier(file.get_tensor("weights"), head["bias"])
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a classifier: {error}") from None


def train_classifier(
    good: Sequence[Path],
    bad: Sequence[Path],
    output: Path,
    *,
    text_key: str = "text",
    held_out: float = 0.1,
    bits: int = 20,
    max_documents: int = 500_000,
) -> Fitted:
    """Fit a classifier of `2 ** bits` weights and write it to `output`.

    A document is held out when a hash of its text falls below that share: equal texts are on the same side. Both
    classes count the same, however many documents they have. Raises UserError when `output` exists, nothing can be
    read, or a class has too few documents.
    """
    if output.exists():
        raise UserError(f"{output} exists already; it is not overwritten. Choose another name or remove it.")
    vectorizer = _vectorizer(2**bits)
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    good_texts, bad_texts = (_texts(paths, text_key, max_documents) for paths in (good, bad))
    texts = good_texts + bad_texts
    truth = np.repeat([1, 0], [len(good_texts), len(bad_texts)])
    held = np.array([share_of(text.encode(errors="replace")) < held_out for text in texts], bool)
    for name, label in (("good", 1), ("bad", 0)):
        for what, side in (("to learn from", ~held), ("held out", held)):
            if not (side & (truth == label)).any():
                count = int((truth == label).sum())
                raise UserError(f"of {count:,} {name} documents none is {what}: give more, a few thousand are good")
    hashed = vectorizer.transform(texts)
    used = np.unique(hashed[~held].indices)  # weights of what never occurs are 0 in any case
    model = LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=300)
    model.fit(hashed[~held][:, used], truth[~held])
    weights = np.zeros(2**bits, np.float32)
    weights[used] = model.coef_[0]
    fitted = Classifier(weights, float(model.intercept_[0]))
    scores = model.predict_proba(hashed[held][:, used])[:, 1]
    accuracy = float(((scores > 0.5) == (truth[held] == 1)).mean())
    fitted.save(output)
    return Fitted(int((~held).sum()), int(held.sum()), accuracy, float(roc_auc_score(truth[held], scores)))


def _texts(paths: Sequence[Path], text_key: str, most: int) -> list[str]:
    found = chain.from_iterable(read_documents(path, text_key) for path in paths)
    return list(islice((one.text for one in found if isinstance(one, Document) and one.text.strip()), most))


def _vectorizer(size: int) -> Any:
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
    except ImportError:
        raise UserError("the classifier needs scikit-learn: pip install 'internevo[refine]'") from None
    return HashingVectorizer(n_features=size, analyzer=_ngrams)


def _ngrams(text: str) -> Iterator[str]:
    tokens = _TOKEN.findall(text[:_LONGEST].lower())
    yield from tokens
    yield from map(" ".join, pairwise(tokens))
    for one, two, three in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if one > "\u0e00" and two > "\u0e00" and three > "\u0e00" and len(one + two + three) == 3:
            yield f"{one} {two} {three}"
