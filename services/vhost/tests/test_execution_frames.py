"""The frames of the exec service: one table for encoder and decoder, and what no decoder may take."""

from __future__ import annotations

import random
import struct

import pytest

from pyttpd.wire.errors import LocalProtocolError, RemoteProtocolError

from pyttpd_vhost.execution.frames import (
    HEADER,
    MAX_FRAME,
    MAX_TEXT,
    STDERR,
    STDIN,
    STDOUT,
    TYPES,
    VERSION,
    Cause,
    Connect,
    Connected,
    Ended,
    Frame,
    Limits,
    Refusal,
    Refused,
    Run,
    Side,
    Signal,
    Started,
    TooLarge,
    decode,
    encode,
)

#: A frame and the descriptors that belong to it.
CASES: list[tuple[Frame, int]] = [
    (Run((b"/bin/true",), {}, b"/"), 1),
    (Run((b"a", b"", b"c d"), {b"A": b"", b"B": b"x=y"}, b"/tmp", streams=STDIN), 2),
    (
        Run(
            (b"php-cgi",),
            {b"PATH": b"\xff"},
            b"/srv",
            Limits(wall=1.5, cpu=10, memory=1 << 40, processes=99),
            STDIN | STDOUT | STDERR,
        ),
        4,
    ),
    (Connect(0), 1),
    (Connect(65535), 1),
    (Signal(15), 0),
    (Started(1, 2), 0),
    (Started(2**31 - 1, 5, STDIN | STDERR), 2),
    (Connected(), 1),
    (Refused(Refusal.BUSY), 0),
    (Refused(Refusal.EXEC, 2, "No such file or directory"), 0),
    (Ended(0), 0),
    (Ended(-9, Cause.WALL, 1.25, 1 << 40), 0),
]
SENDERS = {cls: row.sender for cls, row in TYPES.items()}


@pytest.mark.parametrize(("frame", "descriptors"), CASES)
def test_there_and_back(frame: Frame, descriptors: int) -> None:
    assert decode(encode(frame), descriptors, SENDERS[type(frame)]) == frame


@pytest.mark.parametrize(("frame", "descriptors"), CASES)
def test_cut_short_or_with_more_behind_it(frame: Frame, descriptors: int) -> None:
    raw = encode(frame)
    for end in range(len(raw)):
        with pytest.raises(RemoteProtocolError):
            decode(raw[:end], descriptors, SENDERS[type(frame)])
    with pytest.raises(RemoteProtocolError):
        decode(raw + b"\0", descriptors, SENDERS[type(frame)])


@pytest.mark.parametrize(("frame", "descriptors"), CASES)
def test_other_descriptors_and_the_other_side(frame: Frame, descriptors: int) -> None:
    raw = encode(frame)
    for number in {0, 1, 2, 3, 4, 5} - {descriptors}:
        with pytest.raises(RemoteProtocolError, match="descriptors"):
            decode(raw, number, SENDERS[type(frame)])
    other = next(side for side in Side if side is not SENDERS[type(frame)])
    with pytest.raises(RemoteProtocolError, match="not-permitted"):
        decode(raw, descriptors, other)


def test_every_type_is_in_the_table() -> None:
    assert {type(frame) for frame, _ in CASES} == set(TYPES)
    assert len({row.number for row in TYPES.values()}) == len(TYPES)


def head(number: int, body: bytes, *, version: int = VERSION, flags: int = 0, reserved: int = 0) -> bytes:
    return HEADER.pack(version, number, flags, reserved, len(body)) + body


def run(
    *,
    directory: bytes = b"/",
    argv: bytes = b"x\0",
    argc: int = 1,
    env: bytes = b"",
    envc: int = 0,
) -> bytes:
    fixed = struct.pack("!IIQIHHIHI", 0, 0, 0, 0, len(directory), argc, len(argv), envc, len(env))
    return head(1, fixed + directory + argv + env)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        head(1, b"", version=2),
        head(0, b""),
        head(99, b""),
        head(3, b"\x0f", reserved=1),
        head(3, b"\x0f", flags=1),  # no streams travel with a signal
        head(3, b"\x09"),  # SIGKILL: that is closing the pair
        head(3, b"\x13"),  # SIGSTOP
        head(3, b"\x00"),
        head(2, b"\0"),
        run(directory=b""),
        run(directory=b"tmp"),
        run(directory=b"/a\0b"),
        run(directory=b"/" + b"x" * 4095),
        run(argv=b"", argc=0),
        run(argv=b"\0"),
        run(argv=b"x", argc=1),
        run(argv=b"x\0y\0", argc=1),
        run(argv=b"x\0", argc=2),
        run(argv=b"x\0" * 4097, argc=4097),
        run(env=b"A=1", envc=1),
        run(env=b"A\0", envc=1),
        run(env=b"=1\0", envc=1),
        run(env=b"A=1\0A=2\0", envc=2),
        run(env=b"A=1\0", envc=0),
    ],
)
def test_what_no_service_takes(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(raw, 1 if raw[1:2] in (b"\1", b"\2") else 0, Side.REQUESTER)


@pytest.mark.parametrize(
    "raw",
    [
        head(16, struct.pack("!II", 0, 1)),
        head(18, struct.pack("!BiH", 99, 0, 0)),
        head(18, struct.pack("!BiH", 1, 0, 1) + b"\n"),
        head(18, struct.pack("!BiH", 1, 0, 2) + b"x"),
        head(19, struct.pack("!iBQQ", 0, 9, 0, 0)),
        head(17, b"x"),
    ],
)
def test_what_no_requester_takes(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(raw, 1 if raw[1] == 17 else 0, Side.SERVICE)


@pytest.mark.parametrize(
    "frame",
    [
        Run((b"a\0b",), {}, b"/"),
        Run((b"a",), {b"A": b"\0"}, b"/"),
        Run((b"a",), {b"A=": b""}, b"/"),
        Run((b"a",), {b"": b""}, b"/"),
        Run((b"a",), {}, b"/\0"),
    ],
)
def test_what_no_program_can_be_given(frame: Run) -> None:
    with pytest.raises(LocalProtocolError):
        encode(frame)


@pytest.mark.parametrize(
    "frame",
    [
        Run((b"x" * MAX_FRAME,), {}, b"/"),
        Run((b"x",) * 4097, {}, b"/"),
        Run((b"x",) * 70000, {}, b"/"),
        Run((b"x",), {b"%d" % n: b"" for n in range(4097)}, b"/"),
        Run((b"x",), {}, b"/" * 5000),
        Run((b"x",), {}, b"/", Limits(cpu=1 << 40)),
    ],
)
def test_what_is_too_large(frame: Run) -> None:
    with pytest.raises(TooLarge):
        encode(frame)


def test_a_reason_is_printable_and_bounded() -> None:
    refused = decode(encode(Refused(Refusal.EXEC, 0, "\x1b[2Jä\n" + "x" * 9999)), 0, Side.SERVICE)
    assert isinstance(refused, Refused)
    assert refused.text.startswith("?[2J\\xe4?x")
    assert len(refused.text) == MAX_TEXT


def test_noise_is_refused_or_a_frame() -> None:
    """Changed bytes and random ones: a RemoteProtocolError, or a frame of the tables; nothing else is raised."""
    noise = random.Random(6)
    for _ in range(20_000):
        frame, descriptors = noise.choice(CASES)
        raw = bytearray(encode(frame))
        for _ in range(noise.randrange(1, 4)):
            raw[noise.randrange(len(raw))] = noise.randrange(256)
        try:
            found = decode(bytes(raw), descriptors, SENDERS[type(frame)])
        except RemoteProtocolError:
            continue
        assert type(found) in TYPES
