"""The refinery on real text, by its command: web pages out of the interpreter's documentation, with planted copies and
junk. Repositories are in `code/test_real_repositories.py`, long texts in `long/test_real_long_texts.py`."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import pytest
from lxml import html

from internevo.refine.shards import Document
from internevo.tokens.store import TokenStore
from internevo.tokens.tokenizer import load_tokenizer
from tests.refine.corpus import CHINESE, page, write_jsonl, write_warc
from tests.refine.real_pages import FOREIGN, documentation, prose, shuffled, spam
from tests.refine.running import internevo, refined, step_documents
from tools.near_duplicates import altered, exact_pairs, shingle_set

pytestmark = pytest.mark.slow

STEPS = ("01-extract", "02-language", "03-rules", "04-dedup", "05-safety", "06-quality")
THRESHOLD = 0.7
REAL = 320
"""Pages of prose. Others have words that are blocked, are of a blocked domain, or lost the order of their words."""
MEANT = {
    "foreign": ("02-language", ()),
    # symbols and numbers are in no language; extraction leaves out what a page repeats
    "spam": ("03-rules", ("01-extract", "02-language")),
    # these are real prose, of which rules drop some
    "domain": ("05-safety", ("03-rules",)),
    "words": ("05-safety", ("03-rules",)),
    "shuffled": ("06-quality", ("03-rules",)),
}
"""By what planted junk must be dropped, and by what else it rightly may be."""


@dataclass(frozen=True)
class Web:
    """A refinery's output, and which page is what: by its address, `http://HOST/KIND/...`."""

    output: Path

    @cached_property
    def given_to_dedup(self) -> list[Document]:
        return step_documents(self.output, "03-rules", "kept")

    @cached_property
    def duplicates(self) -> list[Document]:
        return step_documents(self.output, "04-dedup", "dropped")

    @cached_property
    def kept(self) -> list[Document]:
        return step_documents(self.output, STEPS[-1], "kept")


def kind_of(document: Document) -> str:
    return path_of(document).split("/")[0]


def path_of(document: Document) -> str:
    return str(document.metadata["url"]).split("/", 3)[3]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Web:
    folder = tmp_path_factory.mktemp("web")
    write_crawl(folder, random.Random(0))
    (folder / "domains.txt").write_text("bad.example\n")
    (folder / "words.txt").write_text("casino\n")
    safety = {"domains": [str(folder / "domains.txt")], "words": [str(folder / "words.txt")]}
    quality = {"classifier": str(train_classifier(folder, random.Random(1))), "languages": ["en"]}
    steps = [{"extract": {"fast": True}}, "language", "rules", {"dedup": {"threshold": THRESHOLD}}]
    return Web(refined(folder, [folder / "crawl"], [*steps, {"safety": safety}, {"quality": quality}]))


def train_classifier(folder: Path, chance: random.Random) -> Path:
    """Of prose that is not in the crawl against the same with its words in no order."""
    texts = prose()[1::2]
    good = write_jsonl(folder / "good.jsonl", ({"text": text} for text in texts))
    bad = write_jsonl(folder / "bad.jsonl", ({"text": shuffled(text, chance)} for text in texts for _ in range(3)))
    internevo("data", "classifier", "train", good, bad, "--out", folder / "quality.model")
    return folder / "quality.model"


def write_crawl(folder: Path, chance: random.Random) -> None:
    texts = prose()[::2]
    pages = {f"prose/{n}": text for n, text in enumerate(texts[:REAL])}
    for n, text in enumerate(texts[:300]):  # most of them near-duplicates, each fourth far from being one
        similarity = chance.uniform(0.75, 1) if n % 4 else chance.uniform(0.2, 0.6)
        pages[f"copy/{n}"] = altered(text, similarity, chance)
    pages |= {f"copy/{n}": texts[n] for n in range(300, 310)}
    blocked = " Play at the casino, the best casino, a casino for you, casino."
    pages |= {f"domain/{n}": text for n, text in enumerate(texts[REAL : REAL + 15])}
    pages |= {f"words/{n}": text + blocked for n, text in enumerate(texts[REAL + 15 : REAL + 30])}
    pages |= {f"shuffled/{n}": shuffled(text, chance) for n, text in enumerate(texts[REAL + 30 :])}
    pages |= {f"spam/{kind}/{n}": text for n in range(10) for kind, text in spam(chance).items()}
    pages |= {f"foreign/{language}": text for language, text in FOREIGN.items()}
    pages |= {f"chinese/{n}": text for n, text in enumerate(CHINESE)}
    bodies = {path: page(text).replace("\n", "<br>").encode() for path, text in pages.items()}
    bodies |= documentation(folder)
    (folder / "crawl").mkdir()
    seconds = chance.sample(range(1_400_000_000, 1_700_000_000), len(bodies))
    for number, path in enumerate(chance.sample(sorted(bodies), len(bodies))):
        host = "www.bad.example" if path.startswith("domain/") else "web.example"
        date = datetime.fromtimestamp(seconds[number], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        write_warc(folder / "crawl" / f"{number % 4}.warc.gz", [(f"http://{host}/{path}", bodies[path])], date=date)


def test_near_duplicates_are_found_and_nothing_else(web: Web) -> None:
    """By exact similarities of what extraction made of the pages."""
    documents = web.given_to_dedup
    pairs = exact_pairs([shingle_set(one.text) for one in documents], THRESHOLD)
    kept_for = {one.id: one.metadata["duplicate_of"] for one in web.duplicates}
    heads = [kept_for.get(one.id, one.id) for one in documents]
    planted = [
        (i, j) for i, j in pairs if {kind_of(documents[i]), kind_of(documents[j])} == {"prose", "copy"}
    ]  # most; pages that are alike by nature are among the others
    clear = [(i, j) for i, j in planted if pairs[i, j] >= 0.8]
    assert len(clear) > 150
    found = sum(heads[i] == heads[j] for i, j in clear) / len(clear)
    assert found >= 0.99
    assert sum(heads[i] == heads[j] for i, j in pairs) >= 0.97 * len(pairs)  # those near the threshold too
    like_a_kept_one: set[str] = set()
    for one, other in pairs:
        for this, that in ((one, other), (other, one)):
            if documents[that].id not in kept_for:
                like_a_kept_one.add(documents[this].id)
    false = [one for one in kept_for if one not in like_a_kept_one]
    assert len(false) < 0.01 * len(kept_for), false


def test_the_newest_is_kept(web: Web) -> None:
    by_id = {one.id: one for one in web.given_to_dedup}
    newer = Counter(
        kind_of(one)
        for one in web.duplicates
        if one.metadata["date"] < by_id[one.metadata["duplicate_of"]].metadata["date"]
    )
    assert sum(newer.values()) == len(web.duplicates)
    assert newer["prose"] > 50  # the copy is newer
    assert newer["copy"] > 50  # the page is


def test_planted_junk_is_dropped_by_what_is_meant_for_it(web: Web) -> None:
    dropped = {path_of(one): step for step in STEPS for one in step_documents(web.output, step, "dropped")}
    kept = [path_of(one) for one in web.kept]
    assert [path for path in kept if path.split("/")[0] in MEANT] == []
    for kind, (meant, earlier) in MEANT.items():
        by = Counter(step for path, step in dropped.items() if path.startswith(f"{kind}/"))
        assert set(by) <= {meant, *earlier}, kind
        assert by[meant] >= 0.8 * by.total() > 0, (kind, by)


def test_prose_and_chinese_are_kept(web: Web) -> None:
    """Prose itself, or the newer copy of it."""
    here = {path_of(one) for one in web.kept}
    kept_for = {path_of(one): one.metadata["duplicate_of"] for one in web.duplicates}
    ids = {one.id for one in web.kept}
    good = [n for n in range(REAL) if f"prose/{n}" in here or kept_for.get(f"prose/{n}") in ids]
    assert len(good) >= 0.9 * REAL
    chinese = [one.text for one in web.kept if one.metadata["language"] == "zh"]
    assert sorted(chinese) == sorted(CHINESE)


def test_the_page_tells_what_the_shards_have(web: Web) -> None:
    report = html.fromstring((web.output / "report.html").read_text())
    rows = {
        row[0].text_content(): [cell.text_content() for cell in row[1:4]] for row in report.find(".//table").iter("tr")
    }
    before = None
    for step in STEPS:
        kept, dropped = (len(step_documents(web.output, step, which)) for which in ("kept", "dropped"))
        assert rows[step] == [f"{count:,}" for count in (kept + dropped, dropped, kept)]
        assert before in (None, kept + dropped)
        before = kept


def test_what_is_kept_becomes_tokens(web: Web, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.model"
    internevo("tokenizer", "train", web.output / "kept", "--vocab", "1000", "--out", tokenizer)
    internevo("data", "prepare", web.output / "kept", "--tokenizer", tokenizer, "--out", tmp_path / "tokens")
    store, loaded = TokenStore.open_source(tmp_path / "tokens"), load_tokenizer(tokenizer)
    assert len(store) == len(web.kept)
    for number, document in enumerate(web.kept):
        assert loaded.decode(store.read(number).tolist()) == document.text
