"""The hand-off protocol: what a worker and a program say to each other, and the codec for the worker's side. No I/O.

Rules
  1. One packet of a SOCK_SEQPACKET socket is one message: a header of 8 bytes, and a body whose fields are all there,
     with nothing behind them.

         version u8 | type u8 | reserved u16 (0) | id u32                               (network byte order)

  2. A text is its length (u16) and so many bytes of UTF-8.
  3. What a program says is the tenant's word: every length is checked before it is used, and a text is cut and made
     printable by who logs it. What isn't a message, or isn't one for that moment (`PERMITTED`), ends the channel.

In step with: docs/handoff.md, which is for those who write programs; examples/handoff/pyttpd_handoff.py, the other end,
which shares no code with this; tests/test_handoff_frames.py, one case table for both.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

from pyttpd.wire.errors import LocalProtocolError

#: The one version there is. A worker says the highest that it knows; a program answers with the one that both speak.
VERSION: Final = 1
HEADER: Final = struct.Struct("!BBHI")
#: What a program may say in one packet: the longest is a text.
MAX_ANSWER: Final = 512
MAX_TEXT: Final = 255
#: What a worker may say in one text: a mount's path is the longest.
MAX_OWN_TEXT: Final = 4096
#: Connections that a program may ask for ahead. Whoever says more doesn't mean it; and so many answers (each a packet
#: of some 800 bytes for the kernel) fit into a socket's buffer unread.
MAX_CREDIT: Final = 128


class BadMessage(Exception):
    """A program has said what this protocol doesn't have. `reason` is a fixed word."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class Type(enum.IntEnum):
    """The type in a header."""

    HELLO = 1
    WELCOME = 2
    CONNECTION = 3
    ACCEPTED = 4
    BUSY = 5
    CREDIT = 6
    GOODBYE = 7


class Flags(enum.IntFlag):
    """Of CONNECTION."""

    #: All paths of the vhost are the program's: it needn't end the connection after its answer.
    WHOLE = 1
    #: The client's own connection, to a proxy that is trusted, is HTTPS.
    SECURE = 2


@dataclass(frozen=True, slots=True)
class Hello:
    """worker -> program: the first message. `highest`: the last version that the worker speaks."""

    highest: int
    vhost: str


@dataclass(frozen=True, slots=True)
class Welcome:
    """program -> worker: the answer, in the version that is spoken from here on."""

    credit: int
    name: str


@dataclass(frozen=True, slots=True)
class Connection:
    """worker -> program, with the client's socket. `data`: what has been read from it already."""

    id: int
    flags: Flags
    address: str
    port: int
    host: str
    mount: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Accepted:
    """program -> worker: the connection `id` is the program's."""

    id: int


@dataclass(frozen=True, slots=True)
class Busy:
    """program -> worker: it isn't; nothing was read from it, and the program's copy is closed."""

    id: int


@dataclass(frozen=True, slots=True)
class Credit:
    """program -> worker: it takes so many connections more."""

    count: int


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Either way: no connection will come, or should come, over this channel any more."""

    reason: str


Outgoing: TypeAlias = Hello | Connection | Goodbye
Incoming: TypeAlias = Welcome | Accepted | Busy | Credit | Goodbye


class State(enum.Enum):
    """How a worker sees a channel."""

    GREETED = enum.auto()  # Hello is said, and not yet answered
    OPEN = enum.auto()
    OFFERED = enum.auto()  # a connection is on its way, and neither accepted nor refused
    CLOSED = enum.auto()


#: What a program may say in each state, and the state after it. What isn't here is a fault of the program.
PERMITTED: Final[dict[State, dict[type, State]]] = {
    State.GREETED: {Welcome: State.OPEN, Goodbye: State.CLOSED},
    State.OPEN: {Credit: State.OPEN, Goodbye: State.CLOSED},
    State.OFFERED: {
        Accepted: State.OPEN,
        Busy: State.OPEN,
        Credit: State.OFFERED,
        # said before the connection arrived: it is read all the same, and answered
        Goodbye: State.OFFERED,
    },
    State.CLOSED: {},
}

_BYTE: Final = struct.Struct("!B")
_SHORT: Final = struct.Struct("!H")
_CONNECTION: Final = struct.Struct("!BH")


def _text(value: str) -> bytes:
    data = value.encode()
    if len(data) > MAX_OWN_TEXT:
        raise LocalProtocolError(f"a text of more than {MAX_OWN_TEXT} bytes")
    return _SHORT.pack(len(data)) + data


def encode(message: Outgoing) -> bytes:
    """Return the packet of what a worker says. Raises LocalProtocolError."""
    match message:
        case Hello(highest, vhost):
            return _packet(Type.HELLO, 0, _BYTE.pack(highest) + _text(vhost))
        case Connection(id_, flags, address, port, host, mount, data):
            body = _CONNECTION.pack(flags, port) + _text(address) + _text(host) + _text(mount) + data
            return _packet(Type.CONNECTION, id_, body)
        case Goodbye(reason):
            return _packet(Type.GOODBYE, 0, _text(reason))


def _packet(kind: Type, id_: int, body: bytes) -> bytes:
    return HEADER.pack(VERSION, kind, 0, id_) + body


def decode(packet: bytes) -> Incoming:
    """Return what a program has said. Raises BadMessage."""
    if not HEADER.size <= len(packet) <= MAX_ANSWER:
        raise BadMessage("size", f"a packet of {len(packet)} bytes")
    version, kind, reserved, id_ = HEADER.unpack_from(packet)
    body = packet[HEADER.size :]
    if version != VERSION:
        raise BadMessage("version", f"version {version} is not spoken here")
    if reserved:
        raise BadMessage("reserved", "the reserved bytes are not 0")
    if kind in (Type.ACCEPTED, Type.BUSY):
        _end(body)
        return Accepted(id_) if kind == Type.ACCEPTED else Busy(id_)
    if id_:
        raise BadMessage("id", "an id where none belongs")
    match kind:
        case Type.WELCOME:
            credit, body = _short(body)
            name, body = _read_text(body)
            _end(body)
            return Welcome(_credit(credit), name)
        case Type.CREDIT:
            credit, body = _short(body)
            _end(body)
            return Credit(_credit(credit))
        case Type.GOODBYE:
            reason, body = _read_text(body)
            _end(body)
            return Goodbye(reason)
        case _:
            raise BadMessage("type", f"type {kind} is not for a program to send")


def _short(body: bytes) -> tuple[int, bytes]:
    if len(body) < _SHORT.size:
        raise BadMessage("short", "a field is missing")
    return _SHORT.unpack_from(body)[0], body[_SHORT.size :]


def _read_text(body: bytes) -> tuple[str, bytes]:
    length, body = _short(body)
    if length > MAX_TEXT or length > len(body):
        raise BadMessage("text", "a text that is longer than it may be, or than its packet")
    try:
        return body[:length].decode(), body[length:]
    except UnicodeDecodeError:
        raise BadMessage("text", "a text that is not UTF-8") from None


def _end(body: bytes) -> None:
    if body:
        raise BadMessage("long", f"{len(body)} bytes too many")


def _credit(count: int) -> int:
    if count > MAX_CREDIT:
        raise BadMessage("credit", f"a credit of {count}, more than {MAX_CREDIT}")
    return count
