"""A page to talk to a served model, in front of the engine that serves it.

The page is at `/`; every other request is handed on to the engine, and its answer comes back as it is made. It runs
in a process of its own, of nothing but the standard library, and ends when the engine does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from string import Template

from internevo.files.errors import UserError

_OWN = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host", "content-length"}
"""Headers of one connection, which are not handed on."""
_WATCH_S = 0.5  # seconds between two looks whether the engine is still there


def start_front(host: str, port: int, name: str, model: str, context: int) -> int:
    """Start the front at an address; the port of 127.0.0.1 at which the engine has to listen.

    The front ends when the calling process ends, which may become the engine (`os.execvp`). `name` is shown, `model` is
    what requests call it, `context` its rows in tokens. Raises UserError when the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot listen at {host}, port {port}: {reason}. Choose another with --port.") from None
    with socket.create_server(("127.0.0.1", 0)) as free:
        engine = free.getsockname()[1]
    facts = {"name": name, "model": model, "max_tokens": min(512, max(1, context // 4))}
    with listening:
        number = listening.fileno()
        numbers = map(str, (number, engine, os.getpid()))
        command = [sys.executable, "-m", "internevo.align.front", *numbers, json.dumps(facts)]
        subprocess.Popen(command, pass_fds=[number], stdin=subprocess.DEVNULL)
    return engine


def page(facts: str) -> bytes:
    """The page; `facts` is JSON."""
    text = files("internevo.align").joinpath("chat.html").read_text(encoding="utf-8")
    # inside a script element only "<" could end it early, or begin something else
    return Template(text).substitute(facts=facts.replace("<", "\\u003c")).encode()


class Front(BaseHTTPRequestHandler):
    """One request: the page, or the engine's answer."""

    protocol_version = "HTTP/1.1"
    engine: int
    page: bytes

    def do_GET(self) -> None:
        """The page at `/`."""
        if self.path.partition("?")[0] == "/":
            self._answer(200, "text/html; charset=utf-8", self.page)
        else:
            self._hand_on()

    def do_POST(self) -> None:
        """All are the engine's."""
        self._hand_on()

    do_HEAD = do_PUT = do_DELETE = do_OPTIONS = do_POST

    def log_message(self, format: str, *arguments: object) -> None:
        """The engine has its own log."""

    def _hand_on(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdigit():
            self.close_connection = True
            self._error(411, "send the request with a Content-Length")
            return
        body = self.rfile.read(int(length))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN}
        engine = HTTPConnection("127.0.0.1", self.engine)
        try:
            engine.request(self.command, self.path, body or None, headers)
            found = engine.getresponse()
        except (OSError, HTTPException):
            engine.close()
            self._error(503, "the model is still being loaded; try again in some seconds")
            return
        try:
            self._copy(found)
        except (OSError, HTTPException):  # who asked has left, or the engine has ended: neither hears more of the other
            self.close_connection = True
        finally:
            engine.close()

    def _copy(self, found: HTTPResponse) -> None:
        """The engine's answer, piece by piece as it comes."""
        chunks = self.request_version != "HTTP/1.0"
        body = self.command != "HEAD" and found.status not in (204, 304)
        self.send_response(found.status)
        for name, value in found.getheaders():
            if name.lower() not in _OWN:
                self.send_header(name, value)
        if body and chunks:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while body and (piece := found.read1(65536)):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunks else piece)
        if body and chunks:
            self.wfile.write(b"0\r\n\r\n")

    def _error(self, status: int, message: str) -> None:
        """An error in the shape of OpenAI's."""
        found = {"error": {"message": message, "type": "unavailable", "param": None, "code": status}}
        self._answer(status, "application/json", json.dumps(found).encode())

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os._exit(0)


def main(listening: int, engine: int, parent: int, facts: str) -> None:
    """Answer requests that come to an open socket, until the parent process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to the engine too, which then ends
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    handler = type("Handler", (Front,), {"engine": engine, "page": page(facts)})
    server = ThreadingHTTPServer(("", 0), handler, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.socket(fileno=listening)
    server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
