"""docs/extending.md, run from top to bottom: its files are written, its diffs applied to a copy, its commands run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_repository import ROOT

PAGE = ROOT / "docs" / "extending.md"
SECTIONS = (
    *("A part of the model", "An optimizer", "A metric", "An objective", "A schedule", "A reader"),
    *("A Hugging Face family", "A refinery step", "A kind of parallelism"),
)


def blocks() -> list[tuple[int, str, str]]:
    """(line in the page, language, text) of every block of code."""
    page = PAGE.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    return [(page.count("\n", 0, one.start(2)), one[1], one[2]) for one in found]


def apply(diff: str, folder: Path) -> None:
    """Change the files that a diff names. What a hunk looks for must be there once."""
    for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        name, _, hunks = part.partition("\n")
        file = folder / name
        for hunk in hunks.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] in " -")
            after = "".join(line[1:] for line in lines if line[0] in " +")
            text = file.read_text(encoding="utf-8")
            assert text.count(before) == 1, f"{name} has this {text.count(before)} times:\n{before}"
            file.write_text(text.replace(before, after), encoding="utf-8")


def script(folder: Path) -> str:
    """The page as Python, line for line. Code that names a file goes into that file, diffs into the copy."""
    lines = [""] * PAGE.read_text(encoding="utf-8").count("\n")
    for at, language, text in blocks():
        named = re.match(r"# (\S+\.py)\n", text)
        if language == "diff":
            apply(text, folder)
        elif named:
            assert not (folder / named[1]).exists()
            (folder / named[1]).write_text(text.partition("\n")[2], encoding="utf-8")
        else:
            code = text.splitlines()
            if not language:
                commands = [re.sub("^internevo", f"{sys.executable} -m internevo", line) for line in code]
                code = [f"__import__('subprocess').run({line!r}, shell=True, check=True)" for line in commands]
            lines[at : at + len(code)] = code
    return "\n".join(lines)


def run(code: str, name: Path, folder: Path) -> None:
    """Run code as a user would have typed it, with the package and modules of `folder`."""
    (folder / name.with_suffix(".py").name).write_text(code, encoding="utf-8")
    started = f"exec(compile(open({name.stem + '.py'!r}).read(), {str(name)!r}, 'exec'))"  # workers import no script
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", started], cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=500
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_the_page(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "internevo", tmp_path / "internevo", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "texts").mkdir()
    for file in sorted(Path(os.__file__).parent.glob("[a-b]*.py"))[:16]:
        shutil.copy(file, tmp_path / "texts")
    library = ROOT / "docs" / "library.md"
    first = re.findall(r"```python\n(.*?)```", library.read_text(encoding="utf-8"), re.DOTALL)[:3]
    assert "run.yaml" in first[2]
    run("\n".join(first), library, tmp_path)
    run(script(tmp_path), PAGE, tmp_path)
    assert (tmp_path / "refined" / "web" / "kept").exists()


def test_every_kind_of_extension_has_its_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert tuple(re.findall(r"^## (.+)$", page, re.MULTILINE)) == SECTIONS
    for section in page.split("\n## ")[1:]:
        assert section.count("```") >= 4, section.splitlines()[0]
