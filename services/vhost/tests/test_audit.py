"""Requests that take too long: what the log says of them; what becomes of them, their client and their worker."""

from __future__ import annotations

import _thread
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from pyttpd.wire import messages as m

from pyttpd_vhost import worker as module
from pyttpd_vhost.worker import TIMED_OUT

from .conftest import HOST, Client
from .front import Fronts

StartResponse = Callable[..., Any]

#: Long enough for a request not to be slow by accident, short enough to be waited for.
LIMIT = 0.4
#: Pieces of 64 KiB that make more than two sockets hold.
LARGE = 400


def sleeps(environ: dict[str, Any]) -> None:
    time.sleep(1000)


def deadlocks(environ: dict[str, Any]) -> None:
    lock = threading.Lock()
    with lock, lock:
        pass


def loops(environ: dict[str, Any]) -> None:
    while True:
        pass


def joins(environ: dict[str, Any]) -> None:
    """Wait for a thread of the application's own that never ends."""
    thread = threading.Thread(target=threading.Event().wait, name="the application's own", daemon=True)
    thread.start()
    thread.join()


def begins(environ: dict[str, Any]) -> None:
    """Get stuck with half an answer sent."""
    environ["start"]("200 OK", [("Content-Length", "100")])(b"half")
    time.sleep(1000)


STUCK = {f"/{function.__name__}": function for function in (sleeps, deadlocks, loops, joins, begins)}


def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Get stuck in the way the path names; /slow/SECONDS only takes a while; /trickle sends a byte, very slowly."""
    _, word, *arguments = environ["PATH_INFO"].split("/")
    environ["start"] = start_response
    if f"/{word}" in STUCK:
        STUCK[f"/{word}"](environ)
    elif word == "slow":
        time.sleep(float(arguments[0]))
    elif word == "body":
        environ["wsgi.input"].read()
    elif word == "large":
        start_response("200 OK", [])
        return [b"x" * 65536] * LARGE
    start_response("200 OK", [("Content-Length", "4")])
    return [b"done"]


def entries(log: str, event: str) -> list[str]:
    """Return what the log says of `event`: each line with what is below it."""
    return [
        found[0] for found in re.finditer(rf"warning: {re.escape(event)}[^\n]*\n(?:    \| [^\n]*\n)*", log)
    ]


@pytest.mark.parametrize("threads", [1, 4], ids=["alone", "in a crowd"])
@pytest.mark.parametrize("path", [path for path in STUCK if path != "/begins"])
def test_a_request_that_is_stuck_gets_504_and_its_worker_goes(front: Fronts, path: str, threads: int) -> None:
    ours = front(application, max_threads=threads, slow_request=0.1, request_timeout=2 * LIMIT)
    with ours.ask(f"{path}?a=b") as sock:
        client = Client(sock)
        answer = client.answer()
        assert (answer.status, answer["Connection"], answer.body) == (504, "close", b"504 Gateway Timeout\n")
        assert client.at_end()
    assert ours.wait_ended() == 0
    assert m.Goodbye(TIMED_OUT) in ours.workers[0].said
    slow = entries(ours.log(), "slow request")
    over = entries(ours.log(), "request timed out: its worker retires")
    assert len(slow) == len(over) == 1
    for entry in (*slow, *over):
        assert f'method=GET host={HOST} path="{path}?a=b"' in entry
        assert f", in {path[1:]}\n" in entry  # the function that is stuck
    assert (ours.row().slow, ours.row().timed_out, ours.row().server_error) == (1, 1, 1)


def test_one_that_is_stuck_with_half_an_answer_is_cut_off(front: Fronts) -> None:
    ours = front(application, request_timeout=LIMIT)
    with ours.ask("/begins") as sock:
        data = b""
        while piece := sock.recv(65536):
            data += piece
        assert data.startswith(b"HTTP/1.1 200 OK\r\n")
        assert data.endswith(b"half")
        assert data.count(b"HTTP/1.1") == 1
    assert ours.wait_ended() == 0
    assert (ours.row().timed_out, ours.row().server_error) == (1, 0)


def test_a_slow_request_is_logged_once_and_gets_its_answer(front: Fronts) -> None:
    ours = front(application, slow_request=LIMIT, request_timeout=60)
    with ours.ask("/slow/0.9") as sock:
        assert Client(sock).answer().status == 200
        ours.ask("/slow/0", sock)
        assert Client(sock).answer().status == 200
    assert len(entries(ours.log(), "slow request")) == 1
    ours.wait_for(lambda: ours.row().slow == 1)


@pytest.mark.parametrize("threads", [1, 4], ids=["alone", "in a crowd"])
def test_quick_requests_on_one_connection_are_never_slow(front: Fronts, threads: int) -> None:
    """But those are that a busy machine made slow: the worker may call only those slow that we have waited for, too."""
    limit = 0.1
    ours = front(application, max_threads=threads, slow_request=limit, request_timeout=60)
    asked: list[float] = []
    with ours.connect() as sock:
        client = Client(sock)
        while not asked or time.monotonic() - asked[0] < 8 * limit:
            asked.append(time.monotonic())
            ours.ask("/slow/0.01", sock)
            assert client.answer().status == 200
        told = entries(ours.log(), "slow request")
    # A request is over for the worker before it answers the next one.
    over = [*asked[2:], *2 * [time.monotonic()]]
    assert len(told) <= sum(end - begin >= limit for begin, end in zip(asked, over, strict=True))


def test_others_get_their_grace(front: Fronts) -> None:
    """They are slower than request_timeout allows alone, but began later; who waits goes to a sibling."""
    ours = front(application, workers=2, max_threads=2, slow_request=0, request_timeout=1.0)
    ours.wait_for(lambda: all(worker.credit for worker in ours.workers))
    ours.workers[1].credit -= 1000  # all go to the first
    with ours.ask("/slow/0") as idle, ours.ask("/sleeps") as stuck:
        assert Client(idle).answer().status == 200
        ours.wait_for(lambda: ours.row().busy_threads == 1)
        time.sleep(0.5)
        with ours.ask("/slow/0.9") as other:
            ours.wait_for(lambda: ours.row().busy_threads == 2)
            ours.workers[1].credit += 1000
            assert Client(stuck).answer().status == 504
            assert Client(other).answer().status == 200
        ours.ask("/slow/0", idle)
        assert Client(idle).answer().status == 200
    assert ours.wait_ended() == 0
    ours.wait_for(lambda: ours.row(2).requests == 1)


def test_who_waits_behind_a_stuck_one_is_served_by_a_sibling_however_long_that_takes(
    front: Fronts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kept connection, and one that has never been read from; there is no sibling for longer than others wait."""
    monkeypatch.setattr(module, "PASS_SHARE", 0.03)
    ours = front(application, workers=2, slow_request=0, request_timeout=LIMIT)
    ours.wait_for(lambda: all(worker.credit for worker in ours.workers))
    ours.workers[1].credit -= 1000
    with ours.ask("/slow/0") as kept, ours.ask("/sleeps") as stuck, ours.ask("/slow/0") as fresh:
        assert Client(kept).answer().status == 200
        ours.wait_for(lambda: ours.workers[0].taken == 3)
        ours.ask("/slow/0", kept)
        assert Client(stuck).answer().status == 504
        time.sleep(30.0 * module.PASS_SHARE + 0.3)
        ours.workers[1].credit += 1000
        for sock in (kept, fresh):
            assert Client(sock).answer().status == 200
    assert ours.wait_ended() == 0
    ours.wait_for(lambda: ours.row(2).success == 2)


def test_waiting_for_a_client_is_no_slowness(front: Fronts) -> None:
    ours = front(application, slow_request=LIMIT, request_timeout=LIMIT)
    with ours.connect() as sock:
        sock.sendall(f"POST /body HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 10\r\n\r\n".encode())
        for byte in b"0123456789":
            time.sleep(0.1)
            sock.sendall(bytes([byte]))
        assert Client(sock).answer().status == 200
    with ours.connect() as sock:
        sock.sendall(f"GET /large HTTP/1.0\r\nHost: {HOST}\r\n\r\n".encode())
        time.sleep(3 * LIMIT)
        count = 0
        while piece := sock.recv(1 << 20):
            count += len(piece)
        assert count > LARGE * 65536
    assert "slow request" not in ours.log()
    assert not ours.workers[0].said[1:]


def test_head_gets_504_without_a_body(front: Fronts) -> None:
    ours = front(application, request_timeout=LIMIT)
    with ours.connect() as sock:
        sock.sendall(f"HEAD /sleeps HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        client = Client(sock)
        assert client.answer("HEAD").status == 504
        assert client.at_end()


def test_a_body_that_nobody_reads_does_not_reset_the_answer(front: Fronts) -> None:
    ours = front(application, request_timeout=LIMIT)
    with ours.connect() as sock:
        sock.sendall(f"POST /sleeps HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 500000\r\n\r\n".encode())
        sock.sendall(b"x" * 300_000)
        client = Client(sock)
        assert client.answer().status == 504
        sock.sendall(b"x" * 100_000)
        assert client.at_end()


def test_who_comes_back_after_all_reaches_nobody(front: Fronts) -> None:
    """The thread answers when its client has got 504: no second answer on that connection, nor on another one's."""
    ours = front(application, max_threads=2, slow_request=0, request_timeout=LIMIT)
    with ours.ask("/slow/0.8") as sock:
        client = Client(sock)
        assert client.answer().status == 504
        assert client.at_end()
        assert client.data == b""
    assert ours.wait_ended() == 0
    assert "worker ended by an error" not in ours.log()


@pytest.mark.parametrize("limit", [0.3])
def test_at_the_very_moment_there_is_one_answer(front: Fronts, limit: float) -> None:
    """Requests that end when their time is over: each gets its own answer, or 504, whole, or the connection's end."""
    seen = set()
    for delta in (-0.04, -0.02, -0.01, 0.0, 0.01, 0.03, 0.05, 0.06):
        ours = front(application, max_threads=8, slow_request=0, request_timeout=limit)
        socks = [ours.ask(f"/slow/{limit + delta + 0.003 * number}") for number in range(8)]
        for sock in socks:
            data = b""
            sock.settimeout(5)
            while b"\r\n\r\n" not in data and (piece := sock.recv(65536)):
                data += piece
            assert data.count(b"HTTP/1.1") <= 1
            seen.add(data[9:12])
            assert data == b"" or data.endswith((b"done", b"504 Gateway Timeout\n")), data
    assert b"504" in seen
    assert b"200" in seen


def test_what_a_client_puts_into_its_path_makes_no_long_line(front: Fronts) -> None:
    ours = front(application, slow_request=LIMIT, request_timeout=0)
    with ours.ask("/slow/0.8?" + "y" * 3000) as sock:
        assert Client(sock).answer().status == 200
    (entry,) = entries(ours.log(), "slow request")
    assert "?yyy" in entry
    assert max(map(len, entry.splitlines())) < 1000


def test_many_slow_requests_fill_no_log(front: Fronts) -> None:
    def deep(environ: dict[str, Any], start_response: StartResponse, depth: int = 300) -> Iterable[bytes]:
        if depth:
            return deep(environ, start_response, depth - 1)
        return application(environ, start_response)

    ours = front(deep, max_threads=40, slow_request=LIMIT, request_timeout=0)
    socks = [ours.ask("/slow/1.2") for _ in range(40)]
    for sock in socks:
        assert Client(sock).answer().status == 200
        sock.close()
    ours.wait_for(lambda: ours.row().slow == 40)
    found = entries(ours.log(), "slow request")
    assert len(found) == 10
    assert max(map(len, found)) < 12_000
    assert "..." in found[-1]


def test_without_a_limit_nothing_is_slow(front: Fronts) -> None:
    ours = front(application, slow_request=0, request_timeout=0)
    with ours.ask("/slow/0.8") as sock:
        assert Client(sock).answer().status == 200
    assert "warning" not in ours.log()
    assert ours.row().slow == 0


# --- applications that do every wrong thing ---------------------------------------------------------------------------


def hostile(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    match environ["PATH_INFO"]:
        case "/exit":
            sys.exit(3)
        case "/thread-exit":
            _thread.exit()
        case "/exit-in-a-thread":
            thread = threading.Thread(target=sys.exit)
            thread.start()
            thread.join()
        case "/interrupt":
            raise KeyboardInterrupt
        case "/fork-and-return":
            os.fork()
        case "/fork-and-exit":
            if os.fork() == 0:
                sys.exit(0)
        case "/fork-and-stay":
            pid = os.fork()
            if pid == 0:
                time.sleep(0.5)
                os._exit(0)
        case "/closerange":
            os.closerange(3, 10_000)
        case "/kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "/term":
            os.kill(os.getpid(), signal.SIGTERM)
        case "/term-twice":
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1000)
        case "/usr1":
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(1000)
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("path", ["/exit", "/thread-exit", "/exit-in-a-thread", "/interrupt"])
def test_ends_of_threads_end_no_worker(front: Fronts, path: str, threads: int) -> None:
    ours = front(hostile, max_threads=threads)
    for _ in range(3):
        with ours.ask(path) as sock:
            assert Client(sock).answer().status == (200 if path == "/exit-in-a-thread" else 500)
    with ours.ask("/") as sock:
        assert Client(sock).answer().body == str(ours.workers[0].pid).encode()


@pytest.mark.parametrize("path", ["/fork-and-return", "/fork-and-exit", "/fork-and-stay"])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_child_that_the_application_forks_is_no_worker(front: Fronts, path: str, threads: int) -> None:
    """One answer, from the worker; the child takes nothing of what comes later, and holds no connection open."""
    ours = front(hostile, max_threads=threads)
    pid = str(ours.workers[0].pid).encode()
    with ours.ask("/") as idle, ours.ask("/") as closing:
        for sock in (idle, closing):
            assert Client(sock).answer().body == pid
        with ours.ask(path) as sock:
            client = Client(sock)
            assert client.answer().body == pid
            for _ in range(20):
                ours.ask("/", sock)
                assert client.answer().body == pid
        closing.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        client = Client(closing)
        assert client.answer().body == pid
        assert client.at_end()
        for _ in range(20):
            ours.ask("/", idle)
            assert Client(idle).answer().body == pid
    assert "worker ended by an error" not in ours.log()


@pytest.mark.parametrize("threads", [1, 3])
def test_who_asks_a_worker_to_leave_has_his_answer_first(front: Fronts, threads: int) -> None:
    ours = front(hostile, max_threads=threads)
    with ours.ask("/term") as sock:
        assert Client(sock).answer().status == 200
    assert ours.wait_ended() == 0


@pytest.mark.parametrize("path", ["/closerange", "/kill", "/term-twice", "/usr1"])
def test_who_destroys_a_worker_ends_it_and_nobody_hangs(front: Fronts, path: str) -> None:
    ours = front(hostile, max_threads=2)
    with ours.ask(path) as sock:
        assert ours.wait_ended() != 0
        sock.settimeout(5)
        try:
            sock.recv(1000)
        except ConnectionResetError:
            pass
