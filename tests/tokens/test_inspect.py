"""A look into stores: histograms against plain counting, documents with their borders, the command and its page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html import unescape
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internevo.files.errors import UserError
from internevo.monitor.store_page import total_rows
from internevo.tokens import inspect
from internevo.tokens.import_internevo import import_internevo
from internevo.tokens.inspect import describe, document_parts, histogram, show_document, spread
from internevo.tokens.prepare import prepare
from internevo.tokens.store import TokenStore
from internevo.tokens.tokenizer import load_tokenizer
from tests.tokens.stores import numbered, write_by_hand, write_store
from tests.tokens.test_import_internevo import write_bin
from tests.tokens.test_prepare import lines, tokenizer

__all__ = ["tokenizer"]  # a fixture


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=30))
def test_every_document_is_in_one_bar(lengths: list[int]) -> None:
    bars = histogram(np.array(lengths))
    for bar in bars:
        inside = [length for length in lengths if bar.first <= length <= bar.last]
        assert bar.documents == pytest.approx(len(inside) / len(lengths))
        assert bar.tokens == pytest.approx(sum(inside) / max(1, sum(lengths)))
    assert sum(bar.documents for bar in bars) == pytest.approx(1)
    assert bars[0].first <= min(lengths) <= bars[0].last
    assert bars[-1].first <= max(lengths) <= bars[-1].last
    assert all(before.last + 1 == after.first for before, after in pairwise(bars))


def test_no_documents(tmp_path: Path) -> None:
    write_store(tmp_path / "train", [])
    summary = describe(tmp_path)
    assert (summary.documents, summary.tokens, summary.lengths, summary.histogram) == (0, 0, {}, [])
    assert total_rows([summary])[0][:3] == [str(tmp_path), "0", "0"]
    write_by_hand(tmp_path / "empty", [[], []])
    assert [one.first for one in describe(tmp_path / "empty").histogram] == [0]


def test_a_large_store_is_sampled_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "train", numbered([3] * 500 + [9] * 500))
    monkeypatch.setattr(inspect, "SAMPLE", 100)
    summary = describe(tmp_path)
    assert (summary.documents, summary.sampled) == (1000, 100)
    assert {bar.first: bar.documents for bar in summary.histogram} == {2: 0.5, 4: 0, 8: 0.5}


@given(st.integers(0, 10**12), st.integers(0, 50))
def test_documents_are_from_all_over(documents: int, count: int) -> None:
    """One from each of as many equal parts as there are to be; all of a store that has no more."""
    numbers = spread(documents, count)
    assert len(numbers) == min(count, documents)
    for part, number in enumerate(numbers):  # the document from `number` to `number + 1` reaches into its part
        assert part * documents < (number + 1) * len(numbers)
        assert number * len(numbers) < (part + 1) * documents
    assert numbers == sorted(set(numbers))
    assert spread(count, count + 3) == list(range(count))


def test_documents_of_the_middle_and_the_end_are_shown(tmp_path: Path, tokenizer: Path) -> None:
    texts = [f"text {letter}" for letter in "abcdefghi"]
    prepare([lines(tmp_path / "a.jsonl", *texts)], tmp_path / "web", tokenizer)
    command = [
        sys.executable,
        "-m",
        "internevo",
        "data",
        "inspect",
        "web",
        "--page",
        "x.html",
        "--tokenizer",
        tokenizer,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"web: document (\d)", done.stdout) == ["1", "4", "7"]
    assert re.findall(r"<BOS>text (\w)<EOS>", done.stdout) == ["b", "e", "h"]
    page = unescape((tmp_path / "x.html").read_text(encoding="utf-8"))
    assert re.findall(r'document (\d)</p><pre class="document"><BOS>text (\w)<EOS>', page) == [
        ("1", "b"),
        ("4", "e"),
        ("7", "h"),
    ]


def test_masked_tokens_are_shown(tmp_path: Path, tokenizer: Path) -> None:
    loaded = load_tokenizer(tokenizer)
    question, answer = loaded.encode("def f():"), loaded.encode(" return 5")
    ids = [loaded.bos_id, *(-one for one in question), *answer, loaded.eos_id]
    import_internevo([write_bin(tmp_path / "a.bin", [ids])], tmp_path / "out", tokenizer_path=tokenizer)
    store = TokenStore.open_source(tmp_path / "out")
    assert show_document(document_parts(store, 0, loaded)) == "<BOS><masked>def f():</masked> return 5<EOS>"
    assert describe(tmp_path / "out").masked


def test_several_stores_as_text_and_as_a_page(tmp_path: Path, tokenizer: Path) -> None:
    prepare([lines(tmp_path / "a.jsonl", "first <b> & second", "x " * 400)], tmp_path / "web", tokenizer)
    prepare([lines(tmp_path / "b.jsonl", "</script>")], tmp_path / "code", tokenizer)
    command = [sys.executable, "-m", "internevo", "data", "inspect", "web", "code", "web", "--page", "x.html"]
    done = subprocess.run(
        [*command, "--tokenizer", tokenizer], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    stores = [TokenStore.open_source(tmp_path / name) for name in ("web", "code")]
    total = sum(one.tokens for one in stores)
    shown_rows = " ".join(done.stdout.split())
    for name, store in zip(("web", "code"), stores, strict=True):
        assert f"{name} {len(store)} {store.tokens:,} {store.tokens / total:.1%}" in shown_rows
    assert f"all 3 {total:,} " in shown_rows
    assert "<BOS>first <b> & second<EOS>" in done.stdout
    page = (tmp_path / "x.html").read_text()
    shown = [unescape(one) for one in re.findall(r'<pre class="document">(.*?)</pre>', page, re.DOTALL)]
    assert shown[0] == "<BOS>first <b> & second<EOS>"
    assert shown[1].endswith(" … <EOS>")
    assert shown[2] == "<BOS></script><EOS>"
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    for chart in data["charts"].values():
        assert [one["label"] for one in chart["series"]] == ["web", "code"]
        for line in chart["series"]:
            assert sum(filter(None, line["y"])) == pytest.approx(1)
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert again.returncode == 2
    assert "x.html exists already; it is not overwritten" in again.stderr


def test_a_manifest_that_is_torn_is_told(tmp_path: Path, tokenizer: Path) -> None:
    prepare([lines(tmp_path / "a.jsonl", "text")], tmp_path / "web", tokenizer)
    manifest = tmp_path / "web" / "manifest.json"
    manifest.write_text(manifest.read_text()[:-9])
    with pytest.raises(UserError, match=r"manifest\.json is torn"):
        describe(tmp_path / "web")
    manifest.write_text("[1]")  # another tool's file
    assert describe(tmp_path / "web").manifest == {}
