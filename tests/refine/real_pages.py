"""The interpreter's documentation as web pages, and what else a crawl brings: copies, spam, other languages."""

from __future__ import annotations

import ast
import random
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

from tests.refine.corpus import GERMAN

LIBRARY = Path(sysconfig.get_path("stdlib"))
NO_LIBRARY = {"test", "tests", "idle_test", "site-packages", "lib2to3", "idlelib", "turtledemo"}
"""Folders of tests, of tools, and of what others installed."""
PAGE_WORDS, LEAST_WORDS = 120, 60
DOCUMENTED = (
    *("argparse", "ast", "asyncio", "bisect", "calendar", "collections", "configparser", "csv", "datetime", "decimal"),
    *("difflib", "email", "enum", "fractions", "heapq", "html", "inspect", "json", "logging", "pathlib", "random"),
    *("sched", "shelve", "shutil", "socket", "statistics", "string", "tarfile", "textwrap", "threading", "typing"),
    *("unittest", "urllib", "uuid", "weakref", "xml", "zipfile", "zoneinfo"),
)
"""Modules whose pages pydoc writes."""
DEBIAN = Path("/usr/share/doc")

# written for these tests
FOREIGN = {
    "de": GERMAN,
    "fr": "Le vieux libraire ouvrait sa boutique tous les matins à huit heures, même en hiver, quand la rue était "
    "encore sombre. Il posait quelques livres sur une table devant la porte et rentrait aussitôt se chauffer "
    "près du poêle. Les habitués savaient qu'il ne fallait pas lui parler avant son café. Vers midi, les "
    "étudiants arrivaient par petits groupes, feuilletaient les romans d'occasion et repartaient souvent sans"
    " rien acheter. Cela ne le dérangeait pas, car il aimait entendre leurs discussions et pensait que la "
    "lecture commence toujours par la curiosité.",
    "es": "Cada verano volvíamos a la casa de mis abuelos, que estaba al final de un camino de tierra entre los "
    "olivos. Por las tardes hacía tanto calor que nadie salía, y nosotros leíamos en el suelo de la cocina, "
    "donde las baldosas estaban frescas. Mi abuela preparaba limonada y nos contaba historias de cuando era "
    "joven y trabajaba en la ciudad. Al anochecer, los vecinos sacaban las sillas a la puerta y hablaban "
    "hasta muy tarde. Todavía hoy, cuando huelo la tierra mojada después de la lluvia, me acuerdo de aquellas"
    " noches.",
    "ru": "Осенью в нашем городе рано темнеет, и уже к пяти часам в окнах загорается свет. Люди спешат с работы домой, "
    "покупают по дороге хлеб и молоко, останавливаются на минуту поговорить с соседями. На площади возле театра играют "
    "музыканты, и дети слушают их, забыв о холоде. Старый мост через реку давно собираются чинить, но каждый год "
    "находятся дела важнее. Мы привыкли к этому и не жалуемся, потому что любим свой город таким, какой он есть.",
    "ja": "駅前の小さな喫茶店は、朝早くから開いています。店の主人は毎朝自分でコーヒー豆を焼き、その香りが通りまで流れて"
    "きます。学生たちは試験の前になると長い時間ここで勉強しますが、主人はいやな顔をしません。雨の日には、傘を持っていない"
    "お客さんに古い傘を貸してくれます。私は十年以上この店に通っていますが、いつも同じ席に座って、窓の外を歩く人々を"
    "眺めるのが好きです。",
}


@cache
def prose() -> tuple[str, ...]:
    """Pages of real prose, each the paragraphs of one docstring or of a stretch of the language reference."""
    found = dict.fromkeys(page for paragraphs in (*_docstrings(), *_topics()) for page in _pages(paragraphs))
    pages = list(found)
    random.Random(0).shuffle(pages)
    return tuple(pages)


def _docstrings() -> Iterator[list[str]]:
    for file in sorted(LIBRARY.rglob("*.py")):
        if NO_LIBRARY.isdisjoint(file.relative_to(LIBRARY).parts):
            for node in ast.walk(ast.parse(file.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    yield _paragraphs(ast.get_docstring(node) or "")


def _topics() -> Iterator[list[str]]:
    seen: dict[str, None] = {}  # some chapters are there under several names
    for _, text in sorted(topics.items()):
        found = [one for one in _paragraphs(text) if one not in seen]
        seen |= dict.fromkeys(found)
        yield found


def _paragraphs(text: str) -> list[str]:
    """Those that are sentences: no code, no lists, no tables."""
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part[:1].isalnum())
    return [one for one in parts if one.endswith(".") and one.count(" ") > 8 and ">>>" not in one and "|" not in one]


def _pages(paragraphs: list[str]) -> Iterator[str]:
    page: list[str] = []
    for one in paragraphs:
        page.append(one)
        if sum(len(part.split()) for part in page) >= PAGE_WORDS:
            yield "\n\n".join(page)
            page = []
    if sum(len(part.split()) for part in page) >= LEAST_WORDS:
        yield "\n\n".join(page)


def shuffled(text: str, chance: random.Random) -> str:
    """The words of each paragraph in no order. Its last stays, so that it ends as sentences do: no rule of form can
    tell."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        *words, last = paragraph.split()
        chance.shuffle(words)
        paragraphs.append(" ".join([*words, last]))
    return "\n\n".join(paragraphs)


def documentation(folder: Path) -> dict[str, bytes]:
    """The pages that pydoc makes of the library's modules and, where there are some, Debian's: by a name."""
    subprocess.run([sys.executable, "-m", "pydoc", "-w", *DOCUMENTED], cwd=folder, capture_output=True, check=True)
    pages = {f"pydoc/{file.stem}": file.read_bytes() for file in sorted(folder.glob("*.html"))}
    debian = [file for file in sorted(DEBIAN.rglob("*.html")) if file.is_file() and file.stat().st_size < 60_000]
    for file in debian[:: len(debian) // 60 + 1]:
        pages[f"debian{file}"] = file.read_bytes()
    return pages


def spam(chance: random.Random) -> dict[str, str]:
    """One page of each kind that rules of form tell from prose."""

    def some(count: int) -> list[str]:
        return chance.sample(_vocabulary(), count)

    first, second, third = some(3)
    return {
        "repeated-lines": f"Call now for the best {first} and {second}, and have {third} for free.\n" * 12,
        "repeated-sentences": " ".join(f"Buy the {first} of {second} here and now, it is {n}% off." for n in range(40)),
        "symbols": " ".join(f"({word}), [{word}]; '{word}'!?! *** ~{word}~ +++" for word in some(60)),
        "keywords": " ".join(some(200)),
        "hashtags": ". ".join(f"#{word} the" for word in some(90)),
        "stuffing": " ".join(f"Best cheap watches, {word} and {word[::-1]}." for word in some(50)),
        "numbers": " ".join(
            f"{chance.randrange(10**6):,} {chance.randrange(100)}.99 the price, 12:30" for _ in range(80)
        ),
        "link-texts": "\n".join(f"Read more of {word}" for word in some(60)),
        "a-few-words": f"Click here to read more about {first}, and then come back to us for all the rest.",
    }


@cache
def _vocabulary() -> list[str]:
    return sorted({word for text in prose() for word in text.split() if word.isalpha() and len(word) > 3})
