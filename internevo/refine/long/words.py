"""Words that hold a text together, in English and Chinese.

Connectives say how a statement follows from another, conjunctions join, and any text of the language is full of
function words. A list, a table or a bag of keywords has few.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """Of one language, to be found in lower case (a pattern that ignores case takes five times as long)."""

    connectives: re.Pattern[str]
    conjunctions: re.Pattern[str]
    function_words: re.Pattern[str]


def _english(words: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{_any(word.replace('_', ' ') for word in words.split())})\b")


def _chinese(words: str) -> re.Pattern[str]:
    return re.compile(_any(words.split()))


def _any(words: Iterable[str]) -> str:
    # the longest first, so that of `even though` and `though` one is counted
    return "|".join(
        re.escape(word).replace(r"\ ", r"\s+") for word in sorted(words, key=lambda word: (-len(word), word))
    )


WORDS = {
    "en": Words(
        connectives=_english("""
            however therefore thus hence moreover furthermore nevertheless nonetheless meanwhile otherwise instead
            consequently accordingly similarly likewise conversely besides indeed finally then still rather also
            because although though even_though even_if unless until whereas while since so_that in_order_to
            as_well_as as_long_as as_soon_as provided_that in_addition in_fact in_general in_particular in_contrast
            in_other_words in_this_case in_that_case for_example for_instance as_a_result as_follows as_if such_as
            on_the_other_hand after_all at_the_same_time rather_than due_to that_is first second next
        """),
        conjunctions=_english("""
            and or but nor yet so if when whenever where wherever that which who whom whose than whether as because
            although though unless until while since before after once
        """),
        function_words=_english("""
            the a an of to in on at by for with from into about over under between through is are was were be been
            being has have had do does did will would can could may might must should shall not no this that these
            those it its he she they them his her their we us our you your i me my there here what which who
        """),
    ),
    "zh": Words(
        connectives=_chinese("""
            但是 但 然而 不过 可是 因此 因而 所以 因为 由于 既然 虽然 尽管 即使 即便 哪怕 如果 假如 要是 倘若 只要
            只有 除非 无论 不管 不仅 不但 而且 并且 况且 何况 此外 另外 同时 然后 于是 接着 随后 最后 首先 其次 例如
            比如 譬如 总之 换句话说 也就是说 相反 反之 否则 以便 以免 从而 甚至 尤其 其实 事实上 一方面 另一方面
            与此同时 正因为 之所以 以至于 至于 却 雖然 儘管 因為 由於 所謂 無論 不僅 並且 況且 同時 於是 接著 隨後
            最後 換句話說 總之 從而 甚至於 其實 事實上 卻 然後 不過
        """),
        conjunctions=_chinese("""
            和 与 及 以及 或 或者 还是 而 并 且 又 也 既 跟 同 因为 所以 虽然 但 如果 就 才 時 时 當 当 與 還是 並
            雖然
        """),
        function_words=_chinese("""
            的 了 在 是 我 你 他 她 它 们 們 这 這 那 有 不 没 沒 着 著 过 過 得 地 把 被 对 對 从 從 到 向 为 為 以
            之 其 个 個 就 都 也 还 還 很 上 下 里 裡 中 会 會 能 要 可 吗 嗎 呢 吧 啊
        """),
    ),
}
"""By language. Traditional characters are among the Chinese ones."""
