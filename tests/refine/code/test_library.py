"""The interpreter's library as a repository: its imports and their order, against Python's own parser."""

from __future__ import annotations

import random

import networkx as nx
import pytest

from internevo.refine.code.imports import python
from internevo.refine.code.imports.tree import FileTree
from internevo.refine.code.repository_documents import files_in_order
from tests.refine.code.graphs import too_early
from tests.refine.code.library import imported, library

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def graphs() -> tuple[nx.DiGraph, nx.DiGraph]:
    return imported({file.id: file.text for file in library()})


def test_every_import_is_found_and_none_else(graphs: tuple[nx.DiGraph, nx.DiGraph]) -> None:
    texts = {file.id: file.text for file in library()}
    tree = FileTree(texts)
    expected = set(graphs[0].edges)
    readable = {path for path in graphs[0] if path.endswith(".py")}
    ours = {(path, one.path) for path in readable for one in python.imports(path, texts[path], tree)}
    assert ours == expected
    assert len(expected) > 2000


def test_no_file_stands_before_one_that_it_imports(graphs: tuple[nx.DiGraph, nx.DiGraph]) -> None:
    files = list(library())
    assert len(files) > 500
    random.Random(0).shuffle(files)
    order = [file.metadata["path"] for file in files_in_order(files)]
    assert sorted(order) == sorted(file.id for file in library())
    assert too_early(order, *graphs) == []
    assert len(too_early(sorted(order), *graphs)) > 500, "which the order by name does not give"
