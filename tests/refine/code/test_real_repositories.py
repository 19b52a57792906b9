"""The code chain on the interpreter's library, by its command: each package a repository, the plain modules another,
with planted copies, and files that are no one's work."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import pytest

from internevo.refine.shards import Document
from tests.refine.code.graphs import circles, too_early
from tests.refine.code.library import LIBRARY, imported
from tests.refine.code.test_repositories import plant
from tests.refine.running import refined, step_documents

pytestmark = pytest.mark.slow

NO_PACKAGES = {"test", "site-packages", "lib-dynload", "__pycache__", "venv"}  # a folder called venv is left out
MODULES = "modules"
COPIES = 60
LOW = {
    "syntax": "def broken(:\n    return 'of a file that no Python can parse'\n",
    "repeated lines": "register_a_handler_for(event)\n" * 50,
    "many digits": "table = [\n" + "    3141592653589793,\n    2718281828459045,\n" * 3 + "]\n",
    "short": "x = 1\n",
}
"""Files of the class low, by why they are."""


@dataclass(frozen=True)
class Code:
    """What was planted, and the refinery's output."""

    repositories: Path
    unwanted: dict[str, str]
    """Paths of generated and minified files and the like, in `json`, and the reasons."""
    copies: list[str]
    """Ids of older copies of files, some with other white space."""
    output: Path

    def joined(self) -> dict[str, list[Document]]:
        """The documents of each repository, in the order of their parts."""
        found = defaultdict(list)
        for one in step_documents(self.output, "05-repository_documents", "kept"):
            found[one.metadata["repository"]].append(one)
        return {name: sorted(parts, key=lambda one: one.metadata["part"]) for name, parts in found.items()}

    def order(self, parts: list[Document]) -> list[str]:
        return [path for one in parts for path in one.metadata["paths"]]

    def imports(self, name: str, paths: list[str]) -> tuple[nx.DiGraph, nx.DiGraph]:
        """By Python's own parser, from the files on the disk."""
        return imported({path: (self.repositories / name / path).read_text("utf-8-sig") for path in paths})


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Code:
    folder = tmp_path_factory.mktemp("code")
    repositories = folder / "repositories"
    skipped = shutil.ignore_patterns("*.pyc", "__pycache__")
    packages = [one for one in sorted(LIBRARY.iterdir()) if one.is_dir() and one.name not in NO_PACKAGES]
    for number, package in enumerate(packages):  # as projects have their packages
        place = repositories / package.name / ("src" if number % 2 else "") / package.name
        shutil.copytree(package, place, ignore=skipped)
    (repositories / MODULES).mkdir()
    for module in LIBRARY.glob("*.py"):
        shutil.copy2(module, repositories / MODULES)
    copies = plant_copies(repositories, random.Random(0))
    for why, text in LOW.items():
        (repositories / "json" / f"{why.replace(' ', '_')}.py").write_text(text)
    unwanted = plant(repositories / "json")
    steps = [
        {"repositories": {"shards": 4}},
        "file_dedup",
        "code_quality",
        {"sample": {"weights": {"moderate": 0.9}}},
        {"repository_documents": {"max_bytes": 2**19}},
    ]
    return Code(repositories, unwanted, copies, refined(folder, [repositories], steps))


def plant_copies(repositories: Path, chance: random.Random) -> list[str]:
    """Into another repository each, older than what they are copies of."""
    files = [path for path in sorted(repositories.rglob("*.py")) if path.stat().st_size > 200]
    copies = []
    for number, path in enumerate(chance.sample(files, COPIES)):
        text = path.read_text("utf-8-sig")
        if number % 2:
            text = text.replace("\n", "  \n\n")
        copy = repositories / "copies" / f"of_{number}_{path.name}"
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(text)
        os.utime(copy, (1_000_000_000, 1_000_000_000))
        copies.append(f"copies/{copy.name}")
    return copies


def test_no_module_stands_before_one_that_it_imports(code: Code) -> None:
    """Of each repository; in circles of imports, those alone that are no circle at import."""
    by_name, files, edges, in_circles = 0, 0, 0, 0
    for name, parts in code.joined().items():
        order = code.order(parts)
        graphs = code.imports(name, order)
        python = [path for path in order if path in graphs[0]]
        assert too_early(python, *graphs) == [], name
        by_name += len(too_early(sorted(python), *graphs))
        files, edges = files + len(python), edges + graphs[0].number_of_edges()
        in_circles += sum(count for count in Counter(circles(graphs[0]).values()).values() if count > 1)
    assert len(code.joined()) > 25
    assert files > 500
    assert edges > 1000
    assert in_circles < files / 2  # so most of the order is not left open by them
    assert by_name > 300, "which the order by name does not give"


def test_documents_have_the_files_in_that_order_and_nothing_else(code: Code) -> None:
    sampled = Counter(one.metadata["repository"] for one in step_documents(code.output, "04-sample", "kept"))
    joined = code.joined()
    assert {name: len(code.order(parts)) for name, parts in joined.items()} == sampled
    for name, parts in joined.items():
        for one in parts:
            place = 0
            for path in one.metadata["paths"]:
                text = (code.repositories / name / path).read_text("utf-8-sig").replace("\r\n", "\n").rstrip() + "\n"
                begin = one.text.find(text, place)
                assert one.text[place:begin].strip("#/*.<!-> \n") == path
                place = begin + len(text)
            assert one.text[place:] == ""


def test_copies_go_and_the_newer_stays(code: Code) -> None:
    dropped = step_documents(code.output, "02-file_dedup", "dropped")
    assert set(code.copies) <= {one.id for one in dropped}
    assert {one.metadata["reason"] for one in dropped} == {"same as another file"}
    kept = [" ".join(one.text.split()) for one in step_documents(code.output, "02-file_dedup", "kept")]
    assert len(set(kept)) == len(kept)
    assert {" ".join(one.text.split()) for one in dropped} <= set(kept)


def test_what_nobody_wrote_and_what_is_broken_goes(code: Code) -> None:
    left_out = step_documents(code.output, "01-repositories", "dropped")
    reasons = {one.metadata["path"]: one.metadata["reason"] for one in left_out if one.id.startswith("json/")}
    assert reasons == code.unwanted
    low = {one.id: one.metadata["reason"] for one in step_documents(code.output, "03-code_quality", "dropped")}
    for why in LOW:
        assert low.pop(f"json/{why.replace(' ', '_')}.py") == f"low: {why}"
    kept = step_documents(code.output, "03-code_quality", "kept")
    assert len(low) < 0.05 * len(kept), Counter(low.values())  # of the library's own files


def test_sampling_takes_a_tenth_of_the_moderate_ones_away(code: Code) -> None:
    given = Counter(one.metadata["quality"] for one in step_documents(code.output, "03-code_quality", "kept"))
    kept = Counter(one.metadata["quality"] for one in step_documents(code.output, "04-sample", "kept"))
    assert kept["high"] == given["high"] > 0
    assert 0.85 * given["moderate"] < kept["moderate"] < 0.95 * given["moderate"]
