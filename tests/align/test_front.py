"""The page before a served model: the real engine, asked by the official client and by a real browser."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from internevo.align.front import page, start_front
from internevo.files.errors import UserError
from tests.align.browser import Browser
from tests.align.talkers import ANSWERS
from tests.launch.cluster import free_ports
from tests.train.runs import finish, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(chatml_run: Path) -> Iterator[str]:
    """The address of the run, served by transformers, with the page in front of it."""
    (port,) = free_ports(1)
    server = start("serve", chatml_run, "--engine", "transformers", "--port", str(port))
    base = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 200
        while True:
            try:
                urlopen(f"{base}/health", timeout=60).read()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        yield base
    finally:
        server.terminate()
        finish(server)
    deadline = time.monotonic() + 20
    while _listens(port):  # the page ends with the engine
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_the_official_client(served: str, chatml_run: Path) -> None:
    """Streamed and whole; it stops where the model was trained to, at a text, or after some tokens."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{served}/v1", api_key="-", max_retries=0)
    (folder,) = (chatml_run / "serve").iterdir()
    model = str(folder)
    for question, answer in ANSWERS.items():
        asked: Any = [{"role": "user", "content": question}]
        whole = client.chat.completions.create(model=model, messages=asked, temperature=0, max_tokens=60)
        assert whole.choices[0].message.content == answer
        assert whole.choices[0].finish_reason == "stop"
        pieces = client.chat.completions.create(
            model=model, messages=asked, temperature=0, max_tokens=60, top_p=0.9, stream=True
        )
        found = [one.choices[0].delta.content or "" for one in pieces if one.choices]
        assert "".join(found) == answer
        assert sum(map(bool, found)) > 2
    short = client.chat.completions.create(model=model, messages=asked, temperature=0, max_tokens=3)
    assert short.choices[0].finish_reason == "length"
    early = client.chat.completions.create(model=model, messages=asked, temperature=0, max_tokens=60, stop=["three"])
    assert "four" not in str(early.choices[0].message.content)
    wrong = json.dumps({"model": model, "messages": asked, "nonsense": 1}).encode()
    with pytest.raises(HTTPError) as refused:  # the engine's own words come through
        urlopen(Request(f"{served}/v1/chat/completions", wrong, {"Content-Type": "application/json"}), timeout=60)
    assert refused.value.code == 422
    assert b"nonsense" in refused.value.read()


def test_the_page_loads_nothing(served: str) -> None:
    shown = urlopen(served, timeout=30).read().decode()
    assert "$" not in re.sub(r"<script>.*?</script>", "", shown, flags=re.S).replace("$facts", "")
    assert not re.findall(r"""https?://|@import|url\(|src=""", shown)
    assert set(re.findall(r"""href="(.*?)\"""", shown)) == {"data:,"}


def test_what_is_shown_cannot_end_the_script() -> None:
    shown = page(json.dumps({"name": "</script><b>", "model": "x", "max_tokens": 1})).decode()
    assert shown.count("</script>") == 2
    assert "<b>" not in shown


def test_before_the_engine_is_there() -> None:
    """The page is there at once; what is asked of the model is refused in a sentence. An address that is taken, too."""
    (port,) = free_ports(1)
    start_front("127.0.0.1", port, "one", "one", 100)
    base = f"http://127.0.0.1:{port}"
    assert b"<title>" in urlopen(base, timeout=60).read()
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(f"{base}/v1/chat/completions", b"{}"), timeout=30)
    assert refused.value.code == 503
    assert "still being loaded" in json.loads(refused.value.read())["error"]["message"]
    with pytest.raises(UserError, match=rf"cannot listen at 127.0.0.1, port {port}: .*Choose another with --port"):
        start_front("127.0.0.1", port, "one", "one", 100)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if not (chromium := shutil.which("chromium")):
        pytest.skip("no browser: apt-get install chromium")
    with Browser(chromium, tmp_path / "profile") as one:
        yield one


def test_a_browser_talks(served: str, browser: Browser, tmp_path: Path) -> None:
    """Two questions, reset, a system message; nothing sticks out in a narrow window."""
    browser.open(served, 1000, 800, dark=False)
    browser.do("at('temperature').value = 0")
    browser.until("at('status').textContent === ''")
    for question in ("Hi", "Who?"):
        browser.type(question)
        browser.until(
            "!running && document.querySelectorAll('article.assistant').length && at('send').disabled === false"
        )
        assert (
            browser.do("[...document.querySelectorAll('article.assistant p')].at(-1).textContent") == ANSWERS[question]
        )
    assert browser.do("messages.map(one => one.content)") == ["Hi", ANSWERS["Hi"], "Who?", ANSWERS["Who?"]]
    browser.picture(tmp_path / "light.png")
    browser.open(None, 360, 640, dark=True)
    browser.picture(tmp_path / "narrow-dark.png")
    assert browser.do("document.documentElement.scrollWidth") <= 360
    browser.do("at('reset').click()")
    assert browser.do("[messages.length, document.querySelectorAll('article').length]") == [0, 0]
    browser.do("document.querySelector('details').open = true; at('system').value = 'Shout'")
    browser.type("Hi")
    browser.until("messages.length === 2")
    assert browser.do("messages[1].content") == "HELLO"
    assert browser.do("document.documentElement.scrollWidth") <= 360
    browser.picture(tmp_path / "settings.png")
    unnamed = "[...document.querySelectorAll('input, textarea')].filter(one => !one.labels.length).length"
    assert browser.do(unnamed) == 0


def test_a_browser_stops_an_answer_and_shows_errors(browser: Browser) -> None:
    """Of an engine that says a piece and then waits: whoever stops does not wait for the rest."""
    left = threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if asked["messages"][-1]["content"] == "bad":
                self.send_response(400)
                self.end_headers()
                self.wfile.write(b'{"error": {"message": "a <b>bad</b> request"}}')
                return
            self.send_response(200)
            self.end_headers()
            said = (
                "data: " + json.dumps({"choices": [{"delta": {"content": "caf\u00e9 "}}]}, ensure_ascii=False) + "\n\n"
            )
            cut = said.encode().index(b"\xc3") + 1  # within a character
            try:
                self.wfile.write(said.encode()[:cut])
                time.sleep(0.3)
                self.wfile.write(said.encode()[cut:])
                for _ in range(600):
                    time.sleep(0.1)
                    self.wfile.write(b": still there\n\n")
            except OSError:
                left.set()

        def log_message(self, format: str, *arguments: object) -> None: ...

    (port,) = free_ports(1)
    engine = start_front("127.0.0.1", port, "one", "one", 100)
    server = ThreadingHTTPServer(("127.0.0.1", engine), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser.open(f"http://127.0.0.1:{port}", 800, 600, dark=False)
    browser.type("bad")
    browser.until("document.querySelector('article.bad')")
    assert browser.do("document.querySelector('article.bad p').textContent") == "a <b>bad</b> request"
    assert browser.do("[messages.length, at('text').value]") == [0, "bad"]  # to send again
    browser.do("at('text').value = ''")
    browser.type("long")
    browser.until("[...document.querySelectorAll('article.assistant p')].at(-1).textContent === 'caf\u00e9 '")
    browser.do("at('stop').click()")
    browser.until("messages.length === 2")
    assert browser.do("messages[1].content") == "caf\u00e9 "
    assert left.wait(30)  # the engine learns that nobody waits any more
    server.shutdown()
