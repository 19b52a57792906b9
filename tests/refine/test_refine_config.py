"""A refinery's configuration: every mistake is told with its key, all at once, before anything begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from internevo.config.read import ConfigError
from internevo.refine.config import load_refinery
from internevo.refine.extract import Extract
from internevo.refine.language import Language
from internevo.refine.rules import Rules, Thresholds, chinese

ROOT = Path(__file__).parents[2]


def written(folder: Path, **keys: Any) -> Path:
    (folder / "a.jsonl").touch()
    tree = {"name": "a", "input": [str(folder / "a.jsonl")], "steps": ["extract"], **keys}
    path = folder / "refine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in tree.items() if value is not ...}))
    return path


def test_what_is_left_out_keeps_its_default(tmp_path: Path) -> None:
    steps = [
        "extract",
        {"language": {"keep": ["en"]}},
        {"rules": {"zh": {"min_units": 7, "max_braces": None}}},
        {"rules": None},
    ]
    refinery = load_refinery(written(tmp_path, steps=steps), ["executor.workers=3", "output=there"])
    assert [one.name for one in refinery.steps] == ["extract", "language", "rules", "rules"]
    assert [one.step for one in refinery.steps[:2]] == [Extract(), Language(keep=["en"])]
    zh = Thresholds(**{**vars(chinese()), "min_units": 7, "max_braces": None})
    assert refinery.steps[2].step == Rules(zh=zh)
    assert refinery.steps[3].step == Rules()
    assert (refinery.output, refinery.executor.workers, refinery.inputs) == (Path("there"), 3, (tmp_path / "a.jsonl",))
    assert load_refinery(written(tmp_path)).output == Path("refined/a")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"nmae": "b"}, "nmae: unknown key; did you mean name?"),
        ({"name": ...}, "name: every refinery needs a name"),
        ({"name": "a/b"}, "name: 'a/b' has '/'; use letters and digits"),
        ({"input": ...}, "input: no file or folder is named"),
        ({"input": "a.jsonl"}, "input: expected a list, found 'a.jsonl'"),
        ({"input": ["nowhere"]}, "input: nowhere does not exist"),
        ({"steps": ...}, "steps: there is none; known are extract, language"),
        ({"steps": ["extract", "langage"]}, "steps[1]: unknown step 'langage'; did you mean language?"),
        ({"steps": ["language"]}, "steps[0]: the first step reads the input: one of extract"),
        ({"steps": ["extract", "extract"]}, "steps[1].extract: only the first step reads the input"),
        ({"steps": [{"extract": {}, "rules": {}}]}, "steps[0]: expected one name with its keys"),
        ({"steps": [["extract"]]}, "steps[0]: expected one name with its keys"),
        ({"steps": [{"extract": {"fats": True}}]}, "steps[0].extract.fats: unknown key; did you mean fast?"),
        ({"steps": [{"extract": {"reads_input": False}}]}, "steps[0].extract.reads_input: unknown key"),
        ({"steps": [{"extract": {"fast": 1}}]}, "steps[0].extract.fast: expected true or false, found 1"),
        ({"steps": [{"extract": 3}]}, "steps[0].extract: expected a mapping with "),
        (
            {"steps": ["extract", {"dedup": {"keep": "oldest"}}]},
            "steps[1].dedup.keep: unknown value 'oldest'; did you mean longest?",
        ),
        (
            {"steps": ["extract", {"file_dedup": {"keep": "oldest"}}]},
            "steps[1].file_dedup.keep: unknown value 'oldest'; known are newest, first",
        ),
        (
            {"steps": [{"extract": {"favor": "x"}}]},
            "steps[0].extract.favor: unknown value 'x'; known are",
        ),
        (
            {"steps": ["extract", {"rules": {"zh": {"max_brace": 1}}}]},
            "steps[1].rules.zh.max_brace: unknown key; did you mean max_braces",
        ),
        (
            {"steps": ["extract", {"rules": {"en": {"max_top_ngram": [0.1, "x"]}}}]},
            "steps[1].rules.en.max_top_ngram[1]: expected a number",
        ),
        ({"steps": ["extract", {"safety": {"words": ["no.txt"]}}]}, "steps[1].safety: no.txt does not exist"),
        ({"steps": ["extract", {"quality": {"classifier": "no.model"}}]}, "steps[1].quality: no.model does not exist"),
        ({"steps": [{"extract": {"shards": "many"}}]}, "extract.shards: expected a whole number"),
        ({"executor": {"kind": "cloud"}}, "executor.kind: unknown value 'cloud'; known are local, slurm"),
        ({"executor": {"kind": "slurm"}}, "executor.partition: missing; Slurm needs one"),
        ({"executor": {"workers": -1}}, "executor.workers: must be at least 0, found -1"),
        ({"steps": [{"extract": {"shards": -1}}]}, "steps[0].extract.shards: must be at least 0, found -1"),
        (
            {"steps": ["extract", {"rules": {"zh": {"max_braces": 2}}}]},
            "steps[1].rules.zh.max_braces: must be at most 1, found 2",
        ),
        ({"executor": {"worker": 1}}, "executor.worker: unknown key; did you mean workers?"),
    ],
)
def test_one_message_for_each_mistake(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    path = written(tmp_path, **keys)
    with pytest.raises(ConfigError) as raised:
        load_refinery(path)
    told = str(raised.value).splitlines()
    assert told[0] == f"{path}:"
    assert len(told) == 2
    assert message in told[1]


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    steps = ["extract", {"language": {"kep": 1}}, {"rules": {"en": {"ngram_scale": 0}}}, "nothing"]
    with pytest.raises(ConfigError) as raised:
        load_refinery(written(tmp_path, steps=steps, name=..., executor={"cpus": 0}))
    assert len(str(raised.value).splitlines()) == 6


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/refine/*.yaml")), ids=lambda path: path.name)
def test_every_example_loads(path: Path) -> None:
    assert load_refinery(path, check_files=False).name == path.stem
