"""Documents more or less often, by class."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from internevo.refine.sample import Sample
from internevo.refine.shards import Document
from tests.refine.running import dropped, kept, place_of, run_phases

WEIGHTS = {"high": 2.5, "moderate": 1.0, "low": 0.3, "none": 0.0}


def test_each_class_occurs_as_often_as_its_weight_says(tmp_path: Path) -> None:
    classes = [*WEIGHTS, None]
    documents = [Document(f"text {n}", f"id-{n}", {"quality": classes[n % 5]}) for n in range(10_000)]
    place = place_of(tmp_path, documents, 3)
    run_phases(Sample(weights=WEIGHTS, other=0.5), place, random.Random(0))
    found = kept(place)
    by_class = Counter(one.metadata["quality"] for one in found)
    # five standard deviations of a binomial of 2,000
    for name, weight in {**WEIGHTS, None: 0.5}.items():
        part = weight % 1
        assert abs(by_class[name] - 2000 * weight) <= 5 * (2000 * part * (1 - part)) ** 0.5
    copies = Counter(one.text for one in found)
    for document in documents:
        least = int({**WEIGHTS, None: 0.5}[document.metadata["quality"]])
        assert copies[document.text] in (least, least + 1)
    assert len({one.id for one in found}) == len(found)
    assert {one.text for one in found}.isdisjoint(one.text for one in dropped(place))
    assert len(copies) + len(dropped(place)) == len(documents)
    assert {one.metadata["reason"] for one in dropped(place)} == {f"not sampled: {x}" for x in ("low", "none", None)}


def test_the_choice_depends_on_the_id_alone(tmp_path: Path) -> None:
    documents = [Document("", f"id-{n}", {"quality": "low"}) for n in range(300)]
    chosen = []
    for shards, seed, order in ((1, 0, documents), (4, 0, documents[::-1]), (1, 1, documents)):
        place = place_of(tmp_path / f"{shards}-{seed}", order, shards)
        run_phases(Sample(weights=WEIGHTS, seed=seed), place)
        chosen.append({one.id for one in kept(place)})
    assert chosen[0] == chosen[1] != chosen[2]
