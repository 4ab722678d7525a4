"""The listener under a hostile umaster: it keeps its clients, and answers for each that nobody else has."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Iterator

import pytest

from pyttpd.roles import Channel as Directory
from pyttpd.roles import Role as RoleName
from pyttpd.wire.messages import (
    VERSION,
    Credit,
    Dispatch,
    Drop,
    Goodbye,
    Hello,
    Message,
    Refuse,
    Retry,
    Route,
    Settled,
    Share,
    ShareOk,
    Taken,
    Welcome,
    encode,
)

from hostile.peers import (
    CLIENT,
    JUNK,
    JUNK_NAMES,
    LISTENER_UID,
    PATIENCE,
    End,
    Role,
    Stage,
    listener_share,
    wait_for,
)

pytestmark = pytest.mark.root

HEAD = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
WINDOW = 64


class Front:
    """A real listener with a public port; umaster, init and master are the test."""

    def __init__(self, stage: Stage, **changes: object) -> None:
        self.stage = stage
        for directory in (Directory.INIT, Directory.MASTER, Directory.ROUTE):
            stage.bind(directory)
        self.port = stage.opened(socket.create_server(("127.0.0.1", 0)))
        self.role = stage.start(RoleName.LISTENER, "http", LISTENER_UID)
        stage.give_sockets(self.role, "http", self.port)
        stage.give_shares(("share", listener_share(**changes)))

    def umaster(self, credits: int = WINDOW) -> End:
        return self.stage.accept(Directory.ROUTE, credits)

    def client(self, head: bytes = HEAD) -> socket.socket:
        client = self.stage.opened(socket.create_connection(self.port.getsockname(), PATIENCE))
        client.sendall(head)
        return client


@pytest.fixture(scope="module")
def house() -> Iterator[Front]:
    with Stage() as stage:
        front = Front(stage, handover_timeout=2.0)
        with stage.scene_of_peers():
            front.umaster()
            front.role.remember()
        yield front


@pytest.fixture
def front(house: Front) -> Iterator[Front]:
    with house.stage.scene_of_peers():
        yield house
    with house.stage.scene_of_peers():
        assert_serves(house)
    house.role.unharmed()


@pytest.fixture
def listener(front: Front) -> Role:
    return front.role


def assert_serves(front: Front) -> None:
    """The next umaster gets the next client, and what is left of others before it."""
    umaster = front.umaster()
    client = front.client(b"GET / HTTP/1.1\r\nHost: last.test\r\n\r\n")
    while (route := umaster.expect(Route)).authority != "last.test":
        umaster.send(Drop(route.id))
    with umaster.socket() as connection:
        umaster.send(Settled((route.id,)))
        connection.sendall(b"served")
        connection.shutdown(socket.SHUT_RDWR)
    assert received(client) == b"served"


def received(client: socket.socket) -> bytes:
    answer = b""
    while data := client.recv(65_536):
        answer += data
    return answer


@pytest.mark.parametrize(("data", "reason"), [case[1:] for case in JUNK], ids=JUNK_NAMES)
def test_junk(front: Front, listener: Role, data: bytes, reason: str) -> None:
    """The client that was on offer is offered to the next umaster, as nobody has read from it."""
    before = listener.faults("umaster", reason)
    umaster = front.umaster()
    client = front.client()
    umaster.expect(Route)
    assert umaster.raw(data).is_closed()
    umaster = front.umaster()
    route = umaster.expect(Route)
    umaster.send(Refuse(route.id, 503))
    assert received(client).startswith(b"HTTP/1.1 503 ")
    assert listener.faults("umaster", reason) == before + 1


WRONG: tuple[Message, ...] = (
    Hello("umaster", "umaster"),
    Welcome(1, 5),
    Share(1, "share", 2, b"\0" * 32),
    ShareOk(1),
    Route(1, CLIENT, "a.test"),
    Dispatch(1, CLIENT, "a.test"),
    Credit(1),
    Taken(1),
)


def test_what_umaster_may_not_say(front: Front, listener: Role) -> None:
    before = listener.faults("umaster", "not-permitted")
    with front.stage.connection() as one:
        for message in WRONG:
            data = encode(message, VERSION)
            assert front.umaster().raw(data, *([one.fileno()] if data[2] else [])).is_closed()
    assert listener.faults("umaster", "not-permitted") == before + len(WRONG)


def test_descriptors_where_none_belong(front: Front, listener: Role) -> None:
    before = listener.faults("umaster", "descriptors")
    with front.stage.connection() as one:
        for count in (1, 2, 253):
            assert front.umaster().raw(encode(Goodbye("x")), *[one.fileno()] * count).is_closed()
    assert listener.faults("umaster", "descriptors") == before + 3


@pytest.mark.parametrize("forged", [Settled((999_999,)), Refuse(999_999, 503), Retry(999_999), Drop(999_999)])
def test_forged_ids(front: Front, listener: Role, forged: Message) -> None:
    """Nobody's connection is closed or answered for a number that umaster has made up."""
    before = listener.faults("umaster", "forged-id")
    umaster = front.umaster()
    client = front.client()
    umaster.expect(Route)
    assert umaster.send(forged).is_closed()
    umaster = front.umaster()
    umaster.send(Refuse(umaster.expect(Route).id, 503))
    assert received(client).startswith(b"HTTP/1.1 503 ")
    assert listener.faults("umaster", "forged-id") == before + 1


def test_settled_twice(front: Front, listener: Role) -> None:
    """The second one is about a connection that the listener no longer has."""
    umaster = front.umaster()
    front.client()
    id_ = umaster.expect(Route).id
    assert umaster.send(Settled((id_,))).send(Settled((id_,))).is_closed()


def test_settled_for_one_and_for_nobody(front: Front) -> None:
    """What was right before the wrong id in a batch still holds."""
    umaster = front.umaster()
    client = front.client()
    route = umaster.expect(Route)
    with umaster.socket() as connection:
        assert umaster.send(Settled((route.id, 999_999))).is_closed()
        connection.sendall(b"mine")
        connection.shutdown(socket.SHUT_RDWR)
    assert received(client) == b"mine"


def test_a_version_that_we_do_not_speak(front: Front, listener: Role) -> None:
    before = listener.faults("umaster", "bad-version")
    end = front.stage.keep(End(front.stage.accept_raw(Directory.ROUTE)))
    end.expect(Hello)
    assert end.send(Welcome(9, WINDOW)).is_closed()
    assert listener.faults("umaster", "bad-version") == before + 1


def test_no_credit(front: Front, listener: Role) -> None:
    """An umaster that lets nothing in is as good as none: 503 in time."""
    front.umaster(credits=0)
    assert received(front.client()).startswith(b"HTTP/1.1 503 ")


def test_a_window_is_kept(front: Front) -> None:
    umaster = front.umaster(credits=3)
    clients = [front.client() for _ in range(5)]
    routes = [umaster.expect(Route) for _ in range(3)]
    assert umaster.quiet(0.2)
    for route in routes[:2]:
        umaster.send(Refuse(route.id, 421))
    more = [umaster.expect(Route) for _ in range(2)]
    for route in (routes[2], *more):
        umaster.send(Refuse(route.id, 421))
    for client in clients:
        assert received(client).startswith(b"HTTP/1.1 421 ")


def test_goodbye_and_silence(front: Front) -> None:
    """One that leaves gets nothing new; its successor does, and those that it had and didn't settle."""
    umaster = front.umaster()
    first = front.client()
    umaster.expect(Route)
    umaster.send(Goodbye("leaving")).wait_read()
    second = front.client()
    assert umaster.quiet(0.2)
    umaster.close()
    successor = front.umaster()
    ids = [successor.expect(Route).id, successor.expect(Route).id]
    for id_ in ids:
        successor.send(Refuse(id_, 503))
    assert received(first)[:13] == received(second)[:13] == b"HTTP/1.1 503 "


def test_umaster_dies_and_nobody_has_read(front: Front, listener: Role) -> None:
    before = listener.sample("reoffered_total")
    umaster = front.umaster()
    clients = [front.client() for _ in range(4)]
    for _ in clients:
        umaster.expect(Route)
    umaster.close()
    umaster = front.umaster()
    for _ in clients:
        umaster.send(Refuse(umaster.expect(Route).id, 503))
    for client in clients:
        assert received(client).startswith(b"HTTP/1.1 503 ")
    assert listener.sample("reoffered_total") == before + 4


def test_umaster_dies_and_somebody_has_read(front: Front, listener: Role) -> None:
    """Who has read answers, or nobody does: a second answer would be worse than none."""
    before = listener.sample("dropped_total")
    umaster = front.umaster()
    client = front.client()
    umaster.expect(Route)
    worker = umaster.socket()
    assert worker.recv(1) == b"G"
    umaster.close()
    wait_for(lambda: listener.sample("dropped_total") == before + 1)
    with worker:
        worker.sendall(b"still mine")
        worker.shutdown(socket.SHUT_RDWR)
    assert received(client) == b"still mine"
    assert front.umaster().quiet(0.1)


@pytest.mark.parametrize("read", [0, 1], ids=["unread", "read"])
def test_a_worker_dies(front: Front, listener: Role, read: int) -> None:
    """umaster says Retry; whether it may be offered again is for the listener to see."""
    umaster = front.umaster()
    client = front.client()
    route = umaster.expect(Route)
    with umaster.socket() as worker:
        assert len(worker.recv(read)) == read if read else True
    umaster.send(Retry(route.id))
    if read:
        with contextlib.suppress(ConnectionResetError):  # the rest of the head is nobody's
            assert received(client) == b""
        assert umaster.quiet(0.1)
    else:
        again = umaster.expect(Route)
        assert (again.id, again.authority) == (route.id, route.authority)
        umaster.send(Refuse(again.id, 503))
        assert received(client).startswith(b"HTTP/1.1 503 ")


def test_a_client_that_left_after_a_half_close(front: Front) -> None:
    """Its FIN counts as a byte for the kernel, but nobody has read it."""
    umaster = front.umaster()
    client = front.client()
    route = umaster.expect(Route)
    client.shutdown(socket.SHUT_WR)
    os.close(umaster.fds.pop())
    umaster.send(Retry(route.id))
    again = umaster.expect(Route)
    umaster.send(Refuse(again.id, 503))
    assert received(client).startswith(b"HTTP/1.1 503 ")


def test_a_connection_made_blocking_by_whom_it_was_given_to(front: Front) -> None:
    """A worker fills the connection and clears O_NONBLOCK, which it shares with the listener, which has to answer."""
    umaster = front.umaster()
    client = front.client()
    route = umaster.expect(Route)
    worker = umaster.socket()
    with worker:
        worker.setblocking(False)
        try:
            while True:
                worker.send(b"x" * 65_536)
        except BlockingIOError:
            pass
        fcntl.fcntl(worker, fcntl.F_SETFL, fcntl.fcntl(worker, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        umaster.send(Refuse(route.id, 503))
        assert_another_is_served(front, umaster)
    client.close()


def assert_another_is_served(front: Front, umaster: End) -> None:
    client = front.client()
    umaster.send(Refuse(umaster.expect(Route).id, 421))
    assert received(client).startswith(b"HTTP/1.1 421 ")


def test_a_flood_of_retries(front: Front) -> None:
    """It is offered as often as it comes back, and no other client waits for that."""
    umaster = front.umaster()
    front.client()
    for _ in range(300):
        umaster.send(Retry(umaster.expect(Route).id))
        os.close(umaster.fds.pop())
    umaster.send(Drop(umaster.expect(Route).id))
    assert_another_is_served(front, umaster)


def test_full_and_free_again() -> None:
    """At max_connections, below what there are descriptors for, clients wait in the kernel until others have gone."""
    with Stage() as stage:
        front = Front(stage, max_connections=4)
        umaster = front.umaster()
        for _ in range(3):
            clients = [front.client() for _ in range(8)]
            routes = [umaster.expect(Route) for _ in range(4)]
            assert umaster.quiet(0.1)
            for _ in range(8):
                umaster.send(Drop(routes.pop(0).id))
                os.close(umaster.fds.pop(0))
                if len(routes) < 4 and clients:
                    clients.pop()
                if not umaster.quiet(0.2):
                    routes.append(umaster.expect(Route))
            assert not routes


def test_the_end_of_one_that_made_room_is_not_its_successors() -> None:
    """One client's end comes at the same moment as the connection that takes its place and its descriptor's number."""
    with Stage() as stage:
        front = Front(stage, max_connections=1)
        umaster = front.umaster()
        front.role.remember()
        goes = front.client(b"")
        wait_for(lambda: len(front.role.fds()) > front.role.descriptors, "accepted")
        os.kill(front.role.pid, signal.SIGSTOP)
        front.client(b"")
        goes.shutdown(socket.SHUT_WR)
        stays = front.client(b"")
        os.kill(front.role.pid, signal.SIGCONT)
        assert goes.recv(1) == b""  # it has made room
        stays.sendall(HEAD)
        umaster.send(Drop(umaster.expect(Route).id))


def test_a_wrong_uid_that_binds_the_socket() -> None:
    with Stage() as stage:
        path = stage.folder / "route" / "sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as wrong:
            wrong.bind(str(path))
            path.chmod(0o666)
            wrong.listen()
            wrong.settimeout(PATIENCE)
            for directory in (Directory.INIT, Directory.MASTER):
                stage.bind(directory)
            role = stage.start(RoleName.LISTENER, "http", LISTENER_UID)
            stage.give_sockets(role, "http", stage.opened(socket.create_server(("127.0.0.1", 0))))
            stage.give_shares(("share", listener_share()))
            end = stage.keep(End(wrong.accept()[0]))
            assert end.is_closed()  # without a hello
            role.logs(r"a wrong uid has bound the socket .*uid=0 expected=10002")
            assert role.faults("umaster", "not-authorised") >= 1
