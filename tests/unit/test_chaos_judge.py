"""The chaos test's judge: what it excuses, and what it doesn't. With real connections in real processes."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos import sums
from chaos.clients import Failure
from chaos.holdings import Holdings, wait_stopped
from chaos.schedule import Action, Deed
from chaos.stage import HELD, LATE, PASSING, Done, excuse

LISTENER, UMASTER, WORKER, SIBLING = "l:http", "pyttpd-umaster", "w1:wsgi", "w2:wsgi"


class Cast:
    """Processes that hold connections, each under a name, until the test is over."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.clients: list[socket.socket] = []
        self.served: list[socket.socket] = []
        self.names: dict[int, str] = {}

    def connect(self) -> int:
        """Make a connection and return its client's port. It is number len(served) - 1."""
        self.clients.append(socket.create_connection(("127.0.0.1", self.port)))
        self.served.append(self.server.accept()[0])
        return int(self.clients[-1].getsockname()[1])

    def play(self, name: str, *, has: tuple[int, ...] = (), polls: tuple[int, ...] = ()) -> int:
        """Start a process that has these connections, and waits for some of them in epoll."""
        told, tell = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            try:
                epoll = select.epoll()
                for number, sock in enumerate(self.served):
                    if number not in (*has, *polls):
                        sock.close()
                    elif number in polls:
                        epoll.register(sock.fileno(), select.EPOLLIN)
                tell.send(b"!")
                signal.pause()
            finally:
                os._exit(0)
        self.names[pid] = name
        tell.close()
        with told:
            assert told.recv(1)
        return pid

    def look(self) -> Holdings:
        for sock in self.served:
            sock.close()
        self.served.clear()
        return Holdings.look(self.names, self.port)

    def end(self) -> None:
        for pid in self.names:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for sock in (self.server, *self.clients, *self.served):
            sock.close()


@pytest.fixture
def cast() -> Iterator[Cast]:
    one = Cast()
    try:
        yield one
    finally:
        one.end()


def test_what_a_listener_alone_has_is_lost_with_it(cast: Cast) -> None:
    alone, offered = cast.connect(), cast.connect()
    listener = cast.play(LISTENER, has=(0, 1))
    umaster = cast.play(UMASTER, has=(1,))
    look = cast.look()
    assert (set(look.lost_with([listener])[0].values()), look.lost_with([umaster])[0]) == ({alone}, {})
    assert set(look.lost_with([listener, umaster])[0].values()) == {alone, offered}


def test_what_a_worker_has_taken_is_lost_with_it_whoever_has_a_copy(cast: Cast) -> None:
    port = cast.connect()
    cast.play(LISTENER, has=(0,))
    worker = cast.play(WORKER, polls=(0,))
    found, passing = cast.look().lost_with([worker])
    assert set(found.values()) == {port}
    assert not passing


def test_what_a_worker_has_offered_is_its_siblings_once_that_waits_for_it(cast: Cast) -> None:
    cast.connect()
    worker = cast.play(WORKER, has=(0,))
    cast.play(SIBLING, polls=(0,))
    assert cast.look().lost_with([worker]) == ({}, set())


def test_what_two_workers_have_and_neither_waits_for_is_passing(cast: Cast) -> None:
    port = cast.connect()
    worker = cast.play(WORKER, has=(0,))
    cast.play(SIBLING, has=(0,))
    found, passing = cast.look().lost_with([worker])
    assert set(found.values()) == {port}
    assert passing == found.keys()


def test_what_was_in_flight_turns_up_at_somebody_else(cast: Cast) -> None:
    cast.connect()
    cast.connect()
    listener = cast.play(LISTENER, has=(0, 1))
    look = Holdings.look(cast.names, cast.port)
    found, _ = look.lost_with([listener])
    cast.play(UMASTER, has=(1,))
    rescued = Holdings.look(cast.names, cast.port).rescued(found, [listener], [listener])
    assert len(found) == 2
    assert [found[one] for one in rescued] == [cast.clients[1].getsockname()[1]]


def test_who_is_not_accepted_yet_is_nobodys(cast: Cast) -> None:
    with socket.create_connection(("127.0.0.1", cast.port)) as waiting:
        look = Holdings.look(cast.names, cast.port)
        assert look.unaccepted == {waiting.getsockname()[1]}


def test_a_stopped_process_is_waited_for(cast: Cast) -> None:
    pid = cast.play(WORKER)
    os.kill(pid, signal.SIGSTOP)
    wait_stopped([pid])
    with open(f"/proc/{pid}/stat") as stat:
        assert stat.read().rpartition(")")[2].split()[0] == "T"


# ---- what is excused ----

LOOK = Holdings(
    10.0,
    {1: LISTENER, 2: WORKER},
    {1: frozenset(), 2: frozenset({77, 78})},
    {1: frozenset(), 2: frozenset()},
    {77: 1, 78: 2},
    frozenset(),
)


def failure(
    what: str = "reset", *, port: int = 1, opened: float = 9.0, at: float = 10.2, **more: object
) -> Failure:
    fields = {"kind": "idle", "host": "wsgi.localhost", "alive": 9.5, "served": 1, "detail": ""} | more
    return Failure(what=what, port=port, opened=opened, at=at, **fields)  # type: ignore[arg-type]


def done(action: Action = Action.KILL, target: str = "worker", **more: object) -> Done:
    fields = {"victims": [2], "held": {77: 1}, "look": LOOK, "until": 10.1, "tenant": "wsgi"} | more
    return Done(Deed(action, target, 0), 10.0, 2, **fields)  # type: ignore[arg-type]


CASES: dict[str, tuple[Done, Failure, str]] = {
    "held": (done(), failure(), HELD),
    "held, idle": (done(), failure("closed-idle"), HELD),
    "passing": (done(passing={77}), failure(), PASSING),
    "another one's": (done(), failure(port=2), ""),
    "a wrong byte": (done(), failure("wrong"), ""),
    "an error": (done(), failure("5xx"), ""),
    "silence": (done(), failure("timeout"), ""),
    "refused": (done(), failure("refused"), ""),
    "before it": (done(), failure(at=9.9), ""),
    "the same port, later": (done(), failure(opened=10.05), ""),
    "answered since": (done(), failure(alive=10.15), ""),
    "a graceful end": (done(Action.TERM, look=None, victims=[], held={}), failure(), ""),
    "a listener's, named": (done(target="listener"), failure(served=1), ""),
    "a listener's, unnamed": (done(target="listener"), failure(served=0, alive=0.0), HELD),
    "a keeper's, since the last look": (
        done(Action.STOP, "keeper supervisor"),
        failure(port=2, opened=10.05, alive=0.0, served=0),
        LATE,
    ),
    "a keeper's, another tenant": (
        done(Action.STOP, "keeper supervisor"),
        failure(port=2, opened=10.05, alive=0.0, served=0, host="static.localhost"),
        "",
    ),
    "a keeper's, after its end": (
        done(Action.STOP, "keeper supervisor"),
        failure(port=2, opened=10.15, alive=0.0, served=0),
        "",
    ),
    "a keeper's, known at the last look": (
        done(Action.STOP, "keeper supervisor"),
        failure(port=2, opened=9.0),
        "",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_excuses(case: str) -> None:
    one, what, expected = CASES[case]
    assert excuse(one, what) == expected


# ---- several runs ----


def run(**more: object) -> dict[str, object]:
    row = {"action": "kill -9", "times": 150, "held": 1, "waits": [0.5], HELD: 1, PASSING: 0, LATE: 0}
    seen = {"answered": 10, "connections": 2, "longest": 1.5, "reset": 1}
    return {"deeds": {"kill -9 worker": row}, "clients": {"idle": seen}, "retired": 90, "lost": [], **more}


def test_runs_are_added_up() -> None:
    total = sums.add([run(), run()])
    assert total["deeds"]["kill -9 worker"]["times"] == 300
    assert total["deeds"]["kill -9 worker"]["waits"] == [0.5, 0.5]
    assert total["clients"]["idle"] == {"answered": 20, "connections": 4, "longest": 1.5, "reset": 2}
    assert "180 of retirement" in sums.short(total)
    assert not any("kill" in text for text in sums.short(total))


def test_a_violation_in_any_run_is_one_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"name": "plain-1", "product": "x", "seconds": 1.0, "events": 1, "pairs": 0}
    file = tmp_path / "one.json"
    file.write_text(json.dumps(run(violations=["reset of idle"], **more)))
    assert sums.main([str(file)]) == 1
    assert "VIOLATION plain-1: reset of idle" in capsys.readouterr().out
