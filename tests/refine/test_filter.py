"""datatrove's own filters as steps."""

from __future__ import annotations

import pytest

from internevo.files.errors import UserError
from internevo.refine.filter import Filter
from internevo.refine.shards import Document
from tests.refine.corpus import GERMAN

PROSE = GERMAN + " And that is what it is, with all of it, and to have had it."


def test_a_filter_of_datatroves() -> None:
    step = Filter(use="datatrove.pipeline.filters:GopherQualityFilter", options={"min_doc_words": 30})
    step.prepare()
    assert step.judge(Document(PROSE, "x")) is None
    assert step.judge(Document("Too short.", "x")) == "gopher_short_doc"


def test_one_that_gives_no_reason_and_one_that_changes_the_text() -> None:
    step = Filter(use="datatrove.pipeline.filters:RegexFilter", options={"regex_exp": "secret"})
    step.prepare()
    assert step.judge(Document("a secret", "x")) == "RegexFilter"
    assert step.judge(Document("nothing", "x")) is None
    c4 = Filter(use="datatrove.pipeline.filters:C4QualityFilter", options={"min_num_sentences": -1})
    c4.prepare()
    document = Document("This line ends as it should.\nthis one does not", "x", {"url": "u"})
    assert c4.judge(document) is None
    assert document.text == "This line ends as it should."
    assert document.metadata == {"url": "u"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, r"filter\.use: missing"),
        (
            {"use": "datatrove.pipeline.filters:NoFilter"},
            r"filter\.use: .*filters has no 'NoFilter'",
        ),
        ({"use": "json:loads"}, r"filter\.use: json:loads is no filter"),
        (
            {"use": "datatrove.pipeline.filters:GopherQualityFilter", "options": {"min_words": 3}},
            r"filter\.options: .*GopherQualityFilter cannot be made with them: .*min_words",
        ),
    ],
)
def test_values_that_make_no_sense(keys: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Filter(**keys)  # type: ignore[arg-type]
