"""Every (kind, side, phase) x message: permitted or refused, on the sending end and on the receiving one."""

from __future__ import annotations

import socket

import pytest

from pyttpd.wire import messages as m
from pyttpd.wire.errors import LocalProtocolError
from pyttpd.wire.permits import PERMITS, Kind, Phase, Side, first_phase

from support.wired import SAMPLES, Stage, descriptor, is_closed, pair, send_raw, stage

OTHER = {Side.BINDER: Side.CONNECTOR, Side.CONNECTOR: Side.BINDER}
KEYS = sorted(PERMITS, key=lambda key: tuple(part.value for part in key))
GREETING = {Side.CONNECTOR: m.Hello, Side.BINDER: m.Welcome}


def name(key: tuple[Kind, Side, Phase]) -> str:
    return "-".join(part.value for part in key)


def way_to(kind: Kind, side: Side, phase: Phase) -> list[m.Message]:
    """The messages after which a direction of such a channel is in `phase`."""
    way: list[m.Message] = []
    if first_phase(kind) is Phase.HELLO and phase is not Phase.HELLO:
        way.append(SAMPLES[GREETING[side]])
    if phase is Phase.LEAVING:
        way.append(SAMPLES[m.Goodbye])
    return way


def test_there_is_a_row_for_every_phase_that_a_direction_can_reach() -> None:
    for kind in Kind:
        for side in Side:
            assert (kind, side, first_phase(kind)) in PERMITS
    for (kind, side, _), row in PERMITS.items():
        for after in row.values():
            assert (kind, side, after) in PERMITS


def test_no_row_leads_back() -> None:
    order = list(Phase)
    for (_, _, phase), row in PERMITS.items():
        assert all(order.index(after) >= order.index(phase) for after in row.values())


def test_every_message_may_be_said_somewhere() -> None:
    assert {cls for row in PERMITS.values() for cls in row} == set(m.BY_CLASS) == set(SAMPLES)


@pytest.mark.parametrize("key", KEYS, ids=name)
def test_sending(key: tuple[Kind, Side, Phase]) -> None:
    for cls, message in SAMPLES.items():
        with stage() as on, descriptor(m.BY_CLASS[cls].descriptor) as fd:
            _sending(on, key, message, fd)


def _sending(on: Stage, key: tuple[Kind, Side, Phase], message: m.Message, fd: int | None) -> None:
    kind, side, _ = key
    ours, theirs = pair()
    sender, _ = on.channel(ours, kind, side)
    receiver, record = on.channel(theirs, kind, OTHER[side])
    way = way_to(*key)
    for step in way:
        assert sender.send(step)
    if type(message) in PERMITS[key]:
        assert sender.send(message, fd)
        receiver.receive(16)
        assert record.messages == [*way, message]
        assert len(record.fds) == (fd is not None)
        assert not record.ends
    else:
        with pytest.raises(LocalProtocolError):
            sender.send(message, fd)
        receiver.receive(16)
        assert record.messages == way
        assert not sender.closed


@pytest.mark.parametrize("key", KEYS, ids=name)
def test_receiving(key: tuple[Kind, Side, Phase]) -> None:
    for cls, message in SAMPLES.items():
        with stage() as on, descriptor(m.BY_CLASS[cls].descriptor) as fd:
            _receiving(on, key, message, fd)


def _receiving(on: Stage, key: tuple[Kind, Side, Phase], message: m.Message, fd: int | None) -> None:
    kind, side, _ = key
    ours, theirs = pair()
    receiver, record = on.channel(ours, kind, OTHER[side])
    way = way_to(*key)
    with theirs:
        for step in way:
            send_raw(theirs, m.encode(step, receiver.version))
        send_raw(theirs, m.encode(message, receiver.version), *(() if fd is None else (fd,)))
        receiver.receive(16)
        if type(message) in PERMITS[key]:
            assert record.messages == [*way, message]
            assert len(record.fds) == (fd is not None)
            assert not record.ends
            assert not on.faults.counts
        else:
            assert record.messages == way
            assert record.ends == ["not-permitted"]
            assert on.faults.counts == {("peer", "not-permitted"): 1}
            assert receiver.closed
            assert is_closed(theirs)


@pytest.mark.parametrize("cls", SAMPLES, ids=lambda cls: cls.__name__)
def test_a_descriptor_too_few_or_too_many_is_refused_on_both_ends(cls: m.MessageType) -> None:
    message = SAMPLES[cls]
    key = next(key for key in KEYS if cls in PERMITS[key])
    kind, side, _ = key
    wanted = m.BY_CLASS[cls].descriptor
    with stage() as on, descriptor(m.DescriptorKind.CONNECTION if wanted is None else None) as wrong:
        sender, _ = on.channel(pair_kept(on), kind, side)
        for step in way_to(*key):
            sender.send(step)
        with pytest.raises(LocalProtocolError):
            sender.send(message, wrong)
        ours, theirs = pair()
        receiver, record = on.channel(ours, kind, OTHER[side])
        with theirs:
            for step in way_to(*key):
                send_raw(theirs, m.encode(step, receiver.version))
            send_raw(theirs, m.encode(message, receiver.version), *(() if wrong is None else (wrong,)))
            on.until(lambda: record.ends)
        assert record.ends == ["descriptors"]
        assert not record.fds


def pair_kept(on: Stage) -> socket.socket:
    ours, theirs = pair()
    on.stack.callback(theirs.close)
    return ours
