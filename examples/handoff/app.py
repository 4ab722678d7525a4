"""A program that takes over connections from pyttpd, and serves HTTP with Python's own http.server.

    /          a page that shows the clock
    /clock     the time, once a second, for as long as the client listens (server-sent events)

Nothing here knows of pyttpd but how a handler gets its connection, and the last line.
"""

from __future__ import annotations

import html
import http.server
import time

import pyttpd_handoff  # type: ignore[import-not-found]  # it lies beside this file

PAGE = """<!doctype html>
<html lang="en"><title>handoff.localhost</title>
<h1>Hand-off</h1>
<p>This tenant is of the kind <strong>handoff</strong>: your connection is this program's own, from {address}. It is
served by Python's http.server.</p>
<p>Here it is <b id="clock">...</b></p>
<script>
new EventSource("/clock").onmessage = event => document.getElementById("clock").textContent = event.data
</script>
"""

#: Seconds that one answer goes on; a browser asks again then. Who is to end waits for no more than that.
TICKS = 20


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    #: A client that says nothing for so long is let go.
    timeout = 60

    def __init__(self, client: pyttpd_handoff.Client) -> None:
        self.client = client
        super().__init__(client.sock, (client.address, client.port), None)  # type: ignore[arg-type]  # it has no server

    def setup(self) -> None:
        super().setup()
        self.rfile = self.client.makefile()  # begins with what was read already, if anything was

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/":
                self.answer(
                    "text/html; charset=utf-8", PAGE.format(address=html.escape(self.client_address[0]))
                )
            case "/clock":
                self.tell_the_time()
            case _:
                self.send_error(404)

    def do_HEAD(self) -> None:
        if self.path.partition("?")[0] == "/":
            self.answer("text/html; charset=utf-8", "")
        else:
            self.send_error(404)

    def answer(self, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def tell_the_time(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for _ in range(TICKS):
                self.wfile.write(time.strftime("data: %H:%M:%S\n\n").encode())
                time.sleep(1)
        except OSError:
            pass  # the client has left

    def log_message(self, form: str, *words: object) -> None:
        """What is said on a connection that was handed over nobody else logs."""
        print(f"{self.client_address[0]} {form % words}", flush=True)


if __name__ == "__main__":
    pyttpd_handoff.serve_threads(Handler, threads=64)
