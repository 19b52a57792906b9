"""One document a repository."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internevo.files.errors import UserError
from internevo.refine.code.imports import FINDERS
from internevo.refine.code.imports.tree import FileTree, Import
from internevo.refine.code.repositories import Repositories
from internevo.refine.code.repository_documents import NO_IMPORTS, RepositoryDocuments, files_in_order
from internevo.refine.shards import Document
from internevo.refine.step import Place
from tests.refine.running import kept, output, place_of, run_phases


def file(path: str, text: str, repository: str = "r", **metadata: object) -> Document:
    return Document(text, f"{repository}/{path}", {"repository": repository, "path": path, **metadata})


APP = [
    file("app/main.ts", "import { b } from './b'\n", language="typescript"),
    file("app/b.ts", "export const b = 1", language="typescript", quality="high"),
    file("docs/guide.md", "# Guide\n"),
    file("README.md", "# App\n\n\n"),
    file("package.json", "{}"),
    file("app/README.md", "inner\n"),
    file("style.css", "a {}\n"),
]


def test_a_document_is_its_files_behind_their_paths() -> None:
    (document,) = RepositoryDocuments().documents(APP)
    assert document.text == (
        "<!-- README.md -->\n# App\n\n<!-- app/README.md -->\ninner\n\n<!-- docs/guide.md -->\n# Guide\n\n"
        "# package.json\n{}\n\n// app/b.ts\nexport const b = 1\n\n// app/main.ts\nimport { b } from './b'\n\n"
        "/* style.css */\na {}\n"
    )
    assert document.id == "r"
    assert document.metadata["paths"][-3:] == ["app/b.ts", "app/main.ts", "style.css"]
    assert document.metadata["language"] == "typescript"
    assert document.metadata["quality"] == "high"


@given(st.lists(st.integers(0, 300), min_size=1, max_size=12), st.integers(1, 600), st.randoms(use_true_random=False))
def test_a_huge_repository_is_cut_between_files(sizes: list[int], most: int, chance: random.Random) -> None:
    files = [file(f"{n:02}.txt", "é" * size + "x") for n, size in enumerate(sizes)]
    chance.shuffle(files)
    parts = list(RepositoryDocuments(max_bytes=most).documents(files))
    (whole,) = RepositoryDocuments(max_bytes=10**6).documents(files)
    assert "\n".join(part.text for part in parts) == whole.text
    assert [path for part in parts for path in part.metadata["paths"]] == whole.metadata["paths"]
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        assert len(part.text.encode()) <= most or len(part.metadata["paths"]) == 1
        if following is not None:  # no part ends before it must
            first = following.text.split("\n\n#")[0].rstrip("\n") + "\n"
            assert len(part.text.encode()) + 1 + len(first.encode()) > most
    ids = [part.id for part in parts]
    assert ids == (["r"] if len(parts) == 1 else [f"r#{n}" for n in range(len(parts))])
    assert {(part.metadata["part"], part.metadata["parts"]) for part in parts} == {
        (n, len(parts)) for n in range(len(parts))
    }


def test_a_circle_of_imports_stands_by_name_and_others_around_it() -> None:
    files = [
        file("a.py", "import b\n"),
        file("b.py", "import c\nimport base\n"),
        file("c.py", "import a\n"),
        file("user.py", "import c\n"),
        file("z/base.py", ""),
        file("base.py", "def f():\n    import user\n"),
    ]
    order = [one.metadata["path"] for one in files_in_order(files)]
    # base needs user only when it is called, so it may stand first; the other three need each other at once
    assert order == ["base.py", "a.py", "b.py", "c.py", "user.py", "z/base.py"]


def test_a_file_whose_imports_cannot_be_found_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(path: str, text: str, tree: FileTree) -> Iterator[Import]:
        yield Import({"a.rs": "c.rs", "b.rs": "d.rs"}.get(path, path))
        if path == "a.rs":
            raise KeyError(path)

    monkeypatch.setitem(FINDERS, "rust", find)
    files = [file(path, "x") for path in ("a.rs", "b.rs", "c.rs", "d.rs")]
    (document,) = RepositoryDocuments().documents(files)
    assert document.metadata["paths"] == ["a.rs", "d.rs", "b.rs", "c.rs"]
    assert document.metadata[NO_IMPORTS] == {"a.rs": "KeyError"}


def test_from_folders_to_documents(tmp_path: Path) -> None:
    for number in range(6):
        folder = tmp_path / "in" / f"repository-{number}"
        folder.mkdir(parents=True)
        (folder / "b.py").write_text(f"VALUE = {number}\n")
        (folder / "a.py").write_text("import b\nprint(b.VALUE)\n")
    reader, joiner = Repositories(shards=3), RepositoryDocuments()
    first = Place((tmp_path / "in",), tmp_path / "01")
    run_phases(reader, first)
    place = Place(reader.kept(first), tmp_path / "02")
    run_phases(joiner, place, random.Random(2))
    texts = {one.id: one.text for one in kept(place)}
    assert texts == {f"repository-{n}": f"# b.py\nVALUE = {n}\n\n# a.py\nimport b\nprint(b.VALUE)\n" for n in range(6)}
    before = output(place)
    run_phases(joiner, place)
    assert output(place) == before


@pytest.mark.parametrize(
    ("files", "shards", "said"),
    [
        ([Document("x", "id")], 1, "has no `repository` and `path`"),
        ([file("a.py", ""), file("a.py", "")], 1, "two files 'a.py'"),
        ([file("a.py", ""), file("a.py", "", "other"), file("b.py", "")], 1, "in several places"),
        ([file("a.py", ""), file("b.py", "")], 2, "in several places"),
    ],
)
def test_files_that_cannot_be_put_together(tmp_path: Path, files: list[Document], shards: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        run_phases(RepositoryDocuments(), place_of(tmp_path, files, shards))
