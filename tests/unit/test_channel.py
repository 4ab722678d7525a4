"""A channel with somebody at its other end who does everything wrong, or reads nothing, or is gone."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator

import pytest

from pyttpd import channel as channel_module
from pyttpd import fdpass
from pyttpd.channel import MAX_FRAMES_A_TURN, Channel
from pyttpd.loop import Budget
from pyttpd.wire import messages as m
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.permits import Kind, Side

from support.wired import CLIENT, SAMPLES, Stage, connection, descriptor, is_closed, pair, send_raw, stage

ROUTE = m.Route(1, CLIENT, "a.example")
OFFER = m.encode(m.Pass(1, CLIENT, "a.example"))


@pytest.fixture
def on() -> Iterator[Stage]:
    with stage() as one:
        yield one


@contextlib.contextmanager
def no_free_descriptor() -> Iterator[None]:
    """Every number below the soft limit is taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---- a peer that sends wrong things ---------------------------------------------------------------------------------


def two_descriptors(sock: socket.socket, fd: int) -> None:
    send_raw(sock, OFFER, fd, fd)


def ten_descriptors(sock: socket.socket, fd: int) -> None:
    send_raw(sock, OFFER, *[fd] * 10)


def no_descriptor(sock: socket.socket, _: int) -> None:
    send_raw(sock, OFFER)


def a_pipe(sock: socket.socket, _: int) -> None:
    read, write = os.pipe()
    send_raw(sock, OFFER, read)
    os.close(read)
    os.close(write)


def a_file(sock: socket.socket, _: int) -> None:
    with open("/dev/null") as file:
        send_raw(sock, OFFER, file.fileno())


def its_own_channel(sock: socket.socket, _: int) -> None:
    send_raw(sock, OFFER, sock.fileno())


def a_listening_socket(sock: socket.socket, _: int) -> None:
    with descriptor(m.DescriptorKind.LISTENER) as fd:
        assert fd is not None
        send_raw(sock, OFFER, fd)


def a_datagram_socket(sock: socket.socket, _: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        send_raw(sock, OFFER, udp.fileno())


def a_stream_of_another_family(sock: socket.socket, _: int) -> None:
    one, other = socket.socketpair()
    with one, other:
        send_raw(sock, OFFER, one.fileno())


def an_unwanted_descriptor(sock: socket.socket, fd: int) -> None:
    send_raw(sock, m.encode(m.Credit(1)), fd)


def an_oversized_packet(sock: socket.socket, _: int) -> None:
    send_raw(sock, bytes(m.MAX_FRAME + 1))


def an_oversized_packet_with_a_descriptor(sock: socket.socket, fd: int) -> None:
    send_raw(sock, bytes(m.MAX_FRAME + 1), fd)


def junk(sock: socket.socket, _: int) -> None:
    send_raw(sock, b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")


def half_a_header(sock: socket.socket, _: int) -> None:
    send_raw(sock, OFFER[:8])


def not_its_turn(sock: socket.socket, _: int) -> None:
    send_raw(sock, m.encode(m.Refuse(1, 503)))


WRONG: dict[Callable[[socket.socket, int], None], str] = {
    two_descriptors: "descriptors",
    ten_descriptors: "descriptors",
    no_descriptor: "descriptors",
    a_pipe: "descriptors",
    a_file: "descriptors",
    its_own_channel: "descriptors",
    a_listening_socket: "descriptors",
    a_datagram_socket: "descriptors",
    a_stream_of_another_family: "descriptors",
    an_unwanted_descriptor: "descriptors",
    an_oversized_packet: "oversized",
    an_oversized_packet_with_a_descriptor: "oversized",
    junk: "bad-version",
    half_a_header: "truncated",
    not_its_turn: "not-permitted",
}


@pytest.mark.parametrize("deed", WRONG, ids=lambda deed: deed.__name__)
def test_a_peer_that_breaks_the_protocol_loses_its_channel_and_nothing_else(
    on: Stage, deed: Callable[[socket.socket, int], None]
) -> None:
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER, peer="worker")
    well, well_record = on.channel((other := pair())[0], Kind.WORKER, Side.BINDER, peer="worker")
    with theirs, other[1], connection() as (server, _):
        deed(theirs, server.fileno())
        send_raw(other[1], m.encode(m.Credit(1)))
        on.until(lambda: record.ends and well_record.messages)
        assert record.ends == [WRONG[deed]]
        assert channel.closed
        assert not record.messages
        assert is_closed(theirs)
    assert not well.closed
    assert on.faults.counts == {("worker", WRONG[deed]): 1}
    (line,) = [line for line in on.lines if "peer broke the protocol" in line]
    assert "warning" in line


def test_what_a_role_finds_wrong_closes_the_channel_as_well(on: Stage) -> None:
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)

    def refuse(_channel: Channel, _message: m.Message, _fd: int | None) -> None:
        raise RemoteProtocolError("forged-id", "never given")

    channel.on_message = refuse
    with theirs:
        send_raw(theirs, m.encode(m.Taken(4)))
        on.until(lambda: record.ends)
    assert record.ends == ["forged-id"]
    assert on.faults.counts == {("peer", "forged-id"): 1}


def test_a_fault_found_elsewhere_closes_the_channel(on: Stage) -> None:
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    with theirs:
        channel.fault("takes-nothing", "for too long")
        channel.fault("takes-nothing", "is closed already")
        assert is_closed(theirs)
    assert record.ends == ["takes-nothing"]


# ---- a peer that leaves ---------------------------------------------------------------------------------------------


def test_what_a_peer_has_said_before_it_left_is_heard(on: Stage) -> None:
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    for count in range(1, 40):
        send_raw(theirs, m.encode(m.Credit(count)))
    send_raw(theirs, m.encode(m.Goodbye("done")))
    theirs.close()
    on.until(lambda: record.ends)
    assert record.messages == [*(m.Credit(count) for count in range(1, 40)), m.Goodbye("done")]
    assert record.ends == ["peer-gone"]
    assert channel.leaving
    assert not on.faults.counts
    assert not channel.send(m.Settled((1,)))


def test_an_empty_packet_ends_the_channel(on: Stage) -> None:
    ours, theirs = pair()
    _, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    with theirs, connection() as (server, _):
        socket.send_fds(theirs, [b""], [server.fileno()])
        on.until(lambda: record.ends)
    assert record.ends == ["peer-gone"]


def test_sending_to_a_peer_that_is_gone_says_so_once(on: Stage) -> None:
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    theirs.close()
    assert not channel.send(m.Settled((1,)))
    assert not channel.send(m.Settled((1,)))
    on.until(lambda: record.ends)  # from the loop: nobody who sends has to reckon with it
    assert record.ends == ["peer-gone"]
    channel.close()


def test_what_a_peer_said_before_it_was_found_gone_still_counts(on: Stage) -> None:
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    channel.send(m.Settled((1,)))  # unread when it leaves: its end is a reset
    send_raw(theirs, m.encode(m.Taken(1)))
    theirs.close()
    assert not channel.send(m.Settled((2,)))
    on.until(lambda: record.ends)
    assert record.messages == [m.Taken(1)]


def test_a_closed_channel_gives_its_place_in_the_budget_back_once(on: Stage) -> None:
    ours, theirs = pair()
    channel, _ = on.channel(ours, Kind.WORKER, Side.BINDER)
    channel.budget = Budget(10)
    channel.budget.take()
    with theirs:
        channel.close()
        channel.close()
    assert channel.budget.used == 0
    assert channel.receive(1) == 0


# ---- a peer that doesn't read ---------------------------------------------------------------------------------------


def test_frames_wait_for_a_peer_that_reads_late_and_come_in_order(on: Stage) -> None:
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    ids = [m.Settled((number,)) for number in range(3000)]
    assert all(channel.send(message) for message in ids)
    assert not record.ends
    with theirs:
        theirs.setblocking(False)
        got: list[m.Message] = []

        def all_read() -> bool:
            with contextlib.suppress(BlockingIOError):
                while True:
                    got.append(m.decode(theirs.recv(m.MAX_FRAME)))
            return len(got) == len(ids)

        on.until(all_read)
        assert got == ids
        assert channel.send(m.Retry(1))
        assert m.decode(theirs.recv(m.MAX_FRAME)) == m.Retry(1)


def test_a_peer_that_never_reads_loses_its_channel(on: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "MAX_OUTBOX", 50)
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    with theirs:
        for _ in range(10_000):
            if not channel.send(m.Settled((1,))):
                break
    assert record.ends == ["does-not-read"]
    assert on.faults.counts == {("peer", "does-not-read"): 1}


def test_a_message_with_a_descriptor_is_never_queued_and_its_sender_hears_of_room(on: Stage) -> None:
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    room: list[Channel] = []
    channel.on_writable = room.append
    dispatch = m.Dispatch(1, CLIENT, "a.example")
    with theirs, connection() as (server, _):
        sent = 0
        while channel.send(dispatch, server.fileno()):
            sent += 1
        assert sent
        assert channel.send(m.Settled((1,)))  # waits in the outbox
        assert not channel.send(dispatch, server.fileno())  # must not overtake it
        assert not room
        theirs.setblocking(False)

        def drained() -> bool:
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, fd = fdpass.recv_fd(theirs, m.MAX_FRAME)
                    if fd is not None:
                        os.close(fd)
                    last.append(data)
            return bool(room)

        last: list[bytes] = []
        on.until(drained)
        drained()
        assert m.decode(last[-1]) == m.Settled((1,))
        assert channel.send(dispatch, server.fileno())
    assert not record.ends


def test_too_many_descriptors_in_flight_is_no_room_and_nobodys_fault(
    on: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)

    def full(*_: object) -> None:
        raise OSError(errno.ETOOMANYREFS, "too many references")

    with theirs, connection() as (server, _):
        with monkeypatch.context() as patch:
            patch.setattr(fdpass, "send_fd", full)
            assert not channel.send(m.Dispatch(1, CLIENT, ""), server.fileno())
        assert channel.send(m.Dispatch(1, CLIENT, ""), server.fileno())
    assert not record.ends


def test_a_peer_that_dies_while_frames_wait_ends_the_channel(on: Stage) -> None:
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    for _ in range(1000):
        channel.send(m.Settled((1,)))
    theirs.close()
    on.until(lambda: record.ends)
    assert record.ends == ["peer-gone"]


# ---- turns, pauses, load --------------------------------------------------------------------------------------------


def test_a_flood_is_taken_in_portions(on: Stage) -> None:
    ours, theirs = pair()
    _, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    portions: list[int] = []
    on.loop.after_turn.append(lambda: portions.append(len(record.messages)))
    theirs.setblocking(False)
    sent = 0

    def flood() -> bool:
        nonlocal sent
        with contextlib.suppress(BlockingIOError):
            while True:
                send_raw(theirs, m.encode(m.Credit(1)))
                sent += 1
        return len(record.messages) >= 1000

    with theirs:
        on.until(flood)
    steps = [after - before for before, after in zip([0, *portions], portions, strict=False)]
    assert 1 <= max(steps) <= MAX_FRAMES_A_TURN


def test_a_paused_channel_takes_nothing_until_it_goes_on(on: Stage) -> None:
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    with theirs:
        channel.pause()
        channel.pause()
        send_raw(theirs, m.encode(m.Credit(1)))
        on.turns(0.05)
        assert not record.messages
        assert channel.receive(4) == 0
        channel.resume()
        channel.resume()
        on.until(lambda: record.messages)


def test_a_peer_that_leaves_a_paused_channel_is_heard_to_its_end_and_costs_no_time_meanwhile(
    on: Stage,
) -> None:
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    channel.pause()
    send_raw(theirs, m.encode(m.Credit(1)))
    theirs.close()
    turns = 0

    def count() -> None:
        nonlocal turns
        turns += 1

    on.loop.after_turn.append(count)
    on.turns(0.1)
    assert turns < 50
    assert not record.ends
    channel.resume()
    on.until(lambda: record.ends)
    assert record.messages == [m.Credit(1)]


def test_pausing_in_the_middle_of_a_turn_leaves_the_rest_in_the_kernel(on: Stage) -> None:
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    take = channel.on_message

    def take_two(channel: Channel, message: m.Message, fd: int | None) -> None:
        take(channel, message, fd)
        if len(record.messages) == 2:
            channel.pause()

    channel.on_message = take_two
    with theirs:
        for number in range(5):
            send_raw(theirs, m.encode(m.Credit(number)))
        on.turns(0.05)
        assert len(record.messages) == 2
        channel.resume()
        on.until(lambda: len(record.messages) == 5)


def test_a_descriptor_that_finds_no_free_number_is_our_load_and_not_the_peers_fault(on: Stage) -> None:
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    lost: list[m.Message] = []
    channel.on_lost = lambda _channel, message: lost.append(message)
    with theirs, connection() as (server, _):
        send_raw(theirs, OFFER, server.fileno())
        with no_free_descriptor():
            channel.receive(1)
        assert lost == [SAMPLES[m.Pass]]
        assert not record.ends
        send_raw(theirs, OFFER, server.fileno())
        channel.receive(1)
        assert record.messages == [SAMPLES[m.Pass]]
    assert on.faults.counts == {("peer", "no-free-descriptor"): 1}


def test_where_a_lost_descriptor_can_not_be_made_up_for_the_channel_closes(on: Stage) -> None:
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    with theirs, connection() as (server, _):
        send_raw(theirs, OFFER, server.fileno())
        with no_free_descriptor():
            channel.receive(1)
    assert record.ends == ["no-free-descriptor"]


def test_a_bad_frame_is_a_bad_frame_also_where_its_descriptor_was_lost(on: Stage) -> None:
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    with theirs, connection() as (server, _):
        send_raw(theirs, b"junk", server.fileno())
        with no_free_descriptor():
            channel.receive(1)
    assert record.ends == ["truncated"]
