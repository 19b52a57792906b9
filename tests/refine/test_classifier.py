"""The classifier that ships tells good text from bad, in English and Chinese, and is what scikit-learn makes of it."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from internevo.files.errors import UserError
from internevo.refine.classifier import _vectorizer, load_classifier, train_classifier
from internevo.refine.quality import Quality
from internevo.refine.shards import Document
from tests.refine.corpus import CHINESE, docstrings, write_jsonl


def pieces() -> list[str]:
    """Real text in short pieces, English and Chinese."""
    english = [" ".join(text.split()[at : at + 40]) for text in docstrings() for at in range(0, 80, 40)]
    chinese = [text[at : at + 45] for text in CHINESE for at in range(0, len(text) - 45, 3)]
    return english + chinese


def shuffled(text: str, seed: int) -> str:
    """The same words or characters, in no order: nothing but n-grams can tell."""
    parts = text.split() if " " in text else list(text)
    random.Random(seed).shuffle(parts)
    return (" " if " " in text else "").join(parts)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, texts = tmp_path_factory.mktemp("corpora"), pieces()
    bad = [shuffled(text, number) for number, text in enumerate(texts)]
    return (
        write_jsonl(folder / "good.jsonl", ({"text": text} for text in texts)),
        write_jsonl(folder / "bad.jsonl", ({"text": text} for text in [*bad, *bad[:100]])),
    )


@pytest.mark.slow
def test_good_and_bad_are_told_apart(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    good, bad = corpora
    model = tmp_path / "new" / "quality.model"
    fitted = train_classifier([good], [bad], model, held_out=0.2, bits=18)
    assert fitted.held_out > 100
    assert fitted.learned + fitted.held_out == 2 * len(pieces()) + 100
    assert fitted.auc > 0.8  # chance is 0.5; documents that it has not seen
    assert fitted.accuracy > 0.7
    step = Quality(classifier=str(model))
    step.prepare()
    fresh = ["今天下午我们一起去图书馆看书，晚上回家吃饭。", "The function returns the number of bytes that were read."]
    for number, text in enumerate(fresh):
        good_one, bad_one = Document(text, "g"), Document(shuffled(text, number), "b")
        step.judge(good_one)
        step.judge(bad_one)
        assert good_one.metadata["quality"] > bad_one.metadata["quality"]
    again = tmp_path / "again.model"
    train_classifier([good], [bad], again, held_out=0.2, bits=18)
    assert again.read_bytes() == model.read_bytes()


def test_scores_are_scikit_learns(corpora: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.linear_model import LogisticRegression

    fits = []
    fit = LogisticRegression.fit
    monkeypatch.setattr(LogisticRegression, "fit", lambda self, *data: fits.append(fit(self, *data)) or fits[-1])
    train_classifier([corpora[0]], [corpora[1]], tmp_path / "m", bits=16)
    (model,) = fits
    loaded = load_classifier(tmp_path / "m")
    texts = [*docstrings(20), *CHINESE, "", "!!!", "x" * 300_000]
    hashed = _vectorizer(2**16).transform(texts)
    # the model has the columns that occur in what it learned from: others count nothing
    weights = load_file(tmp_path / "m")["weights"]
    assert np.count_nonzero(weights) <= model.coef_.shape[1]
    used = np.flatnonzero(weights)
    assert weights[used] == pytest.approx(model.coef_[model.coef_ != 0], rel=1e-4)
    expected = 1 / (1 + np.exp(-(hashed @ weights + model.intercept_[0])))
    assert [loaded.score(text) for text in texts] == pytest.approx(expected, abs=1e-5)


def test_nothing_is_overwritten_and_too_little_is_told(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", [{"text": "one"}])
    with pytest.raises(UserError, match="of 1 good documents none is"):
        train_classifier([one], [one], tmp_path / "m")
    (tmp_path / "m").write_text("mine")
    with pytest.raises(UserError, match="m exists already; it is not overwritten"):
        train_classifier([one], [one], tmp_path / "m")
    with pytest.raises(UserError, match="m is not a classifier"):
        load_classifier(tmp_path / "m")
    save_file({"weights": np.zeros(4, np.float32)}, tmp_path / "other")
    with pytest.raises(UserError, match="other is not a classifier of this version"):
        load_classifier(tmp_path / "other")


def test_the_verb(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "internevo",
        "data",
        "classifier",
        "train",
        *corpora,
        "--out",
        tmp_path / "q.model",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    assert "AUC 0." in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (again.returncode, "q.model exists already" in again.stderr) == (2, True)
