"""What a worker offers to its siblings, and each way in which that ends: with real connections and a real channel."""

from __future__ import annotations

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
    assert m.decode(frame) == m.Pass(1, CLIENT, HOST, place.one.mark)
    assert fd is not None
    return socket.socket(fileno=fd)


class Case(NamedTuple):
    """An end. `taken`: a sibling has claimed the connection before."""

    name: str
    end: Callable[[Offers], object]
    taken: bool
    back: bool
    passed: int = 0
    pausing: bool = False


CASES = (
    Case("settled", lambda offers: offers.settled(1), taken=True, back=False, passed=1),
    Case("dropped", lambda offers: offers.dropped(1), taken=False, back=False),
    Case("refused", lambda offers: offers.refused(1), taken=False, back=True, pausing=True),
    Case("retry", lambda offers: offers.retry(1), taken=False, back=True),
    Case("retry, and somebody has it", lambda offers: offers.retry(1), taken=True, back=False),
    Case("umaster is gone", lambda offers: offers.retry_all(), taken=False, back=True),
    Case("umaster is gone, and somebody has it", lambda offers: offers.retry_all(), taken=True, back=False),
    Case("of another id", lambda offers: offers.settled(2), taken=False, back=False),
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
        if case.taken:
            assert tcp.claim(theirs, one.mark)
        case.end(offers)
    for what in place.later:
        what()
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


@pytest.mark.parametrize("fails", [True, False])
def test_what_a_sibling_has_claimed_is_looked_at_again(place: Place, fails: bool) -> None:
    """Umaster died when the sibling had said Taken; its claim is good, or failed at the moment of our look."""
    offers, one = place.offers, place.one
    offers.make(one, place.channel)
    with sibling(place) as theirs:
        assert tcp.claim(theirs, one.mark)
        offers.retry_all()
        assert list(offers) == [one]
        assert not place.back
        if fails:
            assert not tcp.claim(theirs, one.mark + 1)
    for what in place.later:
        what()
    assert len(offers) == 0
    assert place.back == ([one] if fails else [])
    assert (one.connection.sock.fileno() < 0) is not fails


def test_a_sibling_that_hears_of_it_when_it_is_ours_again_gets_nothing(place: Place) -> None:
    """Our channel has ended, and umaster lives: what it had given the sibling is still on its way."""
    place.offers.make(place.one, place.channel)
    offered = place.one.mark
    with sibling(place) as theirs:
        place.offers.retry_all()
        assert place.back == [place.one]
        assert not tcp.claim(theirs, offered)


def test_without_umaster_it_is_back_at_once(place: Place) -> None:
    place.offers.make(place.one, None)
    assert place.back == [place.one]
    place.channel.close()
    place.offers.make(place.one, place.channel)
    assert place.back == [place.one, place.one]
    assert place.counted == 1
