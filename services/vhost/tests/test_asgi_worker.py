"""ASGI in real workers, with umaster and supervisor played (front.py): room, siblings, retirement, a stuck loop."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from pyttpd.config.kinds import AsgiOptions
from pyttpd.wire import messages as m

from .conftest import HOST, Client
from .front import Front, Fronts
from .test_asgi_websockets import echo

OPTIONS = AsgiOptions("app:app")


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Say which process answers; /block/SECONDS stops the loop, /sleep/SECONDS doesn't; /fork forks; else echo."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        os.write(1, b"bye: %b\n" % message["type"].encode())
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["type"] == "websocket":
        await echo(scope, receive, send)
        return
    _, word, *arguments = scope["path"].split("/")
    if word == "block":
        time.sleep(float(arguments[0]))  # noqa: ASYNC251 - on purpose
    elif word == "sleep":
        await asyncio.sleep(float(arguments[0]))
    elif word == "fork":
        pid = os.fork()
        if not pid:
            return  # back to where it came from, and the end
        os.waitpid(pid, 0)  # noqa: ASYNC222 - it ends at once
    body = str(os.getpid()).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def broken(scope: Any, receive: Any, send: Any) -> None:
    """Don't start."""
    await send({"type": "lifespan.startup.failed", "message": "no database today"})


def answer(sock: socket.socket) -> int:
    got = Client(sock).answer()
    assert got.status == 200
    return int(got.body)


def test_requests_connections_and_bytes_are_counted(front: Fronts) -> None:
    ours = front(application, asgi=OPTIONS)
    socks = [ours.ask() for _ in range(20)]
    for sock in socks:
        assert answer(sock) == ours.workers[0].pid
        answer(ours.ask("/", sock))
    ours.wait_for(lambda: ours.row().requests == 40)
    ours.wait_for(lambda: ours.row().connections == 20)
    # idle for a moment, they are parked where those of all kinds are
    ours.wait_for(lambda: ours.row().parked == 20)
    row = ours.row()
    assert (row.success, row.errors, row.threads, row.busy_threads) == (40, 0, 2, 0)
    assert row.bytes_sent > 40 * 60
    for sock in socks:
        answer(ours.ask("/", sock))
        sock.close()
    ours.wait_for(lambda: ours.row().connections == 0)
    assert ours.row().requests == 60


def test_retirement(front: Fronts) -> None:
    """WebSockets get 1012, a request is finished, idle connections go to a sibling, the application is told."""
    ours = front(application, asgi=OPTIONS, workers=2)
    ours.wait_for(lambda: all(worker.credit for worker in ours.workers))
    first = ours.workers[0].pid
    websockets: list[socket.socket] = []
    idle: list[socket.socket] = []
    slow = None
    while not (websockets and idle and slow):
        sock = ours.ask()
        mine = answer(sock) == first
        if mine and not websockets:
            websockets.append(sock)
        elif mine and not idle:
            idle.append(sock)
        elif mine:
            slow = ours.ask("/sleep/1.5", sock)
    with connect(f"ws://{HOST}/", sock=websockets[0], ping_interval=None) as websocket:
        websocket.send("x")
        assert websocket.recv(10) == "x"
        ours.tell(m.Goodbye("retire"))
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    ours.wait_for(lambda: ours.row(1).passed > 0)
    assert answer(ours.ask("/", idle[0])) == ours.workers[1].pid
    assert answer(slow) == first
    assert ours.wait_ended(1) == 0
    assert "bye: lifespan.shutdown" in ours.log()


def test_a_loop_that_stands_still_holds_up_nobody_who_can_go_elsewhere(front: Fronts) -> None:
    ours = front(application, asgi=OPTIONS, workers=2, request_timeout=2.0, slow_request=0.5)
    ours.wait_for(lambda: all(worker.credit for worker in ours.workers))
    pids = [worker.pid for worker in ours.workers]
    parked: dict[int, list[socket.socket]] = {pid: [] for pid in pids}
    while min(map(len, parked.values())) < 2:
        sock = ours.ask()
        parked[answer(sock)].append(sock)
    ours.wait_for(lambda: ours.row(1).parked + ours.row(2).parked == sum(map(len, parked.values())))
    stuck = ours.ask("/block/60", parked[pids[0]][0])
    ours.wait_for(lambda: ours.row(1).busy_ms > 200)
    # a kept connection of the worker that hangs, and a new one
    assert answer(ours.ask("/", parked[pids[0]][1])) == pids[1]
    ours.wait_for(lambda: "the event loop stands still" in ours.log())
    assert "in application" in ours.log()
    assert Client(stuck).answer().status == 504
    ours.wait_for(lambda: m.Goodbye("request-timeout") in ours.workers[0].said)
    assert ours.wait_ended(1) == 0
    assert answer(ours.ask()) == pids[1]


def test_a_worker_with_an_open_websocket_is_at_work(front: Fronts) -> None:
    """So that no pool takes it for idle, and retires it."""
    ours = front(application, asgi=OPTIONS)
    with connect(f"ws://{HOST}/", sock=ours.connect(), ping_interval=None) as websocket:
        websocket.send("x")
        assert websocket.recv(10) == "x"
        ours.wait_for(lambda: (ours.row().busy_threads, ours.row().connections) == (1, 1))
    ours.wait_for(lambda: (ours.row().busy_threads, ours.row().connections) == (0, 0))


def test_room_is_what_umaster_is_told(front: Fronts) -> None:
    """With room for 4, no more than that is taken at a time, and what follows is with who has room."""
    ours = front(application, asgi=AsgiOptions("app:app", max_concurrency=4), workers=2)
    ours.wait_for(lambda: [worker.credit for worker in ours.workers] == [4, 4])
    socks = [ours.ask("/sleep/1") for _ in range(8)]
    found = [answer(sock) for sock in socks]
    assert sorted(map(found.count, set(found))) == [4, 4]


def test_a_child_that_the_application_forks_has_no_connection(front: Fronts) -> None:
    ours = front(application, asgi=OPTIONS)
    sock = ours.ask("/fork")
    other = ours.ask("/sleep/0.2")
    assert answer(sock) == ours.workers[0].pid
    assert answer(other) == ours.workers[0].pid
    assert answer(ours.ask("/", sock)) == ours.workers[0].pid
    sock.close()
    other.close()
    ours.wait_for(lambda: ours.row().connections == 0)


def test_a_startup_that_fails_ends_the_worker(front: Fronts) -> None:
    ours: Front = front(broken, asgi=OPTIONS)
    assert ours.wait_ended(1) == 1
