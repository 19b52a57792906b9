"""One document a repository: its files one after the other, what is imported before what imports it.

A model that reads such a document has seen a function's definition before its use (InternLM2 report, arXiv
2403.17297, section 3.1.2).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from internevo.config.bounds import Between
from internevo.files.errors import UserError
from internevo.refine.code.imports import FINDERS
from internevo.refine.code.imports.tree import FileTree, Import
from internevo.refine.code.languages import language_of, noted_language
from internevo.refine.code.order import dependency_order
from internevo.refine.shards import Document, Judged, read_shard
from internevo.refine.step import Phase, Place, Step

NO_IMPORTS = "imports_not_found"
"""The key of the metadata with the files, by path, whose imports could not be looked for, and the error."""


@dataclass
class RepositoryDocuments(Step):
    """Joins the files of each repository. They must stand together in one shard, as `repositories` writes them."""

    max_bytes: Annotated[int, Between(1, 10**12)] = 2**20
    """A repository of more is several documents, cut between files. A file of more is a document of its own, whole."""

    def phases(self, place: Place) -> list[Phase]:
        tasks = len(place.shards)
        return [
            place.sifting("join", partial(_joined, self, place)),
            Phase("check", 1, partial(_check, place.folder, tasks)),
        ]

    def documents(self, files: Sequence[Document]) -> Iterator[Document]:
        """A repository's files as one document, or as several where they are too much for one."""
        name = files[0].metadata["repository"]
        texts = [(file, with_header(file)) for file in files_in_order(files)]
        parts = list(_parts(texts, self.max_bytes))
        for number, part in enumerate(parts):
            yield Document(
                "\n".join(text for _, text in part),
                name if len(parts) == 1 else f"{name}#{number}",
                {"repository": name, "part": number, "parts": len(parts), **_summary([file for file, _ in part])},
            )


def files_in_order(files: Sequence[Document]) -> list[Document]:
    """READMEs, other prose and settings by path, then code by dependency. Raises UserError when a path comes twice."""
    by_path = {file.metadata["path"]: file for file in files}
    if len(by_path) < len(files):
        twice = Counter(file.metadata["path"] for file in files).most_common(1)[0][0]
        raise UserError(
            f"the repository {files[0].metadata['repository']!r} has two files {twice!r}. If a step before repeats "
            "documents (`sample`), put it after `repository_documents`."
        )
    languages = {path: noted_language(file.metadata) for path, file in by_path.items()}
    code = sorted(path for path, language in languages.items() if language.code)
    other = sorted((path for path, language in languages.items() if not language.code), key=_prose_first)
    tree = FileTree(by_path, {p: f.text for p, f in by_path.items() if PurePosixPath(p).name == "go.mod"})
    found = {path: _imports(by_path[path], tree) for path in code}
    imports = {path: [one.path for one in some] for path, some in found.items()}
    at_once = {path: [one.path for one in some if one.at_once] for path, some in found.items()}
    return [by_path[path] for path in (*other, *dependency_order(code, imports, at_once))]


def _imports(file: Document, tree: FileTree) -> list[Import]:
    """What a file imports; nothing where that cannot be found, which its metadata says."""
    find = FINDERS.get(noted_language(file.metadata).name)
    try:
        return sorted(set(find(file.metadata["path"], file.text, tree))) if find else []
    except MemoryError:
        raise
    except Exception as error:  # a text that no expression is ready for costs its own place in the order, not the work
        file.metadata[NO_IMPORTS] = type(error).__name__
        return []


def with_header(file: Document) -> str:
    """A file's text after a line of comment with its path, ending with one newline."""
    header = noted_language(file.metadata).comment(file.metadata["path"])
    return f"{header}\n{file.text.rstrip()}\n"


def _prose_first(path: str) -> tuple[bool, bool, int, str]:
    """READMEs, outer before inner; then prose; then settings and data."""
    readme = PurePosixPath(path).name.lower().startswith("readme")
    language = language_of(path)
    prose = language is not None and language.prose
    return not readme, not prose, path.count("/") if readme else 0, path


def _parts(texts: Sequence[tuple[Document, str]], max_bytes: int) -> Iterator[list[tuple[Document, str]]]:
    part: list[tuple[Document, str]] = []
    used = 0
    for file, text in texts:
        size = len(text.encode(errors="replace")) + 1  # the empty line between
        if part and used + size > max_bytes + 1:
            yield part
            part, used = [], 0
        part.append((file, text))
        used += size
    yield part


def _summary(files: Sequence[Document]) -> dict[str, Any]:
    """What a document's files have in common: language and quality are those of most of its text."""
    summary: dict[str, Any] = {"paths": [file.metadata["path"] for file in files]}
    for key in ("language", "quality"):
        sizes: Counter[str] = Counter()
        for file in files:
            # prose does not make a repository a different one, unless there is nothing else
            if (value := file.metadata.get(key)) is not None:
                sizes[value] += len(file.text) if noted_language(file.metadata).code else 0
        if sizes:
            summary[key] = min(sizes, key=lambda value: (-sizes[value], value))
    if without := {file.metadata["path"]: file.metadata[NO_IMPORTS] for file in files if NO_IMPORTS in file.metadata}:
        summary[NO_IMPORTS] = without
    if dates := [file.metadata["date"] for file in files if file.metadata.get("date")]:
        summary["date"] = max(dates)
    return summary


def _joined(step: RepositoryDocuments, place: Place, number: int) -> Iterator[Judged]:
    shard = place.shards[number]
    names: list[str] = []
    for name, files in groupby(read_shard(shard), partial(_repository, shard)):
        names.append(name)
        for document in step.documents(list(files)):
            yield document, None
    path = _names_file(place.folder, number)  # written before the shard is done: `check` reads those of all
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(names), encoding="utf-8")


def _repository(shard: Path, document: Document) -> str:
    metadata = document.metadata
    if not (isinstance(metadata.get("repository"), str) and isinstance(metadata.get("path"), str)):
        raise UserError(
            f"{shard}: document {document.id!r} has no `repository` and `path` in its metadata, by which files are "
            "put together. The step `repositories` writes them."
        )
    return metadata["repository"]


def _names_file(folder: Path, number: int) -> Path:
    return folder / "work" / f"names-{number:05}.json"


def _check(folder: Path, tasks: int, _: int) -> None:
    """Raises UserError when the files of a repository did not stand together."""
    seen: set[str] = set()
    for number in range(tasks):
        for name in json.loads(_names_file(folder, number).read_text(encoding="utf-8")):
            if name in seen:
                raise UserError(
                    f"{folder}: the files of the repository {name!r} are in several places of its input. They must "
                    "stand together in one shard, as the step `repositories` writes them."
                )
            seen.add(name)
