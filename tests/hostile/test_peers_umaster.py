"""umaster among hostile listeners, supervisors and workers: each loses its own channel, and nobody anything else."""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Callable, Iterator

import pytest

from pyttpd import memfd
from pyttpd.channel import MAX_OUTBOX
from pyttpd.rendezvous import MAX_GREETED, MAX_UNGREETED
from pyttpd.roles import Channel as Directory
from pyttpd.wire.messages import (
    GREETING_VERSION,
    VERSION,
    Attach,
    Beat,
    Credit,
    Demand,
    Detail,
    Dispatch,
    Drop,
    Failed,
    Gone,
    Goodbye,
    Hello,
    Message,
    Pass,
    Ready,
    Refuse,
    Retry,
    Route,
    Settled,
    Share,
    ShareOk,
    Socket,
    SocketsEnd,
    Spawn,
    Spawned,
    Standing,
    Stuck,
    Taken,
    Welcome,
    Worker,
    encode,
)
from pyttpd.wire.packets import MAX_FRAMES, MAX_PACKET

from hostile.peers import (
    CLIENT,
    JUNK,
    JUNK_NAMES,
    LISTENER_UID,
    STRANGER_UID,
    TENANTS,
    End,
    Role,
    Stage,
    as_uid,
    as_version,
    frame,
    wait_for,
    with_header,
)
from pyttpd_umaster.router import MAX_CREDIT, MAX_SUPERVISORS, ROUTE_WINDOW

pytestmark = pytest.mark.root

EVERYTHING: tuple[Message, ...] = (
    Hello("listener", "http"),
    Welcome(1, 5),
    Goodbye("x"),
    Socket("listen", "http"),
    SocketsEnd(1),
    Share(1, "share", 2, b"\0" * 32),
    ShareOk(1),
    Route(1, CLIENT, "a.test"),
    Settled((1,)),
    Refuse(1, 503),
    Retry(1),
    Drop(1),
    Worker(9, "requests"),
    Gone(9),
    Stuck(9),
    Demand(9, 9),
    Standing("failing"),
    Credit(1),
    Dispatch(1, CLIENT, "a.test"),
    Taken(1),
    Pass(1, CLIENT, "a.test"),
    Spawn(1, 1),
    Spawned(1, 1),
    Attach(1),
    Ready(),
    Beat(),
    Failed("x"),
    Detail("x"),
)
#: What each kind of peer may send to umaster once it is in.
PERMITTED: dict[str, tuple[type, ...]] = {
    "unknown": (Hello,),
    "listener": (Route, Goodbye),
    "vhost": (Worker, Gone, Standing, Goodbye),
    "worker": (Credit, Taken, Pass, Goodbye),
}
#: What carries a descriptor, and what doesn't.
CARRIERS: dict[str, Message] = {
    "listener": Route(5, CLIENT, "a.test"),
    "vhost": Worker(5, "requests"),
    "worker": Pass(5, CLIENT, "a.test"),
}
PLAIN: dict[str, Message] = {"listener": Goodbye("x"), "vhost": Gone(5), "worker": Credit(1)}


@pytest.fixture(scope="module")
def house() -> Iterator[Stage]:
    with Stage() as stage:
        stage.umaster()
        yield stage


@pytest.fixture
def stage(house: Stage) -> Iterator[Stage]:
    with house.scene():
        yield house
        assert_serves(house)


@pytest.fixture
def umaster(stage: Stage) -> Role:
    return stage.roles[0]


def assert_serves(stage: Stage) -> None:
    """A well-behaved listener, supervisor and worker of another tenant are served as ever."""
    listener = stage.listener("other")
    worker = stage.worker(stage.supervisor("b"), "b").send(Credit(1))
    listener.send(Route(77, CLIENT, "b.test"), stage.connection())
    given = worker.expect(Dispatch)
    assert (given.client, given.authority) == (CLIENT, "b.test")
    worker.send(Taken(given.id))
    assert listener.expect(Settled) == Settled((77,))


def peer(stage: Stage, who: str) -> End:
    """A played peer of this kind, let in."""
    match who:
        case "unknown":
            return stage.connect(Directory.ROUTE, LISTENER_UID)
        case "listener":
            return stage.listener()
        case "vhost":
            return stage.supervisor()
        case _:
            return stage.worker(stage.supervisor(), number=1)


def spoken_by(who: str) -> int:
    """The version of what such a peer says."""
    return GREETING_VERSION if who == "unknown" else VERSION


def descriptors(stage: Stage) -> dict[str, int]:
    """One descriptor of every kind that a peer might try; the caller closes them."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stream, other = socket.socketpair()
    read, write = os.pipe()
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    bound.bind("")
    bound.listen()
    found = {
        "a pipe": read,
        "a pipe's other end": write,
        "a channel": theirs.detach(),
        "a stream pair": stream.detach(),
        "a listening socket": socket.create_server(("127.0.0.1", 0)).detach(),
        "a listening channel": bound.detach(),
        "an unconnected channel": socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).detach(),
        "UDP": socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach(),
        "a file": os.open("/etc/passwd", os.O_RDONLY),
        "a directory": os.open("/", os.O_RDONLY),
        "a path": os.open("/etc/passwd", os.O_PATH),
        "a memfd": memfd.make("x", b"x"),
        "an event": os.eventfd(0),
        "a process": os.pidfd_open(os.getpid()),
    }
    ours.close()
    other.close()
    return found


# ---- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", PERMITTED)
@pytest.mark.parametrize(("data", "reason"), [case[1:] for case in JUNK], ids=JUNK_NAMES)
def test_junk(stage: Stage, umaster: Role, who: str, data: bytes, reason: str) -> None:
    before = umaster.faults(who, reason)
    end = peer(stage, who).raw(as_version(data, spoken_by(who)))
    assert end.is_closed()
    umaster.wait_sample(before + 1, "channel_faults_total", peer=who, reason=reason)


def packet(who: str, *ids: int) -> bytes:
    """Offers of these ids, one behind the other."""
    return b"".join(with_header(CARRIERS[who], id=id_) for id_ in ids)


#: Packets of offers: what is in them, how many descriptors come with it, the reason for which the channel is closed.
PACKETS: dict[str, tuple[Callable[[str], bytes], int, str]] = {
    "one frame too many": (lambda who: packet(who, *range(1, MAX_FRAMES + 2)), MAX_FRAMES + 1, "descriptors"),
    "and none of them has one": (lambda _: encode(Goodbye("x")) * (MAX_FRAMES + 1), 0, "oversized"),
    "a page of headers": (lambda _: encode(Goodbye("")) * (MAX_PACKET // 16), 0, "oversized"),
    "the last one of no type": (lambda who: packet(who, 1, 2, 3) + frame(200), 3, "unknown-type"),
    "the first one of no type": (lambda who: frame(0) + packet(who, 1, 2, 3), 3, "unknown-type"),
    "junk behind": (lambda who: packet(who, 1, 2) + b"\0" * 40, 2, "bad-version"),
    "half a frame behind": (lambda who: packet(who, 1, 2)[:-1], 2, "bad-length"),
    "a frame of another version": (
        lambda who: packet(who, 1) + as_version(packet(who, 2), 1),
        2,
        "bad-version",
    ),
    "a length that reaches beyond": (lambda who: packet(who, 1) + frame(3, b"x", length=9), 1, "bad-length"),
    "a descriptor too few": (
        lambda who: packet(who, *range(1, MAX_FRAMES + 1)),
        MAX_FRAMES - 1,
        "descriptors",
    ),
    "a descriptor too many": (lambda who: packet(who, 1, 2), 3, "descriptors"),
    "as many as the kernel lets through": (lambda who: packet(who, 1, 2), 253, "descriptors"),
    "the same id twice": (lambda who: packet(who, 1, 1), 2, "replayed-id"),
    "something after goodbye": (lambda _: encode(Goodbye("x")) + encode(Settled((1,))), 0, "not-permitted"),
}


@pytest.mark.parametrize("who", ["listener", "worker"])
@pytest.mark.parametrize("case", PACKETS.values(), ids=PACKETS)
def test_packets(
    stage: Stage, umaster: Role, who: str, case: tuple[Callable[[str], bytes], int, str]
) -> None:
    make, count, reason = case
    # Somebody who would take what is offered; but of a packet that isn't well-formed nothing is.
    other = stage.worker(stage.supervisor(), number=2).send(Credit(MAX_FRAMES))
    before = umaster.faults(who, reason)
    with stage.connection() as one:
        end = peer(stage, who).raw(make(who), *[one.fileno()] * count)
        assert end.is_closed()
    umaster.wait_sample(before + 1, "channel_faults_total", peer=who, reason=reason)
    assert other.quiet(0.05) or reason == "replayed-id"


@pytest.mark.parametrize("who", ["listener", "worker"])
def test_a_wrong_descriptor_within_a_packet(stage: Stage, umaster: Role, who: str) -> None:
    """What came before it counts, and what comes after it is closed unseen."""
    before = umaster.faults(who, "descriptors")
    read, write = os.pipe()
    with stage.connection() as one:
        end = peer(stage, who).raw(packet(who, 1, 2, 3), one.fileno(), read, one.fileno())
        os.close(read)
        assert end.is_closed()
    umaster.wait_sample(before + 1, "channel_faults_total", peer=who, reason="descriptors")
    with pytest.raises(BrokenPipeError):
        os.write(write, b"x")
    os.close(write)


def test_several_offers_in_a_packet_are_served_in_their_order(stage: Stage) -> None:
    listener = stage.listener()
    worker = stage.worker(stage.supervisor()).send(Credit(MAX_FRAMES))
    with stage.connection() as one:
        listener.raw(packet("listener", *range(1, MAX_FRAMES + 1)), *[one.fileno()] * MAX_FRAMES)
    given = [worker.expect(Dispatch) for _ in range(MAX_FRAMES)]
    assert len(worker.fds) == MAX_FRAMES
    worker.raw(b"".join(encode(Taken(each.id)) for each in given))
    assert sorted(listener.expect(Settled).ids) == list(range(1, MAX_FRAMES + 1))


@pytest.mark.parametrize("who", PERMITTED)
def test_every_message_that_is_not_for_this_peer_to_send(stage: Stage, umaster: Role, who: str) -> None:
    before = umaster.faults(who, "not-permitted")
    wrong = [message for message in EVERYTHING if type(message) not in PERMITTED[who]]
    for message in wrong:
        with stage.scene_of_peers(), stage.connection() as connection:
            data = encode(message, spoken_by(who))
            end = peer(stage, who).raw(data, *([connection.fileno()] if data[2] else []))
            assert end.is_closed()
    umaster.wait_sample(before + len(wrong), "channel_faults_total", peer=who, reason="not-permitted")


@pytest.mark.parametrize("who", ["listener", "vhost", "worker"])
def test_anything_after_goodbye(stage: Stage, umaster: Role, who: str) -> None:
    before = umaster.faults(who, "not-permitted")
    new: Message = CARRIERS[who] if who != "worker" else Credit(1)
    with stage.connection() as connection:
        end = peer(stage, who).send(Goodbye("x"))
        assert end.raw(encode(new), *([] if who == "worker" else [connection.fileno()])).is_closed()
    umaster.wait_sample(before + 1, "channel_faults_total", peer=who, reason="not-permitted")


@pytest.mark.parametrize("who", ["listener", "vhost", "worker"])
def test_two_descriptors_none_and_many(stage: Stage, umaster: Role, who: str) -> None:
    before = umaster.faults(who, "descriptors")
    carrier = CARRIERS[who]
    plain = PLAIN[who]
    with stage.connection() as one:
        for message, count in (
            (carrier, 2),
            (carrier, 0),
            (carrier, 253),
            (plain, 1),
            (plain, 2),
            (plain, 253),
        ):
            with stage.scene_of_peers():
                end = peer(stage, who).raw(encode(message), *[one.fileno()] * count)
                assert end.is_closed(), (message, count)
    umaster.wait_sample(before + 6, "channel_faults_total", peer=who, reason="descriptors")


@pytest.mark.parametrize("who", ["listener", "vhost", "worker"])
def test_descriptors_of_the_wrong_kind(stage: Stage, umaster: Role, who: str) -> None:
    before = umaster.faults(who, "descriptors")
    message = CARRIERS[who]
    # umaster can tell who has made a channel: this one was made by root, and is nobody's worker's.
    wrong = descriptors(stage)
    for name, fd in wrong.items():
        with stage.scene_of_peers():
            end = peer(stage, who).raw(encode(message), fd)
            os.close(fd)
            assert end.is_closed(), name
    umaster.wait_sample(before + len(wrong), "channel_faults_total", peer=who, reason="descriptors")


def test_a_channel_that_carries_itself(stage: Stage, umaster: Role) -> None:
    """Both ends of a channel travel through it, or into umaster: nothing keeps the other alive."""
    supervisor = stage.supervisor()
    assert supervisor.raw(encode(Worker(1, "requests")), supervisor.sock.fileno()).is_closed()
    supervisor = stage.supervisor()
    with as_uid(TENANTS["a"]):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.send(encode(Credit(4)))
    theirs.send(encode(Credit(4)))
    supervisor.send(Worker(1, "requests"), ours).send(Worker(2, "requests"), theirs)
    umaster.wait_sample(8, "credits", vhost="a")
    listener = stage.listener()
    listener.send(Route(1, CLIENT, "a.test"), stage.connection())
    # umaster's Dispatch comes back to umaster, which must not take it for anything.
    assert listener.expect(Retry) == Retry(1)
    umaster.wait_sample(0, "workers", vhost="a")


def test_a_peer_that_makes_our_end_blocking(stage: Stage, umaster: Role) -> None:
    """Who sends a channel's end keeps a copy, and O_NONBLOCK belongs to both: umaster must not wait for that one."""
    supervisor = stage.supervisor()
    with as_uid(TENANTS["a"]):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker = stage.keep(End(ours))
    supervisor.send(Worker(1, "requests"), theirs.fileno())
    umaster.wait_sample(1, "workers", vhost="a")
    flags = fcntl.fcntl(theirs, fcntl.F_GETFL)
    assert flags & os.O_NONBLOCK
    fcntl.fcntl(theirs, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
    theirs.close()
    for _ in range(40):  # more than one turn's frames, so that it looks for another one
        worker.send(Credit(1))
    umaster.wait_sample(40, "credits", vhost="a")
    assert_serves(stage)


# ---- who comes in ----------------------------------------------------------------------------------------------------


def test_a_wrong_uid_name_or_role(stage: Stage, umaster: Role) -> None:
    before = sum(value for key, value in umaster.samples().items() if ("reason", "not-authorised") in key)
    cases = [
        (Directory.ROUTE, STRANGER_UID, "listener", "http"),
        (Directory.ROUTE, 0, "listener", "http"),
        (Directory.ROUTE, LISTENER_UID + 1, "listener", "http"),
        (Directory.ROUTE, LISTENER_UID, "listener", "nobody"),
        (Directory.ROUTE, LISTENER_UID, "vhost", "http"),
        (Directory.ROUTE, TENANTS["a"], "vhost", "a"),
        (Directory.ROUTE, TENANTS["a"], "operator", "a"),
        (Directory.VHOST, TENANTS["b"], "vhost", "a"),
        (Directory.VHOST, 0, "vhost", "a"),
        (Directory.VHOST, LISTENER_UID, "listener", "http"),
        (Directory.VHOST, TENANTS["a"], "master", "a"),
        (Directory.VHOST, TENANTS["a"], "vhost", "a.b"),
    ]
    for directory, uid, role, name in cases:
        end = stage.connect(directory, uid).send(Hello(role, name))
        assert end.is_closed(), (uid, role, name)
    after = sum(value for key, value in umaster.samples().items() if ("reason", "not-authorised") in key)
    assert after == before + len(cases)


def test_hello_twice(stage: Stage, umaster: Role) -> None:
    listener = stage.listener().raw(encode(Hello("listener", "http"), VERSION))
    assert listener.is_closed()
    assert umaster.faults("listener", "not-permitted") >= 1


def test_versions(stage: Stage, umaster: Role) -> None:
    """One that speaks newer ones as well is told which; one that speaks only those is refused."""
    end = stage.connect(Directory.ROUTE, LISTENER_UID).send(Hello("listener", "http", 1, 9))
    assert end.expect(Welcome).version == VERSION
    before = umaster.faults("listener", "bad-version")
    newer = Hello("listener", "http", VERSION + 1, 9)
    assert stage.connect(Directory.ROUTE, LISTENER_UID).send(newer).is_closed()
    umaster.wait_sample(before + 1, "channel_faults_total", peer="listener", reason="bad-version")
    for oldest, newest in ((0, 1), (5, 2)):
        end = stage.connect(Directory.ROUTE, LISTENER_UID).send(Hello("listener", "http", oldest, newest))
        assert end.is_closed()


def test_a_name_that_is_none(stage: Stage, umaster: Role) -> None:
    good = encode(Hello("listener", "http"))
    for name in (b"", b"\n[error] forged", b"../../etc", b"x" * 64, b"a\0b", b"\xff"):
        end = stage.connect(Directory.ROUTE, LISTENER_UID).raw(good[:-64] + name.ljust(64, b"\0"))
        assert end.is_closed(), name
    assert "[error] forged\n" not in umaster.log()


def test_hello_and_gone(stage: Stage) -> None:
    """Nobody is there any more to hear the welcome."""
    for _ in range(50):
        stage.connect(Directory.ROUTE, LISTENER_UID).send(Hello("listener", "http")).close()
        stage.connect(Directory.VHOST, TENANTS["a"]).send(Hello("vhost", "a")).close()
        stage.connect(Directory.VHOST, TENANTS["a"]).close()


def test_thousands_without_a_hello(stage: Stage, umaster: Role) -> None:
    """A tenant's application connects and connects: it gets a few channels, its neighbours all the rest."""
    before = len(umaster.fds())
    ends = [stage.connect(Directory.VHOST, TENANTS["a"]) for _ in range(400)]
    for end in ends[MAX_UNGREETED:]:
        assert end.is_closed()
    assert len(umaster.fds()) <= before + MAX_UNGREETED
    assert umaster.faults("unknown", "too-many-ungreeted") >= 400 - MAX_UNGREETED
    assert_serves(stage)
    for end in ends:
        end.close()


def test_more_greeted_channels_than_anybody_needs(stage: Stage, umaster: Role) -> None:
    """A tenant's application has its supervisor's uid, so it is let in; but not for ever."""
    listeners = [
        stage.connect(Directory.ROUTE, LISTENER_UID).send(Hello("listener", "http")) for _ in range(30)
    ]
    heard = [end.receive() for end in listeners]
    assert sum(each is not None for each in heard) == MAX_GREETED
    supervisors = [stage.connect(Directory.VHOST, TENANTS["a"]).send(Hello("vhost", "a")) for _ in range(30)]
    for end in supervisors[MAX_SUPERVISORS:]:
        assert end.is_closed()
    assert umaster.faults("vhost", "too-many") >= 30 - MAX_SUPERVISORS


def test_silence_instead_of_a_hello(stage: Stage, umaster: Role) -> None:
    before = umaster.faults("unknown", "silent")
    assert stage.connect(Directory.ROUTE, LISTENER_UID).is_closed()
    umaster.wait_sample(before + 1, "channel_faults_total", peer="unknown", reason="silent")


# ---- listeners -------------------------------------------------------------------------------------------------------


def test_a_listener_that_replays_an_id(stage: Stage, umaster: Role) -> None:
    before = umaster.faults("listener", "replayed-id")
    listener = stage.listener()
    listener.send(Route(1, CLIENT, "a.test"), stage.connection())
    assert listener.send(Route(1, CLIENT, "a.test"), stage.connection()).is_closed()
    assert umaster.faults("listener", "replayed-id") == before + 1
    umaster.wait_sample(0, "queue_depth", vhost="a")


def test_a_listener_with_more_offers_than_its_window(stage: Stage, umaster: Role) -> None:
    """Without an answer it may have so many open; they have to be with a worker, for a queue is shorter."""
    listener = stage.listener()
    with stage.connection() as one:
        message = Route(0, CLIENT, "a.test")
        for number in range(ROUTE_WINDOW + 600):
            listener.raw(with_header(message, id=number), one.fileno())
    # Most are refused at once, which closes them: only what waits counts. The queue has its limit.
    wait_for(lambda: umaster.sample("queue_depth", vhost="a") == 256)
    assert umaster.sample("refusals_total", vhost="a", reason="queue-full") > ROUTE_WINDOW - 256


def test_a_listener_that_reads_nothing(stage: Stage, umaster: Role) -> None:
    """Its answers pile up, so it loses its channel, and what it had open is closed."""
    before = umaster.faults("listener", "does-not-read")
    listener = stage.listener()
    with stage.connection() as one:
        number = 0
        while umaster.faults("listener", "does-not-read") == before:
            for _ in range(2000):
                number += 1
                listener.raw(with_header(Route(0, CLIENT, "nobody.test"), id=number), one.fileno())
            assert number < 40_000
    assert listener.is_closed()


def test_a_listener_that_lies_about_addresses(stage: Stage) -> None:
    body = encode(Route(1, CLIENT, "a.test"))
    with stage.connection() as one:
        for wrong in (
            body[:16] + b"\x07" + body[17:],  # an address family that there isn't
            with_header(Route(1, CLIENT, ""), length=10)[: 16 + 10],  # cut within the address
            body + b"\n",
            body[:-6] + b"A.TEST",
            body[:-6] + b"\0.test",
            body + b"a" * 300,
        ):
            fixed = with_length(wrong)
            assert stage.listener().raw(fixed, one.fileno()).is_closed(), wrong


def with_length(data: bytes) -> bytes:
    return data[:4] + (len(data) - 16).to_bytes(4, "big") + data[8:]


def test_a_listener_that_goes_while_its_offers_travel(stage: Stage, umaster: Role) -> None:
    worker = stage.worker(stage.supervisor()).send(Credit(2))
    listener = stage.listener()
    for number in range(5):
        listener.send(Route(number, CLIENT, "a.test"), stage.connection())
    given = [worker.expect(Dispatch), worker.expect(Dispatch)]
    listener.close()
    umaster.wait_sample(0, "queue_depth", vhost="a")
    for each in given:
        worker.send(Taken(each.id))
    umaster.wait_sample(0, "handovers_open", vhost="a")


# ---- supervisors -----------------------------------------------------------------------------------------------------


def test_a_supervisor_with_the_channel_of_somebody_else(stage: Stage, umaster: Role) -> None:
    with as_uid(TENANTS["b"]):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        assert stage.supervisor("a").send(Worker(1, "requests"), theirs).is_closed()
    assert umaster.faults("vhost", "descriptors") >= 1


def test_a_supervisor_that_announces_a_number_twice(stage: Stage, umaster: Role) -> None:
    supervisor = stage.supervisor()
    first = stage.worker(supervisor, number=4).send(Credit(1))
    stage.worker(supervisor, number=4)
    assert supervisor.is_closed()
    assert umaster.faults("vhost", "replayed-id") == 1
    # The first one has a channel of its own, and goes on.
    listener = stage.listener()
    listener.send(Route(1, CLIENT, "a.test"), stage.connection())
    first.expect(Dispatch)


def test_a_supervisor_that_buries_who_never_was(stage: Stage) -> None:
    supervisor = stage.supervisor()
    for number in (0, 1, 2**32 - 1):
        supervisor.send(Gone(number))
    stage.worker(supervisor, number=1).send(Credit(1))
    assert supervisor.quiet()


def test_a_flood_of_workers_does_not_use_up_the_descriptors(stage: Stage, umaster: Role) -> None:
    """They are the tenant's share; the neighbour's are left (the scene's end asks for that as well)."""
    supervisor = stage.supervisor("a")
    with as_uid(TENANTS["a"]):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for number in range(1, 5000):
            supervisor.raw(encode(Worker(number, "requests")), theirs.fileno())
        assert supervisor.is_closed()
        limit = umaster.sample("descriptors_limit")
        assert umaster.sample("workers", vhost="a") <= max(limit // 2, 4) + 1
        assert_serves(stage)
    umaster.wait_sample(0, "workers", vhost="a")


# ---- workers ---------------------------------------------------------------------------------------------------------


def test_a_worker_that_forges_taken(stage: Stage, umaster: Role) -> None:
    before = umaster.faults("worker", "forged-id")
    supervisor = stage.supervisor()
    victim = stage.worker(supervisor, number=1).send(Credit(1))
    listener = stage.listener()
    listener.send(Route(1, CLIENT, "a.test"), stage.connection())
    given = victim.expect(Dispatch)
    for number, id_ in enumerate((given.id, given.id + 1, 0, 2**64 - 1), 2):
        assert stage.worker(supervisor, number=number).send(Taken(id_)).is_closed()
    victim.send(Taken(given.id))
    assert listener.expect(Settled) == Settled((1,))
    assert victim.send(Taken(given.id)).is_closed()
    umaster.wait_sample(before + 5, "channel_faults_total", peer="worker", reason="forged-id")


def test_a_worker_with_credit_that_nobody_has(stage: Stage, umaster: Role) -> None:
    supervisor = stage.supervisor()
    assert stage.worker(supervisor, number=1).send(Credit(MAX_CREDIT + 1)).is_closed()
    assert stage.worker(supervisor, number=2).send(Credit(MAX_CREDIT)).send(Credit(1)).is_closed()
    assert stage.worker(supervisor, number=3).send(Credit(65_535)).is_closed()
    umaster.wait_sample(0, "credits", vhost="a")


def test_a_worker_that_passes_what_nobody_takes(stage: Stage) -> None:
    """It gets it back at once, and however often; a passed connection never queues."""
    worker = stage.worker(stage.supervisor()).send(Credit(8))
    with stage.connection() as one:
        for number in range(300):
            worker.raw(encode(Pass(number, CLIENT, "a.test")), one.fileno())
    for number in range(300):
        assert worker.expect(Refuse) == Refuse(number, 503)


def test_a_worker_that_floods_and_reads_nothing(stage: Stage, umaster: Role) -> None:
    before = umaster.faults("worker", "does-not-read")
    worker = stage.worker(stage.supervisor())
    with stage.connection() as one:
        for number in range(2 * MAX_OUTBOX):
            worker.raw(with_header(Pass(0, CLIENT, "a.test"), id=number), one.fileno())
            if number % 4000 == 0:
                assert_serves_now(stage)
            if (
                number > MAX_OUTBOX
                and number % 500 == 0
                and umaster.faults("worker", "does-not-read") > before
            ):
                break
    assert worker.is_closed()
    assert umaster.faults("worker", "does-not-read") == before + 1


def assert_serves_now(stage: Stage) -> None:
    with stage.scene_of_peers():
        assert_serves(stage)


def test_many_descriptors_in_one_packet_and_the_channel_closed(stage: Stage) -> None:
    """Ten thousand descriptors wait in a channel that is closed for its first frame: all are gone with it."""
    listener = stage.listener()
    with stage.connection() as one:
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        listener.sock.setblocking(False)
        sent = 0
        try:
            for _ in range(40):
                socket.send_fds(listener.sock, [b"\0"], [one.fileno()] * 250)
                sent += 250
        except OSError:
            pass
    assert sent >= 250
    assert listener.is_closed()


def test_a_worker_that_goes_before_it_has_taken(stage: Stage) -> None:
    """The listener is asked to offer it again, and only it knows whether anything was read."""
    supervisor = stage.supervisor()
    worker = stage.worker(supervisor).send(Credit(4))
    listener = stage.listener()
    for number in (1, 2, 3):
        listener.send(Route(number, CLIENT, "a.test"), stage.connection())
    taken = worker.expect(Dispatch)
    worker.expect(Dispatch)
    worker.expect(Dispatch)  # an offer that comes after the worker has gone would wait for another
    worker.send(Taken(taken.id)).close()
    heard = [listener.expect(Settled), listener.expect(Retry), listener.expect(Retry)]
    assert heard == [Settled((1,)), Retry(2), Retry(3)]


def test_a_supervisor_that_buries_a_worker(stage: Stage) -> None:
    supervisor = stage.supervisor()
    worker = stage.worker(supervisor, number=6).send(Credit(1))
    listener = stage.listener()
    listener.send(Route(1, CLIENT, "a.test"), stage.connection())
    worker.expect(Dispatch)
    supervisor.send(Gone(6))
    assert listener.expect(Retry) == Retry(1)
    assert worker.is_closed()


def test_a_tenant_that_cannot_make_up_its_mind(stage: Stage) -> None:
    """Only its own clients feel it, and the log doesn't."""
    supervisor = stage.supervisor()
    neighbour = stage.worker(stage.supervisor("b"), "b", 3).send(Credit(1))
    listener = stage.listener()
    listener.send(Route(1, CLIENT, "a.test"), stage.connection())
    assert isinstance(supervisor.expect(Demand), Demand)
    for _ in range(500):
        supervisor.send(Standing("failing")).send(Standing("open"))
    supervisor.send(Standing("failing"))
    assert listener.expect(Refuse) == Refuse(1, 503)
    listener.send(Route(2, CLIENT, "a.test"), stage.connection())
    assert listener.expect(Refuse) == Refuse(2, 503)
    listener.send(Route(3, CLIENT, "b.test"), stage.connection())
    neighbour.expect(Dispatch)


# ---- what an operator sees -------------------------------------------------------------------------------------------


def test_what_the_log_says() -> None:
    """Who it was, what it did, and nothing that it could have made up itself."""
    with Stage() as stage:
        umaster = stage.umaster()
        stage.connect(Directory.VHOST, TENANTS["b"]).send(Hello("vhost", "a")).is_closed()
        stage.connect(Directory.ROUTE, LISTENER_UID).raw(
            b"\x1b[2J\n2026 umaster[1] error: forged"
        ).is_closed()
        stage.listener().raw(encode(Hello("listener", "http"), VERSION)).is_closed()
        supervisor = stage.supervisor()
        stage.worker(supervisor, number=3).send(Taken(17)).is_closed()
        with stage.connection() as one:
            stage.listener().raw(encode(Route(1, CLIENT, "a.test")), one.fileno(), one.fileno()).is_closed()
        broke = "warning: peer broke the protocol"
        for line in (
            f'{broke} peer=vhost name=a fault="not-authorised: uid 20102 as vhost a"',
            f'{broke} peer=unknown name="uid 10010" fault="bad-version: version 27, 1 is spoken here"',
            f'{broke} peer=listener name=http fault="not-permitted: Hello in open"',
            f'{broke} peer=worker name=a/3 fault="forged-id: id 17 was not given to this worker"',
            f'{broke} peer=listener name=http fault="descriptors: more than 1 in a packet"',
        ):
            umaster.logs(re.escape(line))
