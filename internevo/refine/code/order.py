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
        if len(circle) == 1:
            order += circle
        else:
            for smaller in components(sorted(circle), at_once):
                order += sorted(smaller)
    return order


def components(nodes: Sequence[str], edges: Graph) -> Iterator[list[str]]:
    """The strongly connected components of these nodes, each after those that it has edges to.

    Tarjan's algorithm (SIAM J. Comput. 1(2), 1972) without recursion. The order follows from that of `nodes` and
    `edges`; edges to other nodes do not count.
    """
    number: dict[str, int | None] = dict.fromkeys(nodes)
    lowest: dict[str, int] = {}
    stack: list[str] = []
    standing: set[str] = set()
    count = 0
    for root in nodes:
        if number[root] is not None:
            continue
        path = [(root, iter(edges.get(root, ())))]
        while path:
            node, targets = path[-1]
            if number[node] is None:
                number[node] = lowest[node] = count
                count += 1
                stack.append(node)
                standing.add(node)
            for target in targets:
                if target in number and number[target] is None:
                    path.append((target, iter(edges.get(target, ()))))
                    break
                if target in standing:
                    lowest[node] = min(lowest[node], lowest[target])
            else:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[node])
                if lowest[node] == number[node]:
                    yield _popped(stack, standing, node)


def _popped(stack: list[str], standing: set[str], last: str) -> list[str]:
    """What stands on the stack down to `last`."""
    popped: list[str] = []
    while not popped or popped[-1] != last:
        popped.append(stack.pop())
        standing.remove(popped[-1])
    return popped
