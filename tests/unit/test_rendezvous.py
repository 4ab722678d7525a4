"""How roles find each other: by path and uid, or through a door; what an entrance and a link make of the rest."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyttpd import rendezvous, service
from pyttpd.channel import Channel, Faults
from pyttpd.loop import Budget
from pyttpd.rendezvous import Caller, Door, Entrance, Link
from pyttpd.roles import Channel as Directory
from pyttpd.wire import messages as m

from support.wired import Recorder, Stage, connection, pair, send_raw, stage

HELLO = m.Hello("listener", "http")


@pytest.fixture
def on() -> Iterator[Stage]:
    with stage() as one:
        yield one


class Gate:
    """An entrance on a path, and who came in."""

    def __init__(self, on: Stage, folder: Path) -> None:
        self.on = on
        self.folder = folder
        (folder / "route").mkdir(mode=0o755)
        self.sock = service.bind(str(folder / "route"))
        self.faults = Faults()
        self.budget = Budget(50)
        self.inside: list[tuple[Channel, m.Hello]] = []
        self.callers: list[Caller] = []
        self.entrance = Entrance(
            Directory.ROUTE,
            self.sock,
            [],
            loop=on.loop,
            log=on.log,
            faults=self.faults,
            budget=self.budget,
            credits=7,
            authorise=self.authorise,
            on_open=self.on_open,
        )
        on.stack.callback(self.clear)

    def clear(self) -> None:
        for channel, _ in self.inside:
            channel.close()
        self.sock.close()

    def authorise(self, caller: Caller, hello: m.Hello) -> bool:
        self.callers.append(caller)
        return caller.is_a("listener", "http", os.geteuid()) and hello[:2] == HELLO[:2]

    def on_open(self, channel: Channel, hello: m.Hello) -> None:
        record = Recorder()
        channel.on_message, channel.on_close = record.on_message, record.on_close
        self.inside.append((channel, hello))

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(str(self.folder / "route" / "sock"))
        self.on.stack.callback(sock.close)
        return sock

    def link(self, uid: int, hello: m.Hello = HELLO) -> tuple[Link, list[m.Welcome], list[str]]:
        welcomes: list[m.Welcome] = []
        lost: list[str] = []
        link = Link(
            Directory.ROUTE,
            folder=str(self.folder / "route"),
            door=None,
            binder="umaster",
            binder_uid=uid,
            hello=hello,
            loop=self.on.loop,
            log=self.on.log,
            faults=self.on.faults,
            on_open=lambda _channel, welcome: welcomes.append(welcome),
            on_message=lambda _channel, _message, _fd: None,
            on_lost=lost.append,
        )
        self.on.stack.callback(link.close)
        link.start()
        return link, welcomes, lost


@pytest.fixture
def gate(on: Stage, tmp_path: Path) -> Gate:
    return Gate(on, tmp_path)


def test_by_path_and_uid(gate: Gate) -> None:
    gate.entrance.open()
    link, welcomes, lost = gate.link(os.geteuid())
    gate.on.until(lambda: welcomes)
    assert welcomes == [m.Welcome(m.VERSION, 7)]
    assert str(gate.callers[0]) == f"uid {os.geteuid()}"
    assert gate.budget.used == 1
    gate.inside[0][0].close()
    gate.on.until(lambda: len(welcomes) == 2)  # it comes back by itself
    assert len(lost) == 1
    assert link.is_open


def test_a_wrong_uid_has_bound_the_socket(gate: Gate) -> None:
    gate.entrance.open()
    _, welcomes, _ = gate.link(os.geteuid() + 1)
    gate.on.turns(0.1)
    assert not welcomes
    assert not gate.callers
    assert gate.on.faults.counts["umaster", "not-authorised"] >= 1


def test_a_binder_that_is_away_is_waited_for_with_growing_delay(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "LAST_DELAY", 0.05)
    path = gate.folder / "route" / "sock"
    path.rename(path.with_name("away"))
    _, welcomes, _ = gate.link(os.geteuid())
    gate.on.until(lambda: any("peer is away" in line for line in gate.on.lines))
    path.with_name("away").rename(path)
    gate.entrance.open()
    gate.on.until(lambda: welcomes)


def test_who_is_turned_away_time_and_again_says_so(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a container's own log has it, when its uid or its name isn't the configuration's."""
    monkeypatch.setattr(rendezvous, "LAST_DELAY", 0.05)
    monkeypatch.setattr(gate.entrance, "_authorise", lambda _caller, _hello: False)
    gate.entrance.open()
    _, welcomes, lost = gate.link(os.geteuid())
    gate.on.until(lambda: any("turned away" in line for line in gate.on.lines))
    gate.on.turns(0.2)
    assert len([line for line in gate.on.lines if "turned away" in line]) == 1
    assert not welcomes
    assert not lost


def test_of_who_is_turned_away_time_and_again_the_log_is_told_once_in_a_while(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "LAST_DELAY", 0.05)
    monkeypatch.setattr(gate.entrance, "_authorise", lambda _caller, _hello: False)
    gate.entrance.open()
    gate.link(os.geteuid())

    def told() -> int:
        return sum("broke the protocol" in line for line in gate.on.lines)

    def counted() -> int:
        return sum(n for (_, reason), n in gate.faults.counts.items() if reason == "not-authorised")

    gate.on.until(lambda: counted() >= 3)
    assert told() == 1
    monkeypatch.setattr(rendezvous, "TOLD_FOR", 0.0)
    gate.on.until(lambda: told() >= 2)


def test_who_was_told_of_is_remembered_within_a_bound(gate: Gate) -> None:
    for number in range(3 * rendezvous.MAX_TOLD):
        assert not gate.entrance._told_of(f"uid {number}")
        assert gate.entrance._told_of(f"uid {number}")
        assert len(gate.entrance._told) <= rendezvous.MAX_TOLD


def test_who_says_nothing_is_closed_in_time(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "HELLO_TIMEOUT", 0.05)
    gate.entrance.open()
    silent = gate.connect()
    gate.on.until(lambda: gate.faults.counts)
    assert {reason for _, reason in gate.faults.counts} == {"silent"}
    assert silent.recv(10) == b""
    assert gate.budget.used == 0


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"junk", "truncated"),
        (m.encode(m.Route(1, m.Client("127.0.0.1", 1), "a"), m.GREETING_VERSION), "descriptors"),
        (m.encode(m.Goodbye(""), m.GREETING_VERSION), "not-permitted"),
        (m.encode(m.Hello("vhost", "http")), "not-authorised"),
        (m.encode(m.Hello("listener", "http", m.VERSION + 1, 9)), "bad-version"),
    ],
)
def test_who_says_something_else_is_closed(gate: Gate, frame: bytes, reason: str) -> None:
    gate.entrance.open()
    peer = gate.connect()
    send_raw(peer, frame)
    gate.on.until(lambda: gate.faults.counts)
    assert {found for _, found in gate.faults.counts} <= {reason, "not-permitted"}
    assert not gate.inside
    assert gate.budget.used == 0


@pytest.mark.parametrize(
    ("ours", "theirs", "spoken"),
    [
        ((1, 2), (1, 1), 1),  # the connector is one behind
        ((1, 1), (1, 2), 1),  # and the binder
        ((1, 2), (1, 2), 2),
        ((2, 3), (1, 2), 2),  # the version after next, and none speaks the first any more
        ((1, 2), (2, 3), 2),
        ((2, 3), (2, 3), 3),
    ],
)
def test_two_that_are_one_version_apart_speak_the_older(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, ours: tuple[int, int], theirs: tuple[int, int], spoken: int
) -> None:
    monkeypatch.setattr(rendezvous, "OLDEST_VERSION", ours[0])
    monkeypatch.setattr(rendezvous, "VERSION", ours[1])
    gate.entrance.open()
    link, welcomes, _ = gate.link(os.geteuid(), m.Hello("listener", "http", *theirs))
    gate.on.until(lambda: welcomes)
    (inside, _), outside = gate.inside[0], link.channel
    assert outside is not None
    assert (welcomes[0].version, inside.version, outside.version) == (spoken, spoken, spoken)
    # What is said now is framed so: the socket is read in place of the channel.
    assert inside.send(m.Retry(7))
    frame = outside.sock.recv(m.MAX_FRAME)
    assert frame[0] == spoken
    assert m.decode(frame, spoken) == m.Retry(7)
    assert outside.send(m.Goodbye("so"))
    record = Recorder()
    inside.on_message = record.on_message
    gate.on.until(lambda: record.messages)
    assert not gate.faults.counts
    assert not gate.on.faults.counts


@pytest.mark.parametrize("theirs", [(3, 4), (1, 1)])
def test_two_that_are_two_versions_apart_say_so_once_each_and_try_on(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, theirs: tuple[int, int]
) -> None:
    monkeypatch.setattr(rendezvous, "OLDEST_VERSION", 2)
    monkeypatch.setattr(rendezvous, "VERSION", 2)
    gate.entrance.open()
    _, welcomes, lost = gate.link(os.geteuid(), m.Hello("listener", "http", *theirs))
    gate.on.until(lambda: gate.on.faults.counts.get(("umaster", "bad-version"), 0) >= 3)
    assert gate.faults.counts.keys() == {("listener", "bad-version")}
    assert gate.on.faults.counts.keys() == {("umaster", "bad-version")}
    told = [line for line in gate.on.lines if "bad-version" in line and "broke" in line]
    assert len(told) == 2, told
    assert (
        sum(f"speaks versions {theirs[0]} to {theirs[1]}, 2 to 2 are understood here" in one for one in told)
        == 1
    )
    assert (
        sum(f"umaster speaks version 2, {theirs[0]} to {theirs[1]} are understood" in one for one in told)
        == 1
    )
    assert not welcomes
    assert not lost
    assert not gate.inside
    # The delay has doubled each time and isn't reset by a Welcome of no use.
    gate.on.turns(0.2)
    assert gate.faults.counts["listener", "bad-version"] < 10


def test_a_greeting_is_framed_as_version_1_whatever_both_speak(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "OLDEST_VERSION", 2)
    monkeypatch.setattr(rendezvous, "VERSION", 3)
    gate.entrance.open()
    for version, reason in ((1, None), (3, "bad-version")):
        peer = gate.connect()
        send_raw(peer, m.encode(m.Hello("listener", "http", 2, 3), version))
        if reason is None:
            gate.on.until(lambda: gate.inside)
            assert m.decode(peer.recv(m.MAX_FRAME), 1) == m.Welcome(3, 7)
            send_raw(peer, m.encode(m.Goodbye("in the old version"), 2))  # 3 was agreed on
        gate.on.until(lambda: gate.inside[0][0].closed)
    gate.on.until(lambda: gate.faults.counts.get(("unknown", "bad-version")))


def test_a_closed_entrance_lets_nobody_in(gate: Gate) -> None:
    gate.entrance.open()
    gate.entrance.open()
    gate.entrance.close()
    gate.entrance.close()
    peer = gate.connect()
    send_raw(peer, m.encode(HELLO))
    gate.on.turns(0.05)
    assert not gate.inside


def test_through_a_door(on: Stage) -> None:
    played = on.play(Directory.ROUTE)
    theirs, ours = pair()
    record = Recorder()
    link = Link(
        Directory.ROUTE,
        folder="",
        door=Door(Directory.ROUTE, "umaster", "", os.dup(on._doors[Directory.ROUTE][1].fileno())),
        binder="umaster",
        binder_uid=-1,
        hello=HELLO,
        loop=on.loop,
        log=on.log,
        faults=on.faults,
        on_open=lambda _channel, _welcome: None,
        on_message=record.on_message,
        on_lost=lambda _reason: None,
    )
    link.start()
    on.until(lambda: played.channels and link.is_open)
    assert played.hellos == [HELLO]
    link.close()
    assert link._door is not None
    link._door.close()
    for end in (theirs, ours):
        end.close()


def test_what_is_no_channel_does_not_come_through_a_door(on: Stage) -> None:
    played = on.play(Directory.ROUTE)
    door = on._doors[Directory.ROUTE][1]
    read, write = os.pipe()
    with connection() as (server, _):
        send_raw(door, b"\0", server.fileno())
        send_raw(door, b"\0", read)
        send_raw(door, b"\0", read, write)
        send_raw(door, b"\0\0", read)
        send_raw(door, b"\0")
        on.turns(0.05)
    os.close(read)
    os.close(write)
    assert not played.channels
    ours, theirs = pair()
    with ours, theirs:
        send_raw(door, b"\0", theirs.fileno())
        theirs.close()
        send_raw(ours, m.encode(HELLO))
        on.until(lambda: played.channels)


def test_a_directory_that_others_can_write_in_is_not_bound(tmp_path: Path) -> None:
    with pytest.raises(service.StartError, match="no such directory"):
        service.bind(str(tmp_path / "none"))
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(service.StartError, match="nobody else can write"):
        service.bind(str(open_to_all))
    good = tmp_path / "good"
    good.mkdir(mode=0o755)
    for _ in range(2):  # in place of what a predecessor left
        with service.bind(str(good)):
            assert (good / "sock").stat().st_mode & 0o777 == 0o666


def test_in_a_volume_that_everybody_can_write_in_the_binder_makes_a_directory_of_its_own(
    tmp_path: Path,
) -> None:
    volume = tmp_path / "route"
    volume.mkdir()
    volume.chmod(0o2777)
    options = service.Options(runtime_dir=str(tmp_path), volumes=True)
    path = service.directory_path(options, Directory.ROUTE)
    for _ in range(2):
        service.make_own(path)
        with service.bind(path):
            found = (volume / service.OWN_DIRECTORY).stat()
            assert (found.st_uid, found.st_mode & 0o777) == (os.geteuid(), 0o755)
    (volume / service.OWN_DIRECTORY).chmod(0o775)
    service.make_own(path)
    with pytest.raises(service.StartError, match="nobody else can write"):
        service.bind(path)


def test_a_volume_that_can_not_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(service.StartError, match=r"cannot be made: .* has to be mounted to be written"):
        service.make_own(str(tmp_path / "none" / service.OWN_DIRECTORY))
