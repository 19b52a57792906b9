"""Order by dependency of random graphs, against networkx."""

from __future__ import annotations

import random
from itertools import pairwise

import networkx as nx
from hypothesis import given
from hypothesis import strategies as st

from internevo.refine.code.order import components, dependency_order
from tests.refine.code.graphs import circles, too_early

FILES = [f"{number:02}" for number in range(24)]
edges = st.lists(st.tuples(st.sampled_from(FILES), st.sampled_from(FILES), st.booleans()), max_size=70)


@given(edges, st.randoms(use_true_random=False))
def test_no_file_stands_before_one_that_it_imports(drawn: list[tuple[str, str, bool]], chance: random.Random) -> None:
    graph, at_once = nx.DiGraph(), nx.DiGraph()
    graph.add_nodes_from(FILES)
    for importer, target, now in drawn:
        graph.add_edge(importer, target)
        if now:
            at_once.add_edge(importer, target)
    imports, needed = ({u: sorted(one[u]) for u in one} for one in (graph, at_once))
    order = dependency_order(FILES, imports, needed)
    assert sorted(order) == FILES
    assert too_early(order, graph, at_once) == []
    inner = circles(nx.DiGraph([(u, v) for u, v in at_once.edges if circles(graph)[u] == circles(graph)[v]]))
    for one, other in pairwise(order):
        if inner.get(one, one) == inner.get(other, other):
            assert one < other, "a circle of files that need each other at once stands by name"
    shuffled = dict(chance.sample(sorted(imports.items()), len(imports)))
    assert dependency_order(FILES, shuffled, needed) == order


@given(edges)
def test_components_are_those_of_networkx(drawn: list[tuple[str, str, bool]]) -> None:
    graph = nx.DiGraph([(u, v) for u, v, _ in drawn])
    graph.add_nodes_from(FILES)
    found = list(components(FILES, {u: sorted(graph[u]) for u in graph}))
    assert sorted(map(sorted, found)) == sorted(map(sorted, nx.strongly_connected_components(graph)))


def test_a_chain_longer_than_the_stack_of_calls() -> None:
    files = [f"{number:06}" for number in range(50_000)]
    chain = {one: [other] for one, other in pairwise(files)}
    assert dependency_order(files, chain, chain) == files[::-1]
    ring = {**chain, files[-1]: [files[0]]}
    assert dependency_order(files, ring, ring) == files
