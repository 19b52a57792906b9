"""What the repository promises beside the code: configs that work, pages that are true, one version."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import internevo
from internevo.config.load import load_config
from internevo.config.presets import PRESETS
from internevo.config.render import render
from internevo.launch.sweep import read_sweep

ROOT = Path(__file__).parents[1]
SWEEPS = [path for path in sorted(ROOT.glob("configs/sweeps/*.yaml")) if "config:" in path.read_text()]
REFINERIES = sorted(ROOT.glob("configs/refine/*.yaml"))  # tests/refine/test_refine_config.py loads them
CONFIGS = [path for path in sorted(ROOT.glob("configs/**/*.yaml")) if path not in (*SWEEPS, *REFINERIES)]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("launch/*.md")]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_config_loads(path: Path) -> None:
    config = load_config(path, check_data=False)
    if not path.name.startswith("_"):
        assert config.name == path.stem
    assert render(config)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_sweep_loads(path: Path) -> None:
    sweep = read_sweep(path, check_data=False)
    assert sweep.name == path.stem
    assert len(sweep.runs) > 1


def test_the_config_reference_is_fresh() -> None:
    check = [sys.executable, ROOT / "tools" / "config_reference.py", "--check"]
    ended = subprocess.run(check, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_headings_lead_to_one(page: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
        text = (page.parent / target if target else page).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        assert heading in {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}, heading


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_in_pages_exist(page: Path) -> None:
    from typer.main import get_command

    from internevo.cli.verbs import app

    verbs = set(get_command(app).list_commands(None))  # type: ignore[attr-defined, arg-type]
    for verb in re.findall(r"^\s*(?:\$ )?internevo ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
        assert verb in verbs, verb


def test_every_key_in_the_design_of_a_config_is_documented() -> None:
    page = (ROOT / "docs" / "config.md").read_text()
    for section in ("model", "optimizer", "schedule", "train", "parallel.zero", "checkpoint", "monitor", "data"):
        assert f"## `{section}`" in page
    for preset in PRESETS:
        assert f"`{preset}`" in page


def test_the_constraints_cover_what_is_installed() -> None:
    """Everything that pyproject names is pinned, and torch without a local tag."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    wanted = {re.split(r"[\[<>=; ]", one)[0].lower() for one in named} - {"internevo"}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", line) for line in lines)
    assert wanted <= {line.split("==")[0].lower() for line in lines}


def test_the_readme_counts_and_names_what_is_there() -> None:
    page, package = (ROOT / "README.md").read_text(encoding="utf-8"), ROOT / "internevo"
    stated = re.search(r"The core has ([\d,]+) lines", page)
    assert stated
    rooms = ("config", "model", "data", "parallel", "optim", "checkpoint", "train")
    lines = sum(
        len(path.read_text(encoding="utf-8").splitlines()) for one in rooms for path in (package / one).rglob("*.py")
    )
    assert abs(int(stated[1].replace(",", "")) - lines) <= 0.05 * lines, f"the core has {lines:,} lines"
    tree = page.partition("internevo/\n")[2].partition("```")[0]
    assert {one.parent.name for one in package.glob("*/__init__.py")} == set(
        re.findall(r"^  (\w+)/", tree, re.MULTILINE)
    )
    assert set(re.findall(r"^  (\w+)/.*[┐│┘]", tree, re.MULTILINE)) == set(rooms)
    first = re.findall(r"^\d\. `(.+?)`", page, re.MULTILINE)
    assert len(first) == 6
    assert all((ROOT / name).is_file() for name in first)


def test_the_figures_of_the_readme_are_those_recorded() -> None:
    recorded = json.loads((ROOT / "docs" / "benchmarks" / "quickstart-cpu.json").read_text(encoding="utf-8"))
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    for source in ("prose", "code", "long"):
        found = [one for one in recorded["heldout"] if one["source"] == source]
        ends = [one["loss"] for one in found if one["when"] == "end"]
        row = [source, *(f"{loss:.3f}" for loss in (found[0]["frequencies"], found[0]["loss"], *ends))]
        assert f"| {' | '.join(row)} |" in page
    assert (
        f"{recorded['environment']['parameters'] / 1e6:.2f}M parameters, {recorded['steps'][-1]['step']} steps" in page
    )


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == internevo.__version__


def test_the_package_carries_its_files() -> None:
    for name in ("monitor/assets/page.html", "hf/sample.txt", "launch/job.sbatch", "quickstart/config.yaml"):
        assert (Path(internevo.__file__).parent / name).is_file()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_text_is_read_and_written_in_a_named_encoding() -> None:
    """The locale's own encoding would make files that other machines cannot read."""
    found = []
    for path in sorted([*(ROOT / "internevo").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and _opens_text(call):
                found.append(f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)[:80]}")
    assert not found, "\n".join(found)


def _opens_text(call: ast.Call) -> bool:
    """Whether it reads or writes text without `encoding`."""
    given = {one.arg: one.value for one in call.keywords}
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if "encoding" in given:
        return False
    if name in ("read_text", "write_text", "TextIOWrapper"):
        return True
    if name in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile"):
        modes = [one.value for one in (*call.args, *given.values()) if isinstance(one, ast.Constant)]
        modes = [one for one in modes if isinstance(one, str) and re.fullmatch(r"[rwaxbt+]{1,3}", one)]
        other = isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in ("os", "State")
        binary = name.endswith("TemporaryFile") and not modes
        return not (other or binary or any("b" in mode for mode in modes))
    texts = (given.get("text"), given.get("universal_newlines"))
    return any(isinstance(one, ast.Constant) and one.value is True for one in texts) and name in ("run", "Popen")
