"""Real text, planted junk, and web archives of them."""

from __future__ import annotations

import ast
import html
import io
import json
import random
import sysconfig
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from internevo.refine.shards import Document, ShardWriter

# written for these tests
CHINESE = [
    "清晨的河边总是很安静。老人们沿着石板路慢慢地走，一边活动手脚，一边谈论昨天的天气和菜市场的价钱。河水并不深，"
    "站在桥上可以看见水底的石头和一群一群的小鱼。到了七点钟，卖豆浆的小店开了门，街上的人也渐渐多了起来，孩子们背着"
    "书包从巷子里跑出来，笑声一直传到对岸。这样的日子看起来平常，可是离开家乡的人常常会想起它。",
    "学习一门新的语言需要耐心，也需要方法。很多人以为只要背下足够多的单词，就能够自由地表达自己的想法，但事实并不是这样。"
    "语言是在使用中学会的：听别人怎么说，再试着自己说出来；读一篇文章，再用自己的话把它讲一遍。犯错误并不可怕，可怕的是"
    "因为害怕犯错误而不敢开口。每天坚持半个小时，一年以后的变化会让你感到惊讶。",
    "计算机科学的一个基本思想，是把复杂的问题分解成若干个简单的问题。比如要给一百万个数字排序，我们可以先把它们分成两半，"
    "分别排好，再合并在一起；而每一半又可以用同样的办法处理。这种思路叫做分治。它不仅适用于排序，也适用于搜索、矩阵运算和"
    "图形处理。理解了这一点，再去看许多算法，就会发现它们其实有着相似的结构。",
    "去年秋天，我和几个朋友一起去了西部的山区。那里的村子坐落在山谷之中，房子用木头和石块建成，屋顶上晒着玉米和辣椒。"
    "村民们非常热情，他们请我们喝自己酿的米酒，还带我们去看山后面的瀑布。晚上没有路灯，天空中的星星显得格外明亮。"
    "我们坐在院子里聊了很久，谁也不愿意先去睡觉，因为第二天就要回到城里了。",
]
GERMAN = (
    "Am Morgen ging der alte Mann wie jeden Tag zum Fluss hinunter, um nach seinem Boot zu sehen. Das Wasser war über "
    "Nacht gestiegen, und die Bretter des kleinen Stegs standen beinahe unter Wasser. Er setzte sich auf einen Stein, "
    "zündete seine Pfeife an und wartete. Es war noch früh, aber aus dem Dorf hörte man schon die Glocken, und auf der "
    "Straße fuhren die ersten Wagen zum Markt. Niemand hatte es eilig, denn der Herbst war mild und die Ernte längst "
    "eingebracht."
)


@cache
def docstrings(count: int = 200) -> tuple[str, ...]:
    """Prose that every machine has: the interpreter's own documentation of its library, in a fixed order."""
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for file in sorted(library.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                # prose, told by other means than the rules: sentences, and no examples of code
                if text.count(". ") + text.count(".\n") >= 4 and len(text.split()) > 80 and ">>>" not in text:
                    found.append(text)
    random.Random(0).shuffle(found)
    return tuple(found[:count])


def page(text: str) -> str:
    """A web page around a text: its paragraphs, and what pages have besides."""
    paragraphs = "".join(f"<p>{html.escape(part)}</p>" for part in text.split("\n\n"))
    menu = "".join(f'<li><a href="/{name}">{name}</a></li>' for name in ("Home", "News", "Shop", "About us"))
    return (
        f"<!doctype html><html><head><title>A page</title><script>var x = 1;</script></head><body>"
        f"<nav><ul>{menu}</ul></nav><article>{paragraphs}</article>"
        f"<footer>Cookies. All rights reserved.</footer></body></html>"
    )


def write_warc(
    path: Path,
    pages: Iterable[tuple[str, bytes]],
    kind: str = "text/html; charset=utf-8",
    status: str = "200 OK",
    date: str = "2024-05-01T10:00:00Z",
) -> Path:
    """An archive of answers to requests; each page an address and a body, all of one date. What is there is kept."""
    with path.open("ab") as file:
        writer = WARCWriter(file, gzip=path.suffix == ".gz")
        if not file.tell():
            writer.write_record(writer.create_warcinfo_record(path.name, {"software": "tests"}))
        for url, body in pages:
            request = StatusAndHeaders("GET / HTTP/1.1", [("Host", "example.com")], is_http_request=True)
            writer.write_record(writer.create_warc_record(url, "request", http_headers=request))
            head = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
            writer.write_record(
                writer.create_warc_record(
                    url,
                    "response",
                    payload=io.BytesIO(body),
                    http_headers=head,
                    warc_headers_dict={"WARC-Date": date},
                )
            )
    return path


def write_jsonl(path: Path, rows: Iterable[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_shard(step: Path, number: int, documents: Iterable[Document]) -> None:
    """A shard as a step before would have kept it."""
    with ShardWriter(step, number) as out:
        for document in documents:
            out.write(document)
