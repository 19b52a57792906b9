"""`import internevo`: the page's code runs from top to bottom, and what the page leaves unsaid holds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import internevo
from internevo.model.documents import Documents

PAGE = Path(__file__).parents[1] / "docs" / "library.md"


@pytest.mark.slow
def test_the_page(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for file in sorted(Path(os.__file__).parent.glob("[a-b]*.py"))[:16]:
        shutil.copy(file, tmp_path / "texts")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 6
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PAGE.parents[1])},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "train.stepps: unknown key; did you mean steps?" in done.stdout
    assert (tmp_path / "runs" / "small" / "report.html").is_file()


def test_all_that_is_promised_is_there_and_on_the_page() -> None:
    from internevo.library import __all__

    page = PAGE.read_text(encoding="utf-8")
    for name in __all__:
        assert getattr(internevo, name) is not None
    shown = {name for name in __all__ if name[0].islower()} | {"Trainer", "UserError"}
    assert {name for name in shown if f"internevo.{name}" not in page and f"`{name}" not in page} == set()
    with pytest.raises(AttributeError, match=r"internevo has no 'nothing'; it has .*load_config"):
        _ = internevo.nothing


def test_importing_it_brings_no_torch() -> None:
    code = "import sys, internevo; from internevo import config; print(internevo.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=60, check=True)
    assert done.stdout.split() == [internevo.__version__, "False"]


def test_a_row_without_borders_is_one_document() -> None:
    model = internevo.build_model("tiny", seed=0)
    ids = torch.randint(0, 512, (2, 24), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(24).expand(2, 24)
    torch.testing.assert_close(model(ids), model(ids, positions, Documents.of([24, 24])))
    torch.testing.assert_close(model(ids)[:1], model(ids[:1]))


def test_what_a_trainer_refuses(tmp_path: Path) -> None:
    from tests.train.runs import write_config

    path = write_config(tmp_path)
    config = internevo.load_config(path, ["stages.base.train.steps=2", "schedule.warmup=0"])
    with internevo.Trainer(config) as trainer:
        assert len(list(trainer)) == 2  # to the stage's end
        with pytest.raises(internevo.UserError, match="stage base has ended after 2 steps"):
            trainer.step()
    other = internevo.build_model(internevo.model_preset("tiny", layers=3))
    with pytest.raises(internevo.UserError, match=r"another shape than the stage's:\n  model.layers: 2 here, 3 there"):
        internevo.Trainer(config, model=other)
    refused = {
        "parallel.tensor=2": "needs 2 processes or a multiple; there is 1",
        "optimizer.state=split": "use `train_run`",
        f"train.init_from={tmp_path}": "as its model",
    }
    for wrong, said in refused.items():
        changed = internevo.load_config(path, [wrong, "train.precision=bf16"], check_data=False)
        with pytest.raises(internevo.UserError, match=said):
            internevo.Trainer(changed)


def test_a_trainer_does_what_a_run_does(tmp_path: Path) -> None:
    """The same losses, bit by bit, as the run's own record."""
    from tests.train.runs import steps, write_config

    config = internevo.load_config(write_config(tmp_path), ["data.eval_tokens=0"])
    with internevo.Trainer(config) as trainer:
        losses = [trainer.step().loss for _ in range(8)]
    internevo.train_run(config, until=8)
    assert losses == [line["loss"] for line in steps(tmp_path / "runs" / "run")][:8]
