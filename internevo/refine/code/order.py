"""Files in an order in which none stands before one that it imports, as far as there is such an order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

Graph = Mapping[str, Sequence[str]]
"""What each file imports. A file that imports nothing may be absent."""


def dependency_order(files: Sequence[str], imports: Graph, at_once: Graph) -> list[str]:
    """All `files`, each after those that it imports; linear in files and imports.

    A circle of imports is broken at one that can wait, which is not in `at_once`; without such, by the files' names.
    """
    order: list[str] = []
    for circle in components(files, imports):
        for smaller in components(sorted(circle), at_once):
            order += sorted(smaller)
    return order


def components(nodes: Sequence[str], edges: Graph) -> Iterator[list[str]]:
    """The strongly connected components of these nodes, each after those that it has edges to.

    Tarjan's algorithm (SIAM J. Comput. 1(2), 1972) without recursion. The order follows from that of `nodes` and
    `edges`; edges to other nodes do not count.
    """
    known = frozenset(nodes)
    place: dict[str, int] = {}  # where a node stands on the stack; above all of it once its component is found
    lowest: dict[str, int] = {}
    stack: list[str] = []
    for root in nodes:
        if root in place:
            continue
        path = [(root, iter(edges.get(root, ())))]
        while path:
            node, targets = path[-1]
            if node not in place:
                place[node] = lowest[node] = len(stack)
                stack.append(node)
            for target in filter(known.__contains__, targets):
                if target not in place:
                    path.append((target, iter(edges.get(target, ()))))
                    break
                lowest[node] = min(lowest[node], place[target])
            else:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[node])
                if lowest[node] == place[node]:
                    found = stack[place[node] :]
                    del stack[place[node] :]
                    place.update(dict.fromkeys(found, len(nodes)))
                    yield found
