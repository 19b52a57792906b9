"""lm-evaluation-harness on our checkpoint, and its own `hf` model on the export: the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from internevo.eval.harness import run_tasks
from internevo.files.errors import UserError
from internevo.train.stored_model import open_model
from tests.eval.conftest import texts
from tests.parallel.jobs import ALONE

lm_eval = pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small tasks on local files, one of each kind: choices, running text, generation."""
    folder = tmp_path_factory.mktemp("tasks")
    lines = [line for path in texts() for line in path.read_text().splitlines() if 20 < len(line) < 60][:40]
    ends = [[lines[(n + turn) % 40][12:] for turn in (0, 7, 13)] for n in range(40)]
    rows = [{"start": line[:12], "ends": ends[n], "answer": 0, "text": line} for n, line in enumerate(lines)]
    (folder / "data.json").write_text("\n".join(json.dumps(row) for row in rows))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "data.json")}},
        "test_split": "test",
    }
    kinds = {
        "lines_choice": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{start}}",
            "doc_to_choice": "{{ends}}",
            "doc_to_target": "answer",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "lines_text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
        "lines_generate": {
            "output_type": "generate_until",
            "doc_to_text": "{{start}}",
            "doc_to_target": "{{text}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, what in kinds.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **shared, **what}))
    return folder


@pytest.mark.slow
def test_the_same_numbers_as_on_the_export(text_run: Path, exported: Path, tasks: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    names = ["lines_choice", "lines_text", "lines_generate"]
    ours = run_tasks(open_model(text_run), ALONE, names, include=tasks)
    theirs = {}
    for add_bos, some in ((None, ["lines_choice", "lines_generate"]), (False, ["lines_text"])):
        hf = HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=1, add_bos_token=add_bos)
        theirs |= lm_eval.simple_evaluate(
            model=hf,
            tasks=some,
            task_manager=lm_eval.tasks.TaskManager(include_path=str(tasks)),
            bootstrap_iters=0,
        )["results"]
    compared = 0
    for name in names:
        for metric, value in ours[name].items():
            if isinstance(value, float):
                assert value == pytest.approx(theirs[name][metric], rel=1e-4), (name, metric)
                compared += 1
    assert compared >= 5
    assert 0 < ours["lines_choice"]["acc,none"] < 1


@pytest.mark.slow
def test_generated_text_is_that_of_transformers(text_run: Path, exported: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from internevo.eval.harness import InternevoLM

    asked = {"until": ["\n"], "max_gen_toks": 20, "do_sample": False}
    requests = [
        Instance("generate_until", {}, (prompt, asked), n) for n, prompt in enumerate(("def main(", "import ", "self."))
    ]
    ours = InternevoLM(str(text_run), device="cpu").generate_until(requests)
    theirs = HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=1).generate_until(requests)
    assert ours == theirs
    assert any(ours)


def test_a_whole_text_follows_one_beginning(text_run: Path) -> None:
    from lm_eval.api.instance import Instance

    from internevo.eval.harness import InternevoLM

    lm = InternevoLM(str(text_run), device="cpu")
    text = "def main():\n    return 0\n"
    ids = lm.text.encode(text)
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    scored = lm.scorer.score([np.array([lm.text.bos_id, *ids])])[0]
    assert lm.loglikelihood_rolling([request]) == [pytest.approx(-scored.losses.sum(), rel=1e-5)]


def test_an_unknown_task_is_refused(text_run: Path) -> None:
    with pytest.raises(UserError, match="does not know the tasks nosuch"):
        run_tasks(open_model(text_run), ALONE, ["nosuch"])
