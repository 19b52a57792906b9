"""Texts with near-duplicates of known similarity among them, and what is exactly alike: for tests and benchmarks.

Nothing of internevo's is used, so that it can be measured by it.
"""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import regex
from scipy.sparse import csr_array

_SCRIPTS = ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")
_CHARACTER = "[" + "".join(rf"\p{{scx={script}}}" for script in _SCRIPTS) + "]"
_LETTER = r"[\p{L}\p{M}\p{N}_]"
WORD = regex.compile(rf"[{_LETTER}&&{_CHARACTER}]|[{_LETTER}--{_CHARACTER}]+", regex.V1)
"""A word, or a character where words are not told apart by spaces."""

_CHINESE = (
    "我们 研究 语言 模型 训练 数据 质量 重要 影响 结果 方法 系统 问题 世界 时间 工作 城市 历史 "
    "文化 经济 社会 发展 科学 技术 人们 生活 学校 学生 老师 图书馆 春天 河流 山 水 火车 飞机 电脑 "
    "手机 网络 新闻 故事 音乐 电影 朋友 家庭 孩子 父母 医生 医院 健康 食物 米饭 面条 茶 咖啡 早上 "
    "晚上 昨天 今天 明天 去年 今年 北京 上海 南方 北方 东 西 大 小 多 少 新 旧 好 坏 的 了 在 "
    "是 和 有 不 也 都 就 很 把 被 让 对 从 到 给 向 因为 所以 但是 如果 虽然 然后 已经 可能 "
    "应该 需要 认为 发现 提出"
)


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return [word.lower() for word in WORD.findall(text)]


def shingle_set(text: str, ngrams: int = 5) -> frozenset[tuple[str, ...]]:
    """The n-grams of a text's words; of a text with fewer words, the text itself."""
    found = words(text)
    grams = frozenset(tuple(found[start : start + ngrams]) for start in range(len(found) - ngrams + 1))
    return grams or frozenset([(text,)])


def jaccard(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    """The exact similarity of two sets."""
    return len(one & other) / len(one | other)


def exact_pairs(sets: Sequence[Iterable[Hashable]], at_least: float) -> dict[tuple[int, int], float]:
    """All pairs i < j of sets, none of them empty, with at least this Jaccard similarity, and the similarity."""
    numbers: dict[Hashable, int] = {}
    rows = [[numbers.setdefault(gram, len(numbers)) for gram in grams] for grams in sets]
    sizes = np.array([len(row) for row in rows])
    borders = np.concatenate([[0], np.cumsum(sizes)])
    matrix = csr_array((np.ones(borders[-1], np.int32), np.concatenate(rows), borders), (len(rows), len(numbers)))
    transposed, found = matrix.T.tocsr(), {}
    for start in range(0, len(rows), 256):
        common = (matrix[start : start + 256] @ transposed).tocoo()
        one, other = common.row + start, common.col
        similarity = common.data / (sizes[one] + sizes[other] - common.data)
        wanted = (one < other) & (similarity >= at_least)
        for i, j, value in zip(one[wanted], other[wanted], similarity[wanted], strict=True):
            found[int(i), int(j)] = float(value)
    return found


def altered(text: str, similarity: float, chance: random.Random, ngrams: int = 5) -> str:
    """The text with words replaced by others of its own, such that its expected similarity to it is this.

    A share p of words replaced leaves (1 - p)**n of the n-grams, and these are 2 J / (1 + J) of either text.
    """
    own = WORD.findall(text)
    share = 1 - (2 * similarity / (1 + similarity)) ** (1 / ngrams)
    return WORD.sub(lambda match: chance.choice(own) if chance.random() < share else match.group(), text)


def library(pattern: str = "*.py") -> Iterator[tuple[Path, str]]:
    """The modules of the interpreter's own library and their sources."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(folder.rglob(pattern)):
        if "site-packages" not in file.parts:
            try:
                yield file.relative_to(folder), file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def english(count: int, least_words: int = 40) -> list[str]:
    """English prose: the longer docstrings of the library."""
    found: dict[str, None] = {}
    for _, source in library("[a-z]*.py"):
        try:
            tree = ast.parse(source)
        except SyntaxError:  # some are examples of it
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if len(words(text)) >= least_words:
                    found[text] = None
        if len(found) >= count:
            break
    return list(found)[:count]


def code(count: int, lines: int = 60) -> list[str]:
    """Code: stretches of the library's modules."""
    found: list[str] = []
    for _, source in library("[a-z]*.py"):
        parts = source.splitlines(keepends=True)
        stretches = ["".join(parts[start : start + lines]) for start in range(0, len(parts), lines)]
        found += [text for text in stretches if len(words(text)) >= 60]
        if len(found) >= count:
            break
    return found[:count]


def chinese(count: int, chance: random.Random) -> list[str]:
    """Sentences of Chinese words, without sense: the library has no Chinese text."""
    sentences = ["".join(chance.choices(_CHINESE.split(), k=chance.randrange(5, 25))) for _ in range(count * 12)]
    return ["。\n".join(sentences[start * 12 : start * 12 + chance.randrange(4, 13)]) + "。" for start in range(count)]
