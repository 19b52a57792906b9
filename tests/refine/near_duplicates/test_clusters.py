"""Clusters against networkx."""

from __future__ import annotations

import random

import networkx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.refine.near_duplicates.clusters import Clusters

links = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).filter(lambda link: link[0] != link[1]), max_size=60)


def array(pairs: list[tuple[int, int]]) -> np.ndarray:
    return np.array(pairs, np.int64).reshape(-1, 2)


@settings(max_examples=200, deadline=None)
@given(st.lists(links, max_size=5), st.randoms())
def test_what_is_linked_is_a_cluster(parts: list[list[tuple[int, int]]], chance: random.Random) -> None:
    graph = networkx.Graph([link for part in parts for link in part])
    clusters = Clusters.of(map(array, parts))
    expected = {key: min(group) for group in networkx.connected_components(graph) for key in group}
    assert dict(zip(clusters.keys.tolist(), clusters.roots.tolist(), strict=True)) == expected
    chance.shuffle(parts)
    again = Clusters.of(map(array, parts))
    assert clusters.keys.tolist() == again.keys.tolist()
    assert clusters.roots.tolist() == again.roots.tolist()


@settings(max_examples=200, deadline=None)
@given(links, st.data())
def test_the_highest_priority_is_kept_and_of_equals_the_first(
    pairs: list[tuple[int, int]], data: st.DataObject
) -> None:
    clusters = Clusters.of([array(pairs)])
    low, high = -(2**63), 2**63 - 1
    values = st.sampled_from([low, -1, 0, 1, high])
    priorities = np.array([data.draw(values) for _ in clusters.keys], np.int64)
    dropped, kept = clusters.dropped(priorities)
    of = dict(zip(clusters.keys.tolist(), priorities.tolist(), strict=True))
    expected = {}
    for group in networkx.connected_components(networkx.Graph(pairs)):
        best = max(group, key=lambda key: (of[key], -key))
        expected.update({key: best for key in group if key != best})
    assert dict(zip(dropped.tolist(), kept.tolist(), strict=True)) == expected
    assert dropped.tolist() == sorted(expected)


def test_a_long_chain_is_one_cluster() -> None:
    count = 100_000
    order = np.random.default_rng(0).permutation(count - 1)
    chain = np.stack([order, order + 1], axis=1)
    clusters = Clusters.of(np.array_split(chain, 7))
    assert (clusters.roots == 0).all()
    assert len(clusters.keys) == count
