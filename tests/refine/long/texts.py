"""Long texts in English and Chinese, and what only looks like one."""

from __future__ import annotations

import random
import re
from pydoc_data.topics import topics

LENGTH = 40_000
"""Bytes, about."""

_CHINESE = """
这座小城在河的北岸，春天来得比别处晚一些。每年三月，虽然山上的雪还没有化完，集市上却已经有人卖起了新采的野菜。我小的时候常常跟着外祖母去赶集，因为她认识每一个摊主，所以我们总能买到最好的东西。她说，买菜和做人一样，不但要看外表，而且要闻一闻、摸一摸，否则很容易上当。

后来我离开了那里，到南方去读书。起初我很不习惯，不仅听不懂当地人说的话，也吃不惯那里的饭菜。不过时间久了，我发现南方的冬天虽然潮湿，但是花开得早，人们说话的声音也很温柔。于是我慢慢喜欢上了这个地方，甚至开始用他们的方言同邻居打招呼。

如果有人问我家乡是什么样子，我大概会先说到那条河。河水在夏天涨得很高，孩子们不管大人怎么说，都要偷偷跑去游泳。因此每年总有几次，全城的大人一起沿着河岸找人。最后孩子们当然都会回来，然后挨一顿骂，第二天又去。其实大人们也知道拦不住，只是不说罢了。

外祖母去世以前，曾经写过一封很长的信给我。她在信里说，人走得再远，也还是要记得自己从哪里来，否则就像没有根的草，风一吹就不见了。我当时并没有完全懂得她的意思，然而随着年纪的增长，我越来越觉得这句话是对的。例如每当我在异乡的街上闻到野菜的味道，就会想起她的样子，以及那个又冷又亮的早晨。

去年秋天，我终于又回到了那座小城。集市已经搬到了新的楼里，摊主也换了一代人，可是卖野菜的老人居然还认得我。他一边称菜，一边告诉我城里这些年的变化：谁家的孩子考上了大学，谁家的房子卖给了外地人。总之，一切都变了，又好像什么都没有变。我听着听着，忽然觉得外祖母就站在我的身后，正要伸手去摸一摸那把菜是不是新鲜。
"""

_TRADE = "价格 手机 品牌 厂家 批发 北京 上海 广州 电话 公司 产品 图片 下载 免费 视频 游戏 电影 小说 酒店 机票"


def english(chance: random.Random) -> str:
    """Chapters of Python's language reference."""
    chapters = [text for text in topics.values() if len(text) > 2000]
    return _filled(chance, chapters, "\n\n")


def chinese(chance: random.Random) -> str:
    """A story's paragraphs, over and over."""
    return _filled(chance, _CHINESE.strip().split("\n\n"), "\n\n")


def english_junk(chance: random.Random) -> dict[str, str]:
    """What is no text, and is as long as one."""
    words = sorted({word for text in topics.values() for word in re.findall(r"[a-z]{4,}", text)})
    names = [word.capitalize() for word in words]

    def tags() -> str:
        return ", ".join(chance.choices(words, k=12))

    def row() -> str:
        return "\t".join(f"{chance.uniform(0, 1000):.3f}" for _ in range(8))

    def entry() -> str:
        return f"{chance.choice(names)} {chance.choice(names)}, {chance.randint(1, 99)} {chance.choice(names)} Street"

    return {
        "keywords": _made(tags, "\n"),
        "table": _made(row, "\n"),
        "addresses": _made(entry, "\n"),
        "one sentence again and again": "This is the sentence that it is, and it is not another one. " * 700,
    }


def chinese_junk(chance: random.Random) -> dict[str, str]:
    """The same in Chinese."""
    words = re.findall(r"\w+", _TRADE)
    return {
        "keywords": _made(lambda: " ".join(chance.choices(words, k=15)), "\n"),
        "table": _made(
            lambda: "，".join(f"{chance.choice(words)}{chance.randint(1000, 99999)}" for _ in range(6)), "\n"
        ),
        "names": _made(lambda: "、".join(chance.choices(words, k=9)) + "。", "\n\n"),
    }


def _filled(chance: random.Random, parts: list[str], between: str) -> str:
    text = ""
    while len(text.encode()) < LENGTH:
        text += chance.choice(parts) + between
    return text


def _made(line, between: str) -> str:  # type: ignore[no-untyped-def]
    text = ""
    while len(text.encode()) < LENGTH:
        text += line() + between
    return text
