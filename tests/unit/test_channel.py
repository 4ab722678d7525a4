"""A channel with somebody at its other end who does everything wrong, or reads nothing, or is gone."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator, Sequence

import pytest

from pyttpd import channel as channel_module
from pyttpd import fdpass
from pyttpd.channel import MAX_FRAMES_A_TURN, Channel
from pyttpd.loop import Budget
from pyttpd.wire import messages as m
from pyttpd.wire.errors import LocalProtocolError, RemoteProtocolError
from pyttpd.wire.packets import MAX_FRAMES, MAX_PACKET
from pyttpd.wire.permits import Kind, Side

from support.wired import CLIENT, SAMPLES, Stage, connection, descriptor, is_closed, pair, send_raw, stage

ROUTE = m.Route(1, CLIENT, "a.example")
OFFER = m.encode(m.Pass(1, CLIENT, "a.example"))


@pytest.fixture
def on() -> Iterator[Stage]:
    with stage() as one:
        yield one


@contextlib.contextmanager
def no_free_descriptor(*, but: int = 0) -> Iterator[None]:
    """Every number below the soft limit is taken, but so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probes = [os.dup(0) for _ in range(but + 1)]
    for probe in probes:
        os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probes[-1], hard))
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
    send_raw(sock, bytes(MAX_PACKET + 1))


def an_oversized_packet_with_a_descriptor(sock: socket.socket, fd: int) -> None:
    send_raw(sock, bytes(MAX_PACKET + 1), fd)


def one_frame_too_many(sock: socket.socket, fd: int) -> None:
    send_raw(sock, OFFER * (MAX_FRAMES + 1), *[fd] * (MAX_FRAMES + 1))


def one_frame_too_many_without_a_descriptor(sock: socket.socket, fd: int) -> None:
    send_raw(sock, OFFER * MAX_FRAMES + m.encode(m.Credit(1)), *[fd] * MAX_FRAMES)


def a_descriptor_too_few_for_a_packet(sock: socket.socket, fd: int) -> None:
    send_raw(sock, OFFER * 3, fd, fd)


def a_descriptor_too_many_for_a_packet(sock: socket.socket, fd: int) -> None:
    send_raw(sock, OFFER + m.encode(m.Credit(1)), fd, fd)


def junk_behind_a_frame(sock: socket.socket, fd: int) -> None:
    send_raw(sock, OFFER + b"x" * 20, fd)


def half_a_frame_behind_a_frame(sock: socket.socket, fd: int) -> None:
    send_raw(sock, OFFER + OFFER[:-1], fd, fd)


def a_bad_frame_between_good_ones(sock: socket.socket, fd: int) -> None:
    send_raw(sock, OFFER + m.HEADER.pack(m.VERSION, 255, 0, 0, 0, 0) + OFFER, fd, fd)


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
    one_frame_too_many: "descriptors",
    one_frame_too_many_without_a_descriptor: "oversized",
    a_descriptor_too_few_for_a_packet: "descriptors",
    a_descriptor_too_many_for_a_packet: "descriptors",
    junk_behind_a_frame: "bad-version",
    half_a_frame_behind_a_frame: "bad-length",
    a_bad_frame_between_good_ones: "unknown-type",
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


def test_a_peer_that_has_shut_its_ear_and_talks_on_is_heard_in_portions_and_to_an_end(
    on: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be said to it, which we find out at once; that mustn't be a way to talk as long as it likes."""
    monkeypatch.setattr(channel_module, "MAX_OUTBOX", 500)
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    portions: list[int] = []
    on.loop.after_turn.append(lambda: portions.append(len(record.messages)))
    theirs.setblocking(False)
    theirs.shutdown(socket.SHUT_RD)

    def flood() -> bool:
        with contextlib.suppress(OSError):
            while True:
                send_raw(theirs, m.encode(m.Credit(1)))
        return bool(record.ends)

    with theirs:
        flood()
        assert not channel.send(m.Settled((1,)))
        on.until(flood)
    steps = [after - before for before, after in zip([0, *portions], portions, strict=False)]
    assert 1 <= max(steps) <= 2 * MAX_FRAMES_A_TURN  # as one that floods, and once more
    assert 500 <= len(record.messages) <= 1000 + MAX_FRAMES_A_TURN
    assert record.ends == ["peer-gone"]


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
            patch.setattr(fdpass, "send_fds", full)
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


# ---- several frames in a packet -------------------------------------------------------------------------------------


def offers(count: int) -> list[m.Message]:
    return [m.Dispatch(number, CLIENT, f"{number}.example") for number in range(count)]


def test_several_messages_travel_in_few_packets_and_each_has_its_descriptor(on: Stage) -> None:
    ours, theirs = pair()
    sender, _ = on.channel(ours, Kind.WORKER, Side.BINDER)
    receiver, record = on.channel(theirs, Kind.WORKER, Side.CONNECTOR)
    packets: list[int] = []
    receiver.on_packet = lambda _: packets.append(len(record.messages))
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connection())[0] for _ in range(MAX_FRAMES + 3)]
        messages = offers(len(socks))
        assert sender.send_all(messages, [sock.fileno() for sock in socks]) == len(socks)
        on.until(lambda: len(record.messages) == len(socks))
        assert record.messages == messages
        assert packets == [MAX_FRAMES, MAX_FRAMES + 3]
        for sock, fd in zip(socks, record.fds, strict=True):
            assert os.fstat(fd).st_ino == os.fstat(sock.fileno()).st_ino


def test_messages_without_descriptors_are_all_sent_or_wait(on: Stage) -> None:
    ours, theirs = pair()
    sender, _ = on.channel(ours, Kind.WORKER, Side.BINDER)
    messages: list[m.Message] = [m.Retry(number) for number in range(4000)]
    for start in range(0, len(messages), 500):
        assert sender.send_all(messages[start : start + 500]) == 500
    assert sender.backlog
    _, record = on.channel(theirs, Kind.WORKER, Side.CONNECTOR)
    on.until(lambda: len(record.messages) == len(messages))
    assert record.messages == messages


def test_who_speaks_version_1_gets_one_frame_a_packet_and_may_send_no_more(on: Stage) -> None:
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    channel.version = 1
    with theirs, connection() as (server, _):
        assert channel.send_all(offers(3), [server.fileno()] * 3) == 3
        for message in offers(3):
            frame, fd = fdpass.recv_fd(theirs, m.MAX_FRAME)
            assert m.decode(frame, 1) == message
            assert fd is not None
            os.close(fd)
        send_raw(theirs, m.encode(m.Credit(1), 1) * 2)
        on.until(lambda: record.ends)
    assert record.ends == ["bad-length"]


def test_what_finds_no_room_stays_the_callers_from_the_first_that_was_not_sent(on: Stage) -> None:
    ours, theirs = pair()
    sender, ends = on.channel(ours, Kind.WORKER, Side.BINDER)
    room: list[Channel] = []
    sender.on_writable = room.append
    with contextlib.ExitStack() as stack:
        fd = stack.enter_context(connection())[0].fileno()
        total = 0
        while (sent := sender.send_all(offers(40), [fd] * 40)) == 40:
            total += sent
        assert sent % MAX_FRAMES == 0
        total += sent
        assert sender.send_all(offers(1), [fd]) == 0
        _, record = on.channel(theirs, Kind.WORKER, Side.CONNECTOR)
        on.until(lambda: room and len(record.messages) == total)
        assert record.messages[-sent - 40 :] == [*offers(40), *offers(sent)]
        assert not ends.ends


def test_too_many_descriptors_in_flight_sends_nothing_of_a_packet(
    on: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair()
    sender, _ = on.channel(ours, Kind.WORKER, Side.BINDER)
    send = fdpass.send_fds
    calls = 0

    def full_after_one(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(errno.ETOOMANYREFS, "too many references")
        send(sock, data, fds)

    with theirs, connection() as (server, _):
        monkeypatch.setattr(fdpass, "send_fds", full_after_one)
        assert sender.send_all(offers(2 * MAX_FRAMES), [server.fileno()] * 2 * MAX_FRAMES) == MAX_FRAMES
        assert not sender.closed


def test_what_we_must_not_send_is_our_fault_wherever_it_stands(on: Stage) -> None:
    ours, theirs = pair()
    sender, _ = on.channel(ours, Kind.WORKER, Side.BINDER)
    with theirs, connection() as (server, _):
        wrong: list[tuple[list[m.Message], list[int] | None]] = [
            ([m.Retry(1), m.Credit(1)], None),
            ([m.Retry(1), *offers(1)], None),
            ([*offers(1), m.Retry(1)], [server.fileno()] * 2),
        ]
        for messages, fds in wrong:
            with pytest.raises(LocalProtocolError):
                sender.send_all(messages, fds)
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


def test_what_was_right_before_a_wrong_frame_counts_and_the_rest_is_closed(on: Stage) -> None:
    ours, theirs = pair()
    _, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    with theirs, connection() as (server, _):
        read, write = os.pipe()
        send_raw(theirs, OFFER * 3, server.fileno(), read, server.fileno())
        os.close(read)
        on.until(lambda: record.ends)
        assert record.messages == [m.Pass(1, CLIENT, "a.example")]
        assert record.ends == ["descriptors"]
        with pytest.raises(BrokenPipeError):
            os.write(write, b"x")  # nobody has the other end any more
        os.close(write)


def test_a_phase_that_ends_within_a_packet_ends_there(on: Stage) -> None:
    ours, theirs = pair()
    _, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    with theirs:
        send_raw(theirs, m.encode(m.Goodbye("done")) + m.encode(m.Taken(1)) + m.encode(m.Credit(1)))
        on.until(lambda: record.ends)
    assert record.messages == [m.Goodbye("done"), m.Taken(1)]
    assert record.ends == ["not-permitted"]


def test_a_role_that_closes_its_channel_within_a_packet_hears_no_more_of_it(on: Stage) -> None:
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    packets: list[bool] = []

    def close(channel: Channel, message: m.Message, fd: int | None) -> None:
        record.on_message(channel, message, fd)
        channel.close()

    channel.on_message = close
    channel.on_packet = lambda channel: packets.append(channel.closed)
    with theirs, connection() as (server, _):
        send_raw(theirs, OFFER * 3, *[server.fileno()] * 3)
        on.until(lambda: packets)
    assert len(record.fds) == 1
    assert packets == [True]


@pytest.mark.parametrize("free", range(4))
def test_descriptors_that_are_lost_are_those_of_the_last_frames(on: Stage, free: int) -> None:
    ours, theirs = pair()
    channel, record = on.channel(ours, Kind.WORKER, Side.BINDER)
    lost: list[m.Message] = []
    channel.on_lost = lambda _, message: lost.append(message)
    passes: list[m.Message] = [m.Pass(number, CLIENT, "a.example") for number in range(4)]
    with theirs, connection() as (server, _):
        frames = [m.encode(message) for message in passes]
        send_raw(theirs, b"".join([*frames, m.encode(m.Credit(2))]), *[server.fileno()] * 4)
        with no_free_descriptor(but=free):
            assert channel.receive(1) == 5
        for fd in record.fds:
            assert fdpass.check(fd, m.DescriptorKind.CONNECTION)
    assert record.messages == [*passes[:free], m.Credit(2)]
    assert len(record.fds) == free
    assert lost == passes[free:]
    assert on.faults.counts == {("peer", "no-free-descriptor"): 4 - free}
    assert not channel.closed


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
