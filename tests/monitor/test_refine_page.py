"""The refinery's page: what its counts say, and nothing of a document's own is taken for HTML."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from internevo.files.errors import UserError
from internevo.monitor.refine_page import write_refine_page
from internevo.refine.shards import Document, ShardWriter


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Two steps of a chain, and one that has not begun."""
    out = tmp_path / "web"
    for name in ("01-extract", "02-rules", "03-quality"):
        (out / name).mkdir(parents=True)
        (out / name / "plan.json").write_text('{"shards": 3}')
    for number in range(3):
        with ShardWriter(out / "01-extract", number) as shard:
            for place in range(1000):
                shard.write(Document("good text", f"{number}-{place}"))
            shard.write(Document("<script>alert(1)</script>", f"{number}-<b>"), "no main text")
        with ShardWriter(out / "02-rules", number) as shard:
            for place in range(1000):
                if place % 4:
                    shard.write(Document("good text", f"{number}-{place}"))
                else:
                    shard.write(Document("bad  text\n" * 100, f"{number}-{place}"), "a & b" if place % 16 else "rare")
    return out


def cells(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    return [[unescape(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]


def test_counts_and_examples(output: Path) -> None:
    page = write_refine_page(output).read_text()
    rows = cells(page)
    assert ["01-extract", "3,003", "3", "3,000", "99.9%", "99.9%", "27.0K", "no main text"] in rows
    assert ["02-rules", "3,000", "750", "2,250", "75.0%", "74.9%", "20.2K", "a & b"] in rows
    assert ["a & b", "561", "18.7%", "561.0K"] in rows
    assert "waiting for 03-quality: 0 of 3 shards" in page
    assert "2 of 3" in page
    assert "extract → rules → quality" in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "0-&lt;b&gt;" in page
    assert "a &amp; b: 3 of 561, all in dropped/" in page


def test_all_done_and_nothing_yet(output: Path) -> None:
    shutil.rmtree(output / "03-quality")
    assert "every step has run" in write_refine_page(output).read_text()
    for name in ("01-extract", "02-rules"):
        shutil.rmtree(output / name / "counts")
    page = write_refine_page(output).read_text()
    assert "waiting for 01-extract: 0 of 3 shards, 02-rules: 0 of 3 shards" in page


def test_in_the_middle_of_a_step(output: Path) -> None:
    """A step's folders are there as soon as its first task begins; it is given what is in the shards that it did."""
    shutil.rmtree(output / "03-quality")
    for number in (1, 2):
        (output / f"02-rules/counts/{number:05}.json").unlink()
    page = write_refine_page(output).read_text()
    assert "waiting for 02-rules: 1 of 3 shards" in page
    assert "every step has run" not in page
    assert ["02-rules", "1,000", "250", "750", "75.0%", "25.0%", "6.8K", "a & b"] in cells(page)


def test_steps_that_make_other_documents(output: Path) -> None:
    """Copies are more than what was given, and files that become one document are not dropped."""
    (output / "03-quality").rename(output / "03-sample")
    (output / "04-repository_documents").mkdir()
    (output / "04-repository_documents" / "plan.json").write_text('{"shards": 3}')
    for number in range(3):
        with ShardWriter(output / "03-sample", number) as shard:
            for place in range(750 * 2 + 375):
                shard.write(Document("good text", f"{number}-{place}"))
        with ShardWriter(output / "04-repository_documents", number) as shard:
            shard.write(Document("good text" * 1875, str(number)))
    page = write_refine_page(output).read_text()
    rows = cells(page)
    assert ["03-sample", "2,250", "0", "5,625", "2.50 times", "1.87 times", "50.6K", ""] in rows
    assert ["04-repository_documents", "5,625", "0", "3", "0.1%", "0.1%", "50.6K", ""] in rows
    assert "kept, 0.1%" in page
    assert "every step has run" in page


def test_one_that_was_begun_by_another_version(output: Path) -> None:
    (output / "01-extract" / "plan.json").write_text("{}")
    with pytest.raises(UserError, match=r"01-extract was begun by another version, .*Run the refinery again"):
        write_refine_page(output)


def test_a_browser_shows_it(output: Path, tmp_path: Path) -> None:
    if not (browser := shutil.which("chromium")):
        pytest.skip("no browser: apt-get install chromium")
    page = write_refine_page(output)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "2,250" in dom
    assert dom.count("<details>") == 5
