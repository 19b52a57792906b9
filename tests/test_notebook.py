"""docs/first-steps.ipynb runs from its first cell to its last, and is stored with what it printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_repository import ROOT

nbformat = pytest.importorskip("nbformat", reason="not in this environment; it comes with the extra dev")
BOOK = ROOT / "docs" / "first-steps.ipynb"


def test_it_is_stored_as_it_ran() -> None:
    book = nbformat.read(BOOK, as_version=4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert cell.outputs, cell.source
        assert all(output.output_type == "stream" and output.name == "stdout" for output in cell.outputs)


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("nbclient", reason="not in this environment; it comes with the extra dev")
    pytest.importorskip("ipykernel", reason="not in this environment; it comes with the extra dev")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book = nbformat.read(BOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(book, timeout=300, resources=resources).execute()  # raises for a cell that does
    printed = "".join(output.text for cell in book.cells for output in cell.get("outputs", ()) if "text" in output)
    assert "did you mean steps?" in printed
    assert (tmp_path / "tokens" / "train.bin").exists()
