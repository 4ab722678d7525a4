"""A worker's threads: how many there are when, and what they never get wrong."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Client
from .front import Front

StartResponse = Callable[..., Any]

#: What keeps a thread busy in these tests (s), and a limit on what is "as long as one of them" that fails if they come
#: one after the other, and doesn't if the machine is busy.
SLEEP = 0.1


def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """/sleep/SECONDS sleeps; /for-ever never comes back; everything answers with the name of its thread."""
    _, word, *arguments = environ["PATH_INFO"].split("/")
    if word == "sleep":
        time.sleep(float(arguments[0]))
    elif word == "for-ever":
        threading.Event().wait()
    body = threading.current_thread().name.encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Callable[..., Front]]:
    with contextlib.ExitStack() as stack:

        def start(app: Any = application, **settings: Any) -> Front:
            started = Front(app, tmp_path / "log", **settings)
            stack.callback(started.close)
            return started

        yield start


def answers(socks: Iterable[socket.socket]) -> list[str]:
    """Read an answer of each, and close."""
    found = []
    for sock in socks:
        with sock:
            answer = Client(sock).answer()
            assert answer.status == 200
            found.append(answer.body.decode())
    return found


@pytest.mark.parametrize("kept", [False, True], ids=["new connections", "kept connections"])
def test_64_requests_that_sleep_take_about_as_long_as_one(front: Callable[..., Front], kept: bool) -> None:
    ours = front(max_threads=64)
    socks: list[socket.socket | None] = [None] * 64
    if kept:
        socks = [ours.ask() for _ in range(64)]
        for sock in socks:
            assert sock is not None
            assert Client(sock).answer().status == 200
    began = time.monotonic()
    names = answers([ours.ask(f"/sleep/{SLEEP}", sock) for sock in socks])
    took = time.monotonic() - began
    assert len(set(names)) > 8
    assert took < 64 * SLEEP / 8
