"""The interpreter's own library as a repository, and what its imports are by Python's own parser."""

from __future__ import annotations

import ast
import os
import posixpath
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import networkx as nx

from internevo.refine.code.repositories import Repositories
from internevo.refine.shards import Document

LIBRARY = Path(os.__file__).parent


@cache
def library() -> tuple[Document, ...]:
    """All of its files that are kept, installed packages aside."""
    step = Repositories()
    documents = []
    for path in sorted(LIBRARY.rglob("*")):
        inside = path.relative_to(LIBRARY).as_posix()
        if path.is_file() and "site-packages" not in inside and "__pycache__" not in inside:
            text, reason = step.judge(path, inside)
            if reason is None:
                documents.append(Document(text, inside, {"repository": "library", "path": inside}))
    return tuple(documents)


def parsed(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError):
            return None


def imported(texts: Mapping[str, str]) -> tuple[nx.DiGraph, nx.DiGraph]:
    """Who imports whom among Python files, by path: all imports, and those that are not indented."""
    everything, at_once = nx.DiGraph(), nx.DiGraph()
    for path, text in texts.items():
        if not path.endswith(".py") or (tree := parsed(text)) is None:
            continue
        everything.add_node(path)
        for node in _statements(tree):
            for target in _targets(node, path, texts) if isinstance(node, ast.Import | ast.ImportFrom) else ():
                everything.add_edge(path, target)
                if node.col_offset == 0:  # type: ignore[attr-defined]
                    at_once.add_edge(path, target)
    return everything, at_once


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All statements, wherever they are; imports are nothing else."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield child
            yield from _statements(child)


def _targets(node: ast.Import | ast.ImportFrom, path: str, texts: Mapping[str, str]) -> Iterator[str]:
    def module(parts: list[str]) -> str | None:
        base = posixpath.join(*parts) if parts else ""
        package = posixpath.join(base, "__init__.py")
        return package if package in texts else f"{base}.py" if f"{base}.py" in texts else None

    folder = path.split("/")[:-1]
    roots = [folder[:depth] for depth in range(len(folder), -1, -1) if module(folder[:depth]) is None]
    if isinstance(node, ast.Import):
        asked = [(root, alias.name.split("."), None) for alias in node.names for root in [roots]]
    elif node.level:
        up = folder[: len(folder) - node.level + 1]
        asked = [([up], node.module.split(".") if node.module else [], alias.name) for alias in node.names]
    else:
        assert node.module is not None
        asked = [(roots, node.module.split("."), alias.name) for alias in node.names]
    for places, names, member in asked:
        for root in places:
            found = member and module([*root, *names, member])
            lengths = range(len(names), 0 if names else -1, -1)
            if found := found or next((one for n in lengths if (one := module([*root, *names[:n]]))), None):
                yield found
                break
