"""Whether an order of files is one by dependency, by networkx."""

from __future__ import annotations

import networkx as nx


def circles(graph: nx.DiGraph) -> dict[str, int]:
    """Each file's strongly connected component."""
    return {node: n for n, one in enumerate(nx.strongly_connected_components(graph)) for node in one}


def too_early(order: list[str], graph: nx.DiGraph, at_once: nx.DiGraph) -> list[tuple[str, str]]:
    """Files that stand before one that they import, though no circle of imports makes them. Inside a circle, those
    that need another at once must come behind it, unless that is a circle too."""
    place = {file: number for number, file in enumerate(order)}
    outer = circles(graph)
    inner_graph = nx.DiGraph([(u, v) for u, v in at_once.edges if outer[u] == outer[v]])
    inner = circles(inner_graph)
    across = [(u, v) for u, v in graph.edges if outer[u] != outer[v]]
    inside = [(u, v) for u, v in inner_graph.edges if inner[u] != inner[v]]
    return [(u, v) for u, v in across + inside if place[u] < place[v]]
