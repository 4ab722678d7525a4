"""What is said to the exec service and to the reapers that it forks, and the codec for it.

Rules
  1. One packet of a SOCK_SEQPACKET socket is one frame: a header of 8 bytes, a body of exactly the length that this
     says, and as many descriptors as the type and its flags ask for, no more and no fewer.

         version u8 | type u8 | flags u8 | reserved u8 (0) | body length u32            (network byte order)

  2. Who wants a program run (a worker, the supervisor: the *requester*) makes a pair of sockets, and sends RUN with one
     end of it on the service's door. What is said afterwards is said on that pair: STARTED or REFUSED, then ENDED by
     the reaper, SIGNAL by the requester. Whoever closes its end ends it: the reaper's end closes when nothing is left
     of the program, the requester's when nothing is to be left.
  3. Everybody at these sockets runs the tenant's code or could: every length is checked before it is used, every text
     before it is told to a log. What isn't a frame of these tables is a fault of the sender, which is answered by no
     more than the end of its pair.

`TYPES` says who may send what, and with which descriptors:

    RUN      requester -> service   its end of the pair, then stdin, stdout, stderr as far as the flags give them
    CONNECT  requester -> service   its end of the pair
    STARTED  reaper -> requester    stdin, stdout, stderr as far as the flags give them: the ends of pipes
    CONNECTED service -> requester  the connection
    REFUSED  service, reaper -> requester
    ENDED    reaper -> requester
    SIGNAL   requester -> reaper

In step with: PROTOCOL.md (section "The exec service"), tests/test_execution_frames.py (one case table for both ways).
"""

from __future__ import annotations

import enum
import re
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from pyttpd.wire.errors import LocalProtocolError, RemoteProtocolError

VERSION: Final = 1
HEADER: Final = struct.Struct("!BBBBI")
#: A request's head of 64 KiB as meta-variables (a name grows by `HTTP_`), a tenant's `env` of 64 KiB, arguments and the
#: server's own variables fit. More than net.core.wmem_default (208 KiB, less what a packet costs) can't be one packet.
MAX_FRAME: Final = 192 * 1024
#: Of what is said to a requester, the longest is a reason.
MAX_ANSWER: Final = 1024
#: Each of these is at least two bytes of the frame; the kernel has no limit of its own on how many.
MAX_ARGUMENTS: Final = 4096
MAX_VARIABLES: Final = 4096
MAX_DIRECTORY: Final = 4095
MAX_TEXT: Final = 512
_TEXT: Final = re.compile(rb"[\x20-\x7e]{0,512}\Z")

#: Flags: which of the three standard streams travel with the frame.
STDIN, STDOUT, STDERR = 1, 2, 4
_STREAMS: Final = STDIN | STDOUT | STDERR
#: The most descriptors that one frame takes.
MAX_DESCRIPTORS: Final = 4

#: What a requester may have a program told; for the end of everything it closes its end of the pair.
SIGNALS: Final = frozenset(
    {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM}
)


class Refusal(enum.Enum):
    """Why nothing was started (or connected); the first word goes into metrics, the number over the wire."""

    BUSY = 1  # as many as may run do, and the queue is full, or the request has waited in it for too long
    PROCESSES = 2  # no process could be forked: the tenant has used up its own
    EXEC = 3  # the kernel doesn't run it: `code` is its errno
    DIRECTORY = 4  # the working directory can't be entered: `code` is the errno
    BACKEND = 5  # nobody listens there: `code` is the errno


class Cause(enum.Enum):
    """How a program came to its end."""

    ITSELF = 0  # it exited, or a signal ended it that isn't ours
    WALL = 1  # its time was over


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use; 0 is no limit, or the tenant's own.

    wall: seconds until it is ended. cpu: seconds of processor time, each process (RLIMIT_CPU). memory: bytes of
    address space, each process (RLIMIT_AS). processes: as many as its user may have in all (RLIMIT_NPROC).
    """

    wall: float = 0.0
    cpu: int = 0
    memory: int = 0
    processes: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """Run a program. `streams`: which of stdin, stdout, stderr come with it; the others are to be pipes."""

    argv: tuple[bytes, ...]
    environment: dict[bytes, bytes]
    directory: bytes
    limits: Limits = Limits()
    streams: int = 0


@dataclass(frozen=True, slots=True)
class Connect:
    """Connect to the socket of the configured backend `mount`, for who may not connect itself."""

    mount: int


@dataclass(frozen=True, slots=True)
class Started:
    """The program runs (execve has succeeded) as process `pid`, below reaper `reaper`."""

    pid: int
    reaper: int
    streams: int = 0


@dataclass(frozen=True, slots=True)
class Connected:
    """Here is the connection."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was started. `text` is for people: printable ASCII."""

    reason: Refusal
    code: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """The program has ended; `status` as of os.waitstatus_to_exitcode. cpu: seconds, its own and its children's that it
    has waited for. memory: the most it had resident (bytes; never less than its reaper has, whose fork it was).
    """

    status: int
    cause: Cause = Cause.ITSELF
    cpu: float = 0.0
    memory: int = 0


@dataclass(frozen=True, slots=True)
class Signal:
    """Send this to the program's process group."""

    number: int


Frame: TypeAlias = Run | Connect | Started | Connected | Refused | Ended | Signal


class Side(enum.Enum):
    """Who sends."""

    REQUESTER = "requester"
    SERVICE = "service"


_RUN = struct.Struct("!IIQIHHIHI")
_CONNECT = struct.Struct("!H")
_STARTED = struct.Struct("!II")
_REFUSED = struct.Struct("!BiH")
_ENDED = struct.Struct("!iBQQ")
_SIGNAL = struct.Struct("!B")


def _strings(values: tuple[bytes, ...]) -> bytes:
    return b"".join([value + b"\0" for value in values])


def _encode_run(frame: Run) -> bytes:
    limits = frame.limits
    environment = tuple([name + b"=" + value for name, value in frame.environment.items()])
    if any(b"\0" in text for text in (*frame.argv, *environment, frame.directory)):
        raise LocalProtocolError("a NUL in an argument, a variable or the directory")
    if any(not name or b"=" in name for name in frame.environment):
        raise LocalProtocolError("a variable without a name, or with = in it")
    argv, variables = _strings(frame.argv), _strings(environment)
    head = _RUN.pack(
        min(round(limits.wall * 1000), 0xFFFFFFFF),
        limits.cpu,
        limits.memory,
        limits.processes,
        len(frame.directory),
        len(frame.argv),
        len(argv),
        len(environment),
        len(variables),
    )
    return b"".join((head, frame.directory, argv, variables))


def _split(section: bytes, count: int, what: str) -> tuple[bytes, ...]:
    """Return the `count` strings that `section` holds, each with its NUL."""
    if section[-1:] not in (b"", b"\0") or section.count(b"\0") != count:
        raise RemoteProtocolError("bad-length", f"{what} of another number than said")
    return tuple(section[:-1].split(b"\0")) if count else ()


def _decode_run(body: bytes, streams: int) -> Run:
    if len(body) < _RUN.size:
        raise RemoteProtocolError("bad-length", "a RUN that is too short")
    wall, cpu, memory, processes, directory_size, argc, argv_size, envc, env_size = _RUN.unpack_from(body)
    sizes = (directory_size, argv_size, env_size)
    if len(body) != _RUN.size + sum(sizes):
        raise RemoteProtocolError("bad-length", "a RUN whose parts aren't as long as they say")
    if not 0 < argc <= MAX_ARGUMENTS or envc > MAX_VARIABLES or not 0 < directory_size <= MAX_DIRECTORY:
        raise RemoteProtocolError("bad-field", "too many arguments or variables, or no program or directory")
    parts, at = [], _RUN.size
    for size in sizes:
        parts.append(body[at : at + size])
        at += size
    directory, argv, variables = parts
    if directory[:1] != b"/" or b"\0" in directory:
        raise RemoteProtocolError("bad-field", "a working directory that isn't absolute")
    arguments = _split(argv, argc, "arguments")
    if not arguments[0]:
        raise RemoteProtocolError("bad-field", "a program without a name")
    environment: dict[bytes, bytes] = {}
    for variable in _split(variables, envc, "variables"):
        name, equals, value = variable.partition(b"=")
        if not name or not equals or name in environment:
            raise RemoteProtocolError("bad-field", "a variable without a name, or twice")
        environment[name] = value
    limits = Limits(wall / 1000, cpu, memory, processes)
    return Run(arguments, environment, directory, limits, streams)


def _decode_refused(body: bytes, _: int) -> Refused:
    if len(body) < _REFUSED.size:
        raise RemoteProtocolError("bad-length", "a REFUSED that is too short")
    reason, code, size = _REFUSED.unpack_from(body)
    text = body[_REFUSED.size :]
    if len(text) != size or _TEXT.match(text) is None:
        raise RemoteProtocolError("bad-field", "a reason that isn't text")
    try:
        return Refused(Refusal(reason), code, text.decode("ascii"))
    except ValueError:
        raise RemoteProtocolError("bad-field", f"refused for {reason}") from None


def _decode_ended(body: bytes, _: int) -> Ended:
    status, cause, cpu, memory = _unpack(_ENDED, body)
    try:
        return Ended(status, Cause(cause), cpu / 1000, memory)
    except ValueError:
        raise RemoteProtocolError("bad-field", f"ended because of {cause}") from None


def _decode_signal(body: bytes, _: int) -> Signal:
    (number,) = _unpack(_SIGNAL, body)
    if number not in SIGNALS:
        raise RemoteProtocolError("bad-field", f"signal {number}")
    return Signal(number)


def _decode_started(body: bytes, streams: int) -> Started:
    pid, reaper = _unpack(_STARTED, body)
    if not pid or not reaper:
        raise RemoteProtocolError("bad-field", "process 0")
    return Started(pid, reaper, streams)


def _decode_connected(body: bytes, _: int) -> Connected:
    if body:
        raise RemoteProtocolError("bad-length", "a CONNECTED with a body")
    return Connected()


def _unpack(form: struct.Struct, body: bytes) -> tuple[int, ...]:
    if len(body) != form.size:
        raise RemoteProtocolError("bad-length", f"{len(body)} bytes instead of {form.size}")
    return form.unpack(body)


def _printable(text: str) -> bytes:
    """Return `text` as a reason may be told: it can hold what a tenant chose, a path say."""
    raw = text.encode("ascii", "backslashreplace")
    return bytes(byte if 0x20 <= byte <= 0x7E else 0x3F for byte in raw[:MAX_TEXT])


def _encode_refused(frame: Refused) -> bytes:
    text = _printable(frame.text)
    return _REFUSED.pack(frame.reason.value, frame.code, len(text)) + text


def _encode_ended(frame: Ended) -> bytes:
    return _ENDED.pack(frame.status, frame.cause.value, round(frame.cpu * 1000), frame.memory)


@dataclass(frozen=True, slots=True)
class _Type:
    number: int
    sender: Side
    encode: Callable[..., bytes]
    decode: Callable[[bytes, int], Frame]
    #: Descriptors beside the streams.
    descriptors: int = 0
    takes_streams: bool = False


TYPES: Final[dict[type[Frame], _Type]] = {
    Run: _Type(1, Side.REQUESTER, _encode_run, _decode_run, descriptors=1, takes_streams=True),
    Connect: _Type(
        2,
        Side.REQUESTER,
        lambda frame: _CONNECT.pack(frame.mount),
        lambda body, _: Connect(*_unpack(_CONNECT, body)),
        descriptors=1,
    ),
    Signal: _Type(3, Side.REQUESTER, lambda frame: _SIGNAL.pack(frame.number), _decode_signal),
    Started: _Type(
        16,
        Side.SERVICE,
        lambda frame: _STARTED.pack(frame.pid, frame.reaper),
        _decode_started,
        takes_streams=True,
    ),
    Connected: _Type(17, Side.SERVICE, lambda _: b"", _decode_connected, descriptors=1),
    Refused: _Type(18, Side.SERVICE, _encode_refused, _decode_refused),
    Ended: _Type(19, Side.SERVICE, _encode_ended, _decode_ended),
}
_BY_NUMBER: Final = {row.number: row for row in TYPES.values()}


class TooLarge(Exception):
    """More arguments or variables than a frame holds."""


def encode(frame: Frame) -> bytes:
    """Return `frame` as it travels. Raises TooLarge, or LocalProtocolError for what no decoder would take."""
    row = TYPES[type(frame)]
    try:
        body = row.encode(frame)
    except struct.error:
        raise TooLarge("a number or a part that is too large for its field") from None
    if HEADER.size + len(body) > MAX_FRAME:
        raise TooLarge(f"{len(body)} bytes of arguments and variables, {MAX_FRAME} at most")
    if isinstance(frame, Run) and (
        len(frame.argv) > MAX_ARGUMENTS
        or len(frame.environment) > MAX_VARIABLES
        or len(frame.directory) > MAX_DIRECTORY
    ):
        raise TooLarge("more arguments or variables than a program can be given")
    streams = frame.streams if isinstance(frame, Run | Started) else 0
    return HEADER.pack(VERSION, row.number, streams, 0, len(body)) + body


def decode(data: bytes, descriptors: int, sender: Side) -> Frame:
    """Return the frame that `data` is, which came with so many `descriptors` from `sender`.

    Raises RemoteProtocolError; the descriptors are the caller's in any case.
    """
    if len(data) < HEADER.size:
        raise RemoteProtocolError("bad-length", f"a frame of {len(data)} bytes")
    version, number, flags, reserved, length = HEADER.unpack_from(data)
    if version != VERSION:
        raise RemoteProtocolError("bad-version", f"version {version}")
    row = _BY_NUMBER.get(number)
    if row is None or row.sender is not sender:
        raise RemoteProtocolError("not-permitted", f"type {number} from {sender.value}")
    if reserved or flags & ~(_STREAMS if row.takes_streams else 0):
        raise RemoteProtocolError("bad-field", f"flags {flags}, reserved {reserved}")
    if length != len(data) - HEADER.size:
        raise RemoteProtocolError("bad-length", f"{len(data) - HEADER.size} bytes, {length} announced")
    wanted = row.descriptors + flags.bit_count()
    if descriptors != wanted:
        raise RemoteProtocolError("descriptors", f"{descriptors} descriptors, {wanted} belong to it")
    return row.decode(data[HEADER.size :], flags)
