"""A worker's threads: how many there are when, whom they serve, and what they never get wrong."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from pyttpd.wire import messages as m

from pyttpd_vhost import worker
from pyttpd_vhost.audit import Audit
from pyttpd_vhost.http.connection import Connection
from pyttpd_vhost.site import Site

from .conftest import HOST, Client
from .front import Fronts

StartResponse = Callable[..., Any]

#: What keeps a thread busy in these tests (s).
SLEEP = 0.1
#: Requests in a crowd, and what each client asks for in turn.
CLIENTS, EACH = 16, 30


def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """/sleep/SECONDS sleeps; /for-ever never comes back; /echo answers with the query, the others with the thread."""
    _, word, *arguments = environ["PATH_INFO"].split("/")
    body = threading.current_thread().name.encode()
    if word == "sleep":
        time.sleep(float(arguments[0]))
    elif word == "for-ever":
        threading.Event().wait()
    elif word == "echo":
        time.sleep(float(arguments[0]))
        body = environ["QUERY_STRING"].encode() + environ["wsgi.input"].read()
    elif word == "multithread":
        body = str(environ["wsgi.multithread"]).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def answer(sock: socket.socket) -> str:
    got = Client(sock).answer()
    assert got.status == 200
    return got.body.decode()


def answers(socks: Iterable[socket.socket]) -> list[str]:
    """Read an answer of each, and close."""
    found = []
    for sock in socks:
        with sock:
            found.append(answer(sock))
    return found


@pytest.mark.parametrize("kept", [False, True], ids=["new connections", "kept connections"])
def test_64_requests_that_sleep_take_about_as_long_as_one(front: Fronts, kept: bool) -> None:
    ours = front(application, max_threads=64)
    socks: list[socket.socket | None] = [None] * 64
    if kept:
        socks = [ours.ask() for _ in range(64)]
        for sock in socks:
            assert sock is not None
            answer(sock)
    began = time.monotonic()
    names = answers([ours.ask(f"/sleep/{SLEEP}", sock) for sock in socks])
    took = time.monotonic() - began
    assert len(set(names)) > 16
    assert took < 64 * SLEEP / 8  # one after the other: eight times as long


def test_threads_that_have_nothing_to_do_end_and_the_main_one_goes_on_alone(front: Fronts) -> None:
    ours = front(application, max_threads=8, thread_idle=0.1)
    socks = [ours.ask(f"/sleep/{SLEEP}") for _ in range(8)]
    ours.wait_for(lambda: ours.row().busy_threads > 4)
    for sock in socks:
        answer(sock)
    for _ in range(20):  # quick ones end the crowd
        answer(ours.ask("/", socks[0]))
    ours.wait_for(lambda: ours.row().threads == 1)
    assert {answer(ours.ask("/", sock)) for sock in socks} == {"MainThread"}
    ours.wait_for(lambda: ours.row().success == 8 + 20 + 8)  # what threads have counted outlives them
    answers([ours.ask(f"/sleep/{SLEEP}") for _ in range(8)])  # and they come again
    ours.wait_for(lambda: ours.row().threads > 1)


def test_threads_end_even_if_nobody_asks_for_anything_any_more(front: Fronts) -> None:
    ours = front(application, max_threads=8, thread_idle=0.1)
    answers([ours.ask(f"/sleep/{SLEEP}") for _ in range(8)])
    ours.wait_for(lambda: ours.row().threads == 1)
    assert answers([ours.ask()]) == ["MainThread"]


def test_with_one_thread_there_is_no_other_however_long_requests_wait(front: Fronts) -> None:
    ours = front(application)
    names = answers([ours.ask(f"/sleep/{SLEEP}") for _ in range(4)])
    assert names == ["MainThread"] * 4
    assert answers([ours.ask("/multithread")]) == ["False"]


def test_no_thread_is_added_for_requests_that_wait_less_than_thread_wait(front: Fronts) -> None:
    ours = front(application, max_threads=8, thread_wait=30.0)
    assert answers([ours.ask(f"/sleep/{SLEEP}") for _ in range(4)]) == ["MainThread"] * 4
    assert ours.row().threads == 1


def test_no_thread_is_added_while_one_is_free(front: Fronts) -> None:
    ours = front(application, max_threads=8, thread_wait=0.2, thread_idle=60.0)
    answers([ours.ask("/sleep/1") for _ in range(3)])
    ours.wait_for(lambda: ours.row().threads > 1)
    threads = ours.row().threads
    assert threads <= 3
    for _ in range(3):
        answers([ours.ask(f"/sleep/{SLEEP}") for _ in range(threads)])
    assert answers([ours.ask("/multithread")]) == ["True"]
    ours.wait_for(lambda: ours.row().requests == 3 + 3 * threads + 1)
    assert ours.row().threads == threads


def test_one_that_is_stuck_for_ever_stops_nobody_else(front: Fronts) -> None:
    ours = front(application, max_threads=2, slow_request=0, request_timeout=0)
    with ours.ask("/for-ever"):
        for _ in range(3):
            with ours.ask() as sock:
                names = {answer(sock)} | {answer(ours.ask("/", sock)) for _ in range(50)}
                assert names == {"serving-1"}
        ours.wait_for(lambda: (ours.row().threads, ours.row().busy_threads) == (2, 1))


def test_a_busy_loop_stops_nobody_else(front: Fronts) -> None:
    def busy(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        while environ["PATH_INFO"] == "/loop":
            pass
        return application(environ, start_response)

    ours = front(busy, max_threads=2, slow_request=0, request_timeout=0)
    with ours.ask("/loop"):
        assert answers([ours.ask()]) == ["serving-1"]
        beats = ours.workers[0].beats
        ours.wait_for(lambda: ours.workers[0].beats > beats)


def test_crowds_mix_nothing_up(front: Fronts) -> None:
    """Bodies, pipelined requests and long heads of many clients at once, served by ever different threads."""
    ours = front(application, max_threads=6, thread_wait=0.001, thread_idle=0.1)
    wrong: list[object] = []

    def client(number: int) -> None:
        with ours.connect() as sock:
            reader = Client(sock)
            for turn in range(EACH):
                pause = 0.003 * (turn % 3)
                body = f"body {number} {turn}".encode() * (1 + 500 * (turn % 5 == 4))
                one = (
                    f"POST /echo/{pause}?first-{number}-{turn} HTTP/1.1\r\nHost: {HOST}\r\n"
                    f"X-Filler: {'x' * 40 * turn}\r\nContent-Length: {len(body)}\r\n\r\n"
                ).encode() + body
                two = f"GET /echo/0?second-{number}-{turn} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
                sock.sendall(one[: 50 + turn])
                sock.sendall(one[50 + turn :] + two)
                got = [reader.answer().body, reader.answer().body]
                expected = [f"first-{number}-{turn}".encode() + body, f"second-{number}-{turn}".encode()]
                if got != expected:
                    wrong.append((got, expected))

    clients = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert not wrong
    ours.wait_for(lambda: ours.row().success == ours.row().requests == 2 * CLIENTS * EACH)
    ours.wait_for(lambda: ours.row().threads == 1 or ours.row().busy_threads == 0)


def test_nothing_is_mixed_up_while_siblings_pass_connections_on(front: Fronts) -> None:
    """Kept connections, requests in pieces and several at a time, clients that leave: what is passed on is unread."""
    ours = front(application, workers=3, max_threads=3, thread_wait=0.01, slow_request=0, request_timeout=60)
    faults: list[BaseException] = []

    def client(seed: int) -> None:
        chance = random.Random(seed)
        sock = ours.connect()
        reader = Client(sock)
        for number in range(20):
            data, wanted = b"", []
            for part in range(chance.choice((1, 1, 3))):
                tag = f"{seed}-{number}-{part}"
                body = tag.encode() * chance.choice((0, 1, 3000))
                pause = chance.choice((0, 0, 0.01, 0.08))
                data += f"POST /echo/{pause}?{tag} HTTP/1.1\r\nHost: {HOST}\r\n".encode()
                data += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
                wanted.append(tag.encode() + body)
            cut = chance.randrange(len(data))
            sock.sendall(data[:cut])
            time.sleep(chance.choice((0, 0, 0.03)))
            sock.sendall(data[cut:])
            if chance.random() < 0.9:
                assert [reader.answer().body for _ in wanted] == wanted
            else:
                sock.close()  # with answers on their way
                sock = ours.connect()
                reader = Client(sock)

    def watched(seed: int) -> None:
        try:
            client(seed)
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=watched, args=(seed,)) for seed in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    ours.wait_for(lambda: sum(ours.row(number).passed for number in (1, 2, 3)) > 0)


def test_clients_that_close_or_send_while_they_are_served_cost_no_turns(front: Fronts) -> None:
    """What is served stays in epoll: the others must not be woken by it again and again."""
    ours = front(application, max_threads=3, slow_request=0, request_timeout=0)
    with ours.ask("/for-ever") as left, ours.ask("/for-ever") as talks:
        ours.wait_for(lambda: ours.row().busy_threads == 2)
        left.close()
        talks.sendall(b"GET / HTTP/1.1\r\n" * 50)
        with ours.ask() as sock:
            assert answer(sock) == "serving-2"
            used = ours.cpu_seconds()
            time.sleep(0.3)
            assert ours.cpu_seconds() - used < 0.15  # one that is woken all the time would use all of it
            assert answer(ours.ask("/", sock)) == "serving-2"


def test_one_thread_goes_on_alone_while_another_is_stuck(front: Fronts) -> None:
    """Whichever it is that is stuck; and what the stuck one's client does costs no turns then, either."""
    ours = front(application, max_threads=4, slow_request=0, request_timeout=0, thread_idle=0.1)
    with ours.ask("/sleep/0.5") as first, ours.ask("/for-ever") as left, ours.ask() as sock:
        answer(first)
        answer(sock)
        for _ in range(40):  # quick ones
            answer(ours.ask("/", sock))
        ours.wait_for(lambda: ours.row().threads == 2)
        assert answer(ours.ask("/", sock)) == "MainThread"
        left.sendall(b"more")
        left.close()
        used = ours.cpu_seconds()
        time.sleep(0.3)
        assert ours.cpu_seconds() - used < 0.15
        assert answer(ours.ask("/", sock)) == "MainThread"


def test_when_all_threads_are_busy_connections_go_to_a_free_sibling(front: Fronts) -> None:
    """A parked connection that becomes readable, and one that was given to the worker meanwhile."""
    ours = front(application, workers=2, max_threads=2, slow_request=0, request_timeout=0)
    ours.wait_for(lambda: all(worker.credit for worker in ours.workers))
    ours.workers[1].credit -= 1000  # all go to the first
    parked = [ours.ask() for _ in range(4)]
    for sock in parked:
        answer(sock)
    stuck = [ours.ask("/for-ever") for _ in range(2)]
    ours.wait_for(lambda: ours.row().busy_threads == 2)
    ours.workers[1].credit += 1000
    fresh = ours.ask()
    for sock in parked:
        ours.ask("/", sock)
    for sock in (*parked, fresh):
        answer(sock)
        sock.close()
    ours.wait_for(lambda: ours.row(2).requests == 5)
    ours.wait_for(lambda: ours.row(1).passed >= 4)
    assert ours.row(1).busy_threads == len(stuck)


def test_credit_says_how_many_threads_are_free(front: Fronts) -> None:
    ours = front(application, max_threads=33, slow_request=0, request_timeout=0)
    ours.wait_for(lambda: ours.workers[0].credit == 8 + 32 + worker.MORE_CREDIT)
    with ours.ask("/for-ever"):
        ours.wait_for(lambda: ours.row().busy_threads == 1)
        answers([ours.ask() for _ in range(16)])
        ours.wait_for(lambda: 8 + 32 - 4 - 1 <= ours.workers[0].credit < 8 + 32)
    one = front(application, max_threads=200)
    one.wait_for(lambda: one.workers[0].credit == 64)  # more umaster doesn't take


def test_a_quick_worker_has_more_credit_until_a_request_is_slow(
    front: Fronts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/slow":
            worker.QUICK = 0.0  # in the worker's process: from now on nothing is quick
        return application(environ, start_response)

    monkeypatch.setattr(worker, "QUICK", 1000.0)
    ours = front(app, slow_request=0, request_timeout=0)
    played = ours.workers[0]
    ours.wait_for(lambda: played.credit == worker.CREDIT + worker.MORE_CREDIT)
    for _ in range(3 * worker.CREDIT):
        answers([ours.ask()])
        ours.wait_for(lambda: played.credit > worker.CREDIT + worker.MORE_CREDIT - worker.CREDIT_PORTION)
    answers([ours.ask("/slow")])
    for _ in range(worker.MORE_CREDIT):
        answers([ours.ask()])
    # What is over is spent, and then it gives back no more than it gave at first.
    for _ in range(3 * worker.CREDIT):
        answers([ours.ask()])
        ours.wait_for(lambda: worker.CREDIT - worker.CREDIT_PORTION < played.credit <= worker.CREDIT)


def test_a_crowd_has_no_more_credit_than_threads(front: Fronts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "QUICK", 1000.0)
    ours = front(application, max_threads=2, slow_request=0, request_timeout=0)
    played = ours.workers[0]
    ours.wait_for(lambda: played.credit == worker.CREDIT + 1 + worker.MORE_CREDIT)
    with ours.ask("/for-ever"):
        answers([ours.ask() for _ in range(worker.MORE_CREDIT)])  # too few for one to serve alone again
        ours.wait_for(lambda: played.credit <= worker.CREDIT)
    one = front(application, max_threads=200)
    answers([one.ask()])
    one.wait_for(lambda: 64 - worker.CREDIT_PORTION < one.workers[0].credit <= 64)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_worker_that_retires_finishes_what_its_threads_have(front: Fronts, threads: int) -> None:
    ours = front(application, max_threads=threads)
    socks = [ours.ask() for _ in range(threads)]
    for sock in socks:
        answer(sock)
        ours.ask("/sleep/0.3", sock)
    ours.wait_for(lambda: ours.row().busy_threads == threads)
    ours.tell(m.Goodbye("stop"))
    for sock in socks:
        with sock:
            client = Client(sock)
            assert client.answer().status == 200
            assert client.at_end()
    assert ours.wait_ended() == 0
    assert "error" not in ours.log()


def test_a_worker_that_leaves_serves_what_it_was_given_before_anybody_knew(front: Fronts) -> None:
    """It was chosen before umaster heard of it: that lies in its channel, and is offered to nobody else."""
    ours = front(application)
    worker = ours.workers[0]
    ours.wait_for(lambda: worker.credit)
    os.kill(worker.pid, signal.SIGSTOP)
    ours.tell(m.Goodbye("replaced"))
    socks = [ours.ask() for _ in range(4)]
    ours.wait_for(lambda: len(worker.given) == len(socks))
    os.kill(worker.pid, signal.SIGCONT)
    answers(socks)
    assert ours.wait_ended() == 0
    assert worker.taken == len(socks)


def test_an_error_of_ours_in_any_thread_ends_the_worker(
    front: Fronts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a state that nobody knows it must not go on; and it says what it was."""

    class Odd(BaseException):
        def __str__(self) -> str:
            raise ValueError

    def broken(self: Connection, site: Site) -> None:
        raise Odd

    monkeypatch.setattr(Connection, "move", broken)  # what only threads that were added do
    ours = front(application, max_threads=2)
    with ours.ask("/for-ever"), ours.ask():
        assert ours.wait_ended() == 1
    assert "worker ended by an error" in ours.log()
    monkeypatch.setattr(Audit, "look", lambda *_: 1 / 0)  # what only the watcher does
    other = front(application)
    with other.ask("/for-ever"):
        assert other.wait_ended() == 1
    assert "ZeroDivisionError" in other.log()
