"""What runs, stages, sources, sweeps and refineries may be called."""

from __future__ import annotations

from pathlib import Path

import pytest

from internevo.config.load import load_config
from internevo.config.names import ELSEWHERE, MOST_BYTES, name_problem
from internevo.config.read import ConfigError
from internevo.config.schema import RunConfig
from internevo.config.typed import _paths
from internevo.launch.sweep import read_sweep
from internevo.refine.config import load_refinery

GOOD = [
    "web",
    "数据",
    "données-écrites",
    "हिन्दी",
    "v1.0_a+b",
    "7b",
    "_x",
    "train",
    "x" * MOST_BYTES,
    "字" * (MOST_BYTES // 3),
]
BAD = {
    "../x": "must begin|has '/'",
    "a/b": "has '/'",
    "a\\b": "has ",
    "heldout": "documents kept from training",
    "[/red]": "has '\\['",
    "a b": "has ' '",
    "a\x1b[31m": r"has '\\x1b'",
    "a\x00": r"has '\\x00'",
    "a\nb": r"has '\\n'",
    "a\u202eb": r"has '\\u202e'",
    "\ud800": r"has '\\ud800'",
    ".hidden": "must begin",
    "-x": "must begin",
    "..": "must begin",
    "\u0301x": "must begin",
    "": "is empty",
    "字" * (MOST_BYTES // 3 + 1): "is longer than",
}
CONFIG = """
name: {run}
model: {{preset: tiny}}
train: {{seq_len: 64, batch_tokens: 640, steps: 1}}
stages: [{{name: {stage}}}]
data: {{sources: [{{path: {path}, name: {source}}}]}}
"""


@pytest.mark.parametrize("name", GOOD)
def test_names_that_may_be(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize("name", BAD)
def test_names_that_may_not(name: str) -> None:
    import re

    assert re.search(BAD[name], name_problem(name) or "")


def load(tmp_path: Path, **names: str) -> None:
    quoted = {key: "null" if value is None else f'"{value}"' for key, value in names.items()}
    (tmp_path / "c.yaml").write_text(
        CONFIG.format(**{"run": "r", "stage": "s", "path": "tokens/web", "source": "web", **quoted}), encoding="utf-8"
    )
    load_config(tmp_path / "c.yaml", check_data=False)


@pytest.mark.parametrize("what", ["run", "stage", "source"])
@pytest.mark.parametrize("name", ["../x", "a/b", "heldout", "[/red]", "\\e[31mred", "\\t"])
def test_a_config_is_refused_at_load(tmp_path: Path, what: str, name: str) -> None:
    with pytest.raises(ConfigError, match={"run": "name: ", "stage": "stages: the name", "source": "sources"}[what]):
        load(tmp_path, **{what: name})


def test_a_config_in_any_script_is_loaded(tmp_path: Path) -> None:
    load(tmp_path, run="模型", stage="обучение", source="数据")


def test_a_source_called_after_its_path_is_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.format(run="r", stage="s", path='"tokens/my web"', source="null"))
    with pytest.raises(ConfigError, match=r"path: the name 'my web' has ' '.*sources\[0\]\.name"):
        load_config(tmp_path / "c.yaml", check_data=False)


def test_sweeps_and_refineries(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text('name: "a/../b"\nconfig: c.yaml\ngrid: {optimizer.lr: [1e-3]}')
    with pytest.raises(Exception, match=r"name: 'a/\.\./b' has '/'"):
        read_sweep(tmp_path / "s.yaml")
    (tmp_path / "r.yaml").write_text('name: ".."\ninput: [x]\nsteps: []')
    with pytest.raises(ConfigError, match=r"name: '\.\.' must begin"):
        load_refinery(tmp_path / "r.yaml", check_files=False)


def test_what_others_call_our_keys_is_there() -> None:
    """And is no key of ours, which would never be looked up."""
    ours = set(_paths(RunConfig, ""))
    assert set(ELSEWHERE.values()) <= ours
    assert not ELSEWHERE.keys() & {path.rpartition(".")[2] for path in ours}
