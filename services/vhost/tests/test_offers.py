"""What a worker offers to its siblings, and each way in which that ends: with real connections and a real channel."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from pyttpd import fdpass, tcp
from pyttpd.channel import Channel, Faults
from pyttpd.config.shares import HttpSettings
from pyttpd.log import Log
from pyttpd.loop import Loop
from pyttpd.wire import messages as m
from pyttpd.wire.permits import Kind, Side

from pyttpd_vhost.http.connection import Connection, Want
from pyttpd_vhost.offers import Offers
from pyttpd_vhost.parking import Parked, Parking
from pyttpd_vhost.site import Site

from .conftest import HOST, ListLog, make_share

CLIENT = m.Client("127.0.0.1", 1)


class Place(NamedTuple):
    """A worker's offers, one connection of its with its client's end, and umaster's end of the channel."""

    offers: Offers
    one: Parked
    client: socket.socket
    channel: Channel
    umaster: socket.socket
    back: list[Parked]
    #: What is to happen a moment later.
    later: list[Callable[[], None]]

    @property
    def counted(self) -> int:
        """How many connections the client is counted with."""
        clients = self.one.connection._site.clients
        assert clients is not None
        return clients.count(CLIENT.network)


@pytest.fixture
def place() -> Iterator[Place]:
    site = Site(make_share(http=HttpSettings(max_connections_per_client=10)), ListLog())
    site.clients = site.commons.clients(0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=10)
        sock = listener.accept()[0]
    sock.setblocking(False)
    loop = Loop()
    parking = Parking(loop._epoll)
    one = Parked(Connection(sock, ("127.0.0.1", 1), HOST, site), CLIENT, HOST, sock.fileno())
    parking.settle(one, Want.READ)
    assert parking.take(one)
    ours, umaster = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(
        ours,
        Kind.WORKER,
        Side.CONNECTOR,
        loop=loop,
        log=Log("vhost", "test"),
        faults=Faults(),
        peer="umaster",
        on_message=lambda *_: None,
        on_close=lambda *_: None,
    )
    back: list[Parked] = []
    with client, sock, umaster:
        later: list[Callable[[], None]] = []
        offers = Offers(parking, back.append, lambda _seconds, what: later.append(what))
        yield Place(offers, one, client, channel, umaster, back, later)
        channel.close()
        loop.close()


def sibling(place: Place) -> socket.socket:
    """Return the sibling's copy of what was offered."""
    frame, fd = fdpass.recv_fd(place.umaster, m.MAX_FRAME)
    assert m.decode(frame) == m.Pass(1, CLIENT, HOST)
    assert fd is not None
    return socket.socket(fileno=fd)


class Case(NamedTuple):
    """An end. `read`: a sibling has read from the connection before."""

    name: str
    end: Callable[[Offers], object]
    read: bool
    back: bool
    passed: int = 0
    pausing: bool = False


CASES = (
    Case("settled", lambda offers: offers.settled(1), read=True, back=False, passed=1),
    Case("dropped", lambda offers: offers.dropped(1), read=False, back=False),
    Case("refused", lambda offers: offers.refused(1), read=False, back=True, pausing=True),
    Case("retry", lambda offers: offers.retry(1), read=False, back=True),
    Case("retry, and somebody has read", lambda offers: offers.retry(1), read=True, back=False),
    Case("umaster is gone", lambda offers: offers.retry_all(), read=False, back=True),
    Case("umaster is gone, and somebody has read", lambda offers: offers.retry_all(), read=True, back=False),
    Case("of another id", lambda offers: offers.settled(2), read=False, back=False),
)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_end(case: Case, place: Place) -> None:
    offers, one = place.offers, place.one
    assert place.counted == 1
    offers.make(one, place.channel)
    assert list(offers) == [one]
    assert place.counted == 0
    place.client.sendall(b"GET / HTTP/1.1\r\n")
    with sibling(place) as theirs:
        if case.read:
            assert theirs.recv(5) == b"GET /"
        case.end(offers)
    if case.name == "of another id":
        assert list(offers) == [one]
        return
    assert len(offers) == 0
    assert place.back == ([one] if case.back else [])
    assert place.counted == int(case.back)
    assert (one.connection.sock.fileno() < 0) is not case.back
    assert offers.passed == case.passed
    assert offers.pausing is case.pausing
    case.end(offers)  # said twice: nothing more happens
    assert offers.passed == case.passed
    assert len(place.back) == int(case.back)


@pytest.mark.parametrize("put_back", [True, False])
def test_what_a_sibling_has_claimed_and_not_read_is_looked_at_again(place: Place, put_back: bool) -> None:
    """Umaster died when the sibling wanted to say Taken, or right after that."""
    offers, one = place.offers, place.one
    offers.make(one, place.channel)
    with sibling(place) as theirs:
        before = tcp.claim(theirs)
        offers.retry_all()
        assert list(offers) == [one]
        assert not place.back
        if put_back:
            tcp.put_back(theirs, before)
    for what in place.later:
        what()
    assert len(offers) == 0
    assert place.back == ([one] if put_back else [])
    assert (one.connection.sock.fileno() < 0) is not put_back


def test_without_umaster_it_is_back_at_once(place: Place) -> None:
    place.offers.make(place.one, None)
    assert place.back == [place.one]
    place.channel.close()
    place.offers.make(place.one, place.channel)
    assert place.back == [place.one, place.one]
    assert place.counted == 1


def test_what_cannot_say_how_much_was_read_is_closed_and_not_counted(place: Place) -> None:
    place.offers._parking.forget(place.one)
    unix, other = socket.socketpair()
    with unix, other:
        os.dup2(unix.fileno(), place.one.fd)  # it doesn't know what has been read from it
    place.offers.make(place.one, place.channel)
    assert place.one.connection.sock.fileno() == -1
    assert len(place.offers) == place.counted == 0
    assert place.back == []
