"""How often a run sees each token: epochs, lengths, shares that change, batch sizes, kills, any number of ranks."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.config.schema import SourceConfig
from internevo.data.batch import Batch, combine_digests
from internevo.data.length_band import Band
from internevo.data.loader import Cursor, Loader, Part
from internevo.data.mixing import Plan, capped_shares
from internevo.data.source_stream import SourceStream
from internevo.tokens.megatron import StoreError
from tests.tokens.stores import numbered, write_store

NAMES = ("web", "code", "books")
FIRST = 10**6
"""Ids of a source begin at a multiple of it: an id says its source and its place."""


def make_sources(folder: Path, lengths: Sequence[Sequence[int]], weights: Sequence[float]) -> list[SourceConfig]:
    sources = []
    for number, (name, each, weight) in enumerate(zip(NAMES, lengths, weights, strict=False)):
        write_store(folder / name / "train", numbered(each, first=number * FIRST + 1))
        sources.append(SourceConfig(str(folder / name), weight))
    return sources


def steps_of(plan: Plan, steps: int, kills: Sequence[int] = (), parts: Sequence[int] = (1,)) -> list[list[Batch]]:
    """Each step's batches, one a rank. The run is killed before the steps `kills` and begins again from its cursor,
    with the next number of ranks each time."""
    seen: list[list[Batch]] = []
    cursor = Cursor()
    for number, begin in enumerate([0, *sorted(kills)]):
        end = sorted([*kills, steps])[number]
        size = parts[number % len(parts)]
        saved = json.loads(json.dumps(cursor.to_json()))
        ranks = [
            Loader(plan, seed=1, cursor=Cursor.from_json(saved), step=begin, part=Part(rank, size))
            for rank in range(size)
        ]
        for _ in range(begin, end):
            seen.append([rank.next() for rank in ranks])
        assert len({json.dumps(rank.cursor.to_json()) for rank in ranks}) == 1
        cursor = ranks[0].cursor
        for rank in ranks:
            rank.__exit__()
    return seen


def rows_of(step: list[Batch]) -> np.ndarray:
    return np.concatenate([batch.tokens for batch in step])


def digest_of(step: list[Batch]) -> str:
    return combine_digests([batch.row_digests for batch in step], step[0].label_count)


def counts_of(steps: list[list[Batch]]) -> Counter[int]:
    ids = np.concatenate([rows_of(step).ravel() for step in steps])
    return Counter(ids[ids > 0].tolist())


DOCUMENTS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=25), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(
    DOCUMENTS,
    st.lists(st.floats(0.05, 1), min_size=3, max_size=3),
    st.sampled_from(["best_fit", "concat"]),
    st.integers(2, 33),
    st.lists(st.integers(1, 11), max_size=3, unique=True),
    st.permutations([1, 2, 3, 4, 6, 12]),
)
def test_each_token_as_often_as_the_mixture_says(
    lengths: list[list[int]], weights: list[float], packing: str, seq_len: int, kills: list[int], parts: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sources = make_sources(Path(folder), lengths, weights)
        plan = Plan.constant(sources, seq_len=seq_len, rows=12, packing=packing, block_size=8)
        steps = steps_of(plan, 12, kills, parts)
        assert [digest_of(step) for step in steps] == [digest_of(step) for step in steps_of(plan, 12)]
    seen, drawn = counts_of(steps), dict.fromkeys(NAMES, 0)
    total = sum(weights[: len(sources)])
    for step in steps:
        whole = step[0]  # what it knows of all rows
        for name, real in zip(whole.sources, whole.real_tokens, strict=True):
            drawn[name] += real
            so_far = sum(drawn.values())
            for source, weight in zip(sources, weights, strict=False):
                assert abs(drawn[Path(source.path).name] - so_far * weight / total) <= 2 * seq_len
    for number, each in enumerate(lengths):
        size = sum(each)
        counts = [seen[number * FIRST + 1 + place] for place in range(size)]
        assert sum(counts) == drawn[NAMES[number]]
        epochs = sum(counts) // size
        assert set(counts) <= {epochs - 1, epochs, epochs + 1}  # an epoch's last block may be under way
        assert sum(count < epochs for count in counts) == 0 or sum(count > epochs for count in counts) == 0


def test_ranks_change_in_the_middle_of_an_epoch_and_no_digest_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sources = make_sources(tmp_path, [rng.integers(1, 90, 300), rng.integers(1, 200, 90)], [0.6, 0.4])
    plan = Plan.constant(sources, seq_len=64, rows=28, packing="best_fit")
    one = steps_of(plan, 9)
    other = steps_of(plan, 9, kills=(3, 6), parts=(1, 7, 4))
    assert [len(step) for step in other] == [1, 1, 1, 7, 7, 7, 4, 4, 4]
    assert [digest_of(step) for step in one] == [digest_of(step) for step in other]
    for step, reference in zip(other, one, strict=True):
        assert {batch.label_count for batch in step} == {reference[0].label_count}
        labels = np.concatenate([batch.labels for batch in step])
        assert np.array_equal(labels, reference[0].labels)


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 10) | st.just(0.0), min_size=1),
    st.lists(st.floats(0, 1000, allow_subnormal=False) | st.just(float("inf")), min_size=6, max_size=6),
    st.floats(1, 2000),
)
def test_capped_shares(weights: dict[str, float], limits: list[float], tokens: float) -> None:
    left = dict(zip("abcdef", limits, strict=True))
    shares = capped_shares(weights, left, tokens)
    useful = {name for name, weight in weights.items() if weight > 0 and left[name] > 0}
    assert sum(shares.values()) == pytest.approx(1 if useful else 0)
    if sum(left[name] for name in useful) < tokens:
        return  # they have too little together, and give what they have
    for name, share in shares.items():
        assert share * tokens <= left[name] * (1 + 1e-9) + 1e-6
    # who is not held back by what it has gets the same for each unit of weight, and nobody gets more
    free = [name for name in useful if shares[name] * tokens < left[name] * (1 - 1e-6)]
    rates = [shares[name] / weights[name] for name in free]
    assert rates == pytest.approx([rates[0]] * len(rates)) if rates else True
    for name in useful - set(free):
        assert not rates or shares[name] / weights[name] <= rates[0] * (1 + 1e-6)


@pytest.mark.parametrize("packing", ["best_fit", "concat"])
def test_a_source_that_may_be_read_so_often_is_read_so_often(tmp_path: Path, packing: str) -> None:
    """Its share shrinks to what the stage can have of it, evenly, and ends after exactly its epochs."""
    rng = np.random.default_rng(1)
    web, code = rng.integers(1, 60, 500), rng.integers(1, 60, 50)
    sources = make_sources(tmp_path, [web, code], [0.5, 0.5])
    sources[1].max_epochs = 2
    steps = 40
    plan = replace(Plan.constant(sources, seq_len=64, rows=8, packing=packing, block_size=16), steps=steps)
    unbroken = steps_of(plan, steps)
    cut = steps_of(plan, steps, kills=(1, 17, 39), parts=(1, 2, 4, 8))
    assert [digest_of(step) for step in unbroken] == [digest_of(step) for step in cut]
    seen = counts_of(unbroken)
    counts = [seen[FIRST + 1 + place] for place in range(int(code.sum()))]
    assert max(counts) <= 2
    filled = sum(seen.values()) / (steps * 8 * 64)  # a stage is planned in places, of which padding takes some
    assert sum(counts) >= 2 * code.sum() * filled - 64
    half = counts_of(unbroken[: steps // 2])
    of_code = sum(count for id_, count in half.items() if id_ > FIRST)
    assert of_code == pytest.approx(sum(counts) / 2, abs=2 * 64)  # not all at the beginning


def test_one_epoch_exactly_ends_with_padding(tmp_path: Path) -> None:
    sources = make_sources(tmp_path, [[30] * 21], [1.0])
    sources[0].max_epochs = 1
    plan = replace(Plan.constant(sources, seq_len=64, rows=4, packing="concat"), steps=3)  # 768 places for 630 tokens
    steps = steps_of(plan, 3, kills=(2,))
    assert counts_of(steps) == Counter(range(1, 631))
    assert sorted(steps[-1][0].real_tokens)[:2] == [0, 0]  # ten rows hold them all


@pytest.mark.parametrize("changes", [(), ((4, {"web": 0.0, "code": 1.0}),)])
def test_a_source_without_weight_gives_nothing(
    tmp_path: Path, changes: tuple[tuple[int, dict[str, float]], ...]
) -> None:
    sources = make_sources(tmp_path, [[30] * 21, [30] * 100], [1.0, 0.0])
    sources[0].max_epochs = 1
    plan = Plan(tuple(sources), 64, "concat", ((0, 4),), changes, 8)
    with pytest.raises(StoreError, match=r"steps 1 to \d .* only 630 within their max_epochs: web 630\. "):
        Loader(plan, seed=0)


def test_no_step_is_nothing_but_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an estimate was too high, which the check at the beginning rests on."""
    sources = make_sources(tmp_path, [[30] * 21], [1.0])
    sources[0].max_epochs = 1
    monkeypatch.setattr(SourceStream, "left", 10**6)
    plan = replace(Plan.constant(sources, seq_len=64, rows=4, packing="concat"), steps=9)
    with Loader(plan, seed=0) as batches:
        assert sum(sum(batches.next().real_tokens) for _ in range(3)) == 630
        with pytest.raises(StoreError, match="step 4 of the stage would be nothing but padding"):
            batches.next()


def test_a_longer_stage_spreads_what_is_left_of_a_capped_source(tmp_path: Path) -> None:
    sources = make_sources(tmp_path, [[30] * 20, [30] * 200], [0.5, 0.5])
    sources[0].max_epochs = 1  # 600 tokens of 5,120
    short = Plan(tuple(sources), 64, "concat", ((0, 4),), (), 20)
    with Loader(short, seed=0) as batches:
        for _ in range(10):
            batches.next()
        cursor = batches.cursor
    before = cursor.sources["web"].tokens
    assert before == pytest.approx(300, abs=64)
    with Loader(replace(short, steps=40), seed=0, cursor=cursor, step=10) as batches:
        for _ in range(15):
            batches.next()
        assert batches.cursor.sources["web"].tokens - before == pytest.approx(150, abs=64)


def test_a_stage_that_wants_more_than_there_is_does_not_begin(tmp_path: Path) -> None:
    sources = make_sources(tmp_path, [[30] * 21], [1.0])
    sources[0].max_epochs = 1
    plan = replace(Plan.constant(sources, seq_len=64, rows=4, packing="concat"), steps=4)
    with pytest.raises(
        StoreError, match=r"steps 1 to 4 .* 1,024 tokens, but .* only 630 within their max_epochs: web 630"
    ):
        Loader(plan, seed=1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(0, 61), st.integers(2, 40))
def test_bands_share_a_store_out(lengths: list[int], border: int, seq_len: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder) / "train", numbered(lengths))
        found: list[int] = []
        for band in (Band(0, border), Band(border + 1)):
            stream = SourceStream("web", store, "best_fit", seq_len, 7, band=band, max_epochs=1, block_size=4)
            inside = [length for length in lengths if band.least <= length <= (band.most or 10**9) and length > 0]
            if band.most == 0:
                inside = []
            assert stream.epoch_tokens == sum(inside)
            ids: list[int] = []
            while (row := stream.next_row()) is not None:
                for first, length in zip(row.first.tolist(), row.length.tolist(), strict=True):
                    ids += store.slice(first, first + length).tolist()
            assert len(ids) == sum(inside)
            found += ids
    assert sorted(found) == list(range(1, sum(lengths) + 1))


def test_half_the_tokens_from_short_documents(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    (source,) = make_sources(tmp_path, [rng.integers(1, 400, 400)], [1.0])
    short = replace(source, name="short", max_tokens=100, weight=0.5)
    long = replace(source, name="long", min_tokens=101, weight=0.5)
    plan = Plan.constant([short, long], seq_len=512, rows=4, packing="best_fit")
    drawn: Counter[str] = Counter()
    for (batch,) in steps_of(plan, 20):
        for name, lengths, real in zip(batch.sources, batch.lengths, batch.real_tokens, strict=True):
            drawn[name] += real
            documents = lengths if sum(lengths) == real else lengths[:-1]
            assert all((length <= 100) == (name == "short") for length in documents)
    assert abs(drawn["short"] - drawn["long"]) <= 2 * 512


def test_a_band_that_holds_nothing_is_told(tmp_path: Path) -> None:
    (source,) = make_sources(tmp_path, [[30] * 21], [1.0])
    source.min_tokens = 31
    with pytest.raises(StoreError, match=r"source web: .* holds no documents of at least 31 tokens"):
        Loader(Plan.constant([source], seq_len=64, rows=4, packing="concat"), seed=1)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 19), st.floats(0, 1)), max_size=3, unique_by=lambda one: one[0]),
    st.lists(st.integers(1, 19), max_size=3, unique=True),
)
def test_a_mixture_changes_within_a_stage_with_exact_accounts(
    changes: list[tuple[int, float]], kills: list[int]
) -> None:
    rng = np.random.default_rng(3)
    with tempfile.TemporaryDirectory() as folder:
        sources = make_sources(Path(folder), [rng.integers(1, 60, 300), rng.integers(1, 60, 300)], [0.7, 0.3])
        plan = Plan.constant(sources, seq_len=32, rows=4, packing="best_fit")
        told = tuple((step, {"web": weight, "code": 1 - weight}) for step, weight in sorted(changes))
        plan = replace(plan, changes=told, steps=20)
        steps = steps_of(plan, 20, kills, (1, 2, 4))
        assert [digest_of(step) for step in steps] == [digest_of(step) for step in steps_of(plan, 20)]
    begins = [0, *(step for step, _ in told)]
    shares = [0.7, *(weights["web"] for _, weights in told)]
    for begin, end, share in zip(begins, [*begins[1:], 20], shares, strict=True):
        web = total = 0
        for step in steps[begin:end]:
            for name, real in zip(step[0].sources, step[0].real_tokens, strict=True):
                web, total = web + real * (name == "web"), total + real
                assert abs(web - share * total) <= 2 * 32
    seen = counts_of(steps)
    assert max(seen.values()) == 1  # and no token came twice over all changes


def test_batches_grow(tmp_path: Path) -> None:
    (source,) = make_sources(tmp_path, [[30] * 400], [1.0])
    plan = Plan((source,), 64, "concat", ((0, 2), (3, 4), (5, 8)))
    steps = steps_of(plan, 7, kills=(1, 3, 4, 6), parts=(1, 2, 1, 2, 1))
    assert [len(rows_of(step)) for step in steps] == [2, 2, 2, 4, 4, 8, 8]
    flat = Plan.constant([source], seq_len=64, rows=2, packing="concat")
    reference = np.concatenate([rows_of(step) for step in steps_of(flat, 15)])
    assert np.array_equal(np.concatenate([rows_of(step) for step in steps]), reference)


def test_cut_documents_and_padding_are_counted(tmp_path: Path) -> None:
    (source,) = make_sources(tmp_path, [[40] * 32], [1.0])
    source.max_epochs = 1
    (concat,) = steps_of(replace(Plan.constant([source], seq_len=64, rows=20, packing="concat"), steps=1), 1)
    assert (concat[0].documents, concat[0].cut_documents) == (32, 16)  # every other one lies on a border
    assert sum(concat[0].real_tokens) == 32 * 40 == 20 * 64
    (fit,) = steps_of(replace(Plan.constant([source], seq_len=64, rows=20, packing="best_fit"), steps=1), 1)
    assert (fit[0].documents, fit[0].cut_documents) == (20, 0)
    assert sum(fit[0].real_tokens) == 20 * 40


@pytest.mark.parametrize("packing", ["best_fit", "concat"])
def test_larger_blocks_pad_less(tmp_path: Path, packing: str) -> None:
    """Each block's last row is not full: 64 documents fill four rows, 1,024 fill 60."""
    lengths = np.random.default_rng(2).integers(1, 60, 1024)
    sources = make_sources(tmp_path, [lengths], [1.0])
    padding = []
    for block in (64, 1024):
        steps = steps_of(Plan.constant(sources, seq_len=512, rows=8, packing=packing, block_size=block), 7, kills=(3,))
        assert set(counts_of(steps).values()) == {1}
        padding.append(1 - sum(sum(step.real_tokens) for (step,) in steps) / (7 * 8 * 512))
    assert padding[0] > 5 * padding[1]
