"""One class a message, and the codec for all of them.

A frame is a header of 16 bytes, a body of at most `MAX_BODY` bytes, at most one descriptor. How frames become packets
is in `packets`.

    version u8 | type u8 | flags u8 | reserved u8 (0) | body length u32 | id u64        (network byte order)

`flags` bit 0 says that a descriptor travels with the frame; which messages carry one, and of what kind, is in
`MESSAGES`. The id names a connection in the messages about one (the sender of ROUTE, PASS and DISPATCH chooses it); it
is 0 in all others.

Every decoder checks the exact length before it looks at a field, and every text against `NAME` or `AUTHORITY`: what a
message object holds can be put into a log or a metric's label as it is.

In step with: `permits` (who may send what), PROTOCOL.md (made from here), tests/unit/test_wire.py (one case table for
encoder and decoder).

Versions: 1 had one frame in each packet; 2 has several on some channels (`packets`), in it umaster answers
Standing(open), and offers say which mark of their connection they are for (`pyttpd.tcp`).
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from pyttpd.wire.client import CLIENT_SIZE as CLIENT_SIZE  # noqa: PLC0414  who has messages has these
from pyttpd.wire.client import Client as Client  # noqa: PLC0414
from pyttpd.wire.errors import LocalProtocolError, RemoteProtocolError

#: The newest version that we speak, and the oldest. What a channel speaks is agreed on by its Hello and Welcome.
VERSION = 2
OLDEST_VERSION = 1
#: Hello and Welcome have this form in every version, for ever: two roles without a version in common can still say so.
GREETING_VERSION = 1
#: Since this version umaster says Standing(open) back.
STANDING_IS_ANSWERED = 2
#: Since this version offers have a mark.
OFFERS_HAVE_MARKS = 2

HEADER = struct.Struct("!BBBBIQ")
#: Bodies are small on purpose: what is large (shares, the host map) travels as a sealed memfd.
MAX_BODY = 1008
MAX_FRAME = HEADER.size + MAX_BODY
HAS_DESCRIPTOR = 1

#: A role's, listener's, vhost's or socket's name: fixed width on the wire, so that the hello has a fixed size.
NAME_SIZE = 64
NAME = re.compile(rb"[a-z0-9][a-z0-9_.-]{0,62}\Z")
#: A normalised host name (or, on the metrics listener, a vhost's name); empty for HTTP/1.0 without Host.
AUTHORITY = re.compile(rb"[a-z0-9_.\[\]:-]{0,255}\Z")
#: So many ids fit one SETTLED.
MAX_BATCH = 64


class DescriptorKind(enum.Enum):
    """What a descriptor has to be to be let in (`pyttpd.fdpass.check`)."""

    CONNECTION = "a TCP connection"
    LISTENER = "a listening TCP socket"
    MEMFD = "a sealed memfd"
    CHANNEL = "a SOCK_SEQPACKET socket"


class Hello(NamedTuple):
    """The first message of every channel but a worker's. Fixed size, so that nothing has to be parsed before it."""

    role: str
    name: str
    oldest: int = OLDEST_VERSION
    newest: int = VERSION


class Welcome(NamedTuple):
    """The answer to Hello: the version to speak, and how many of its messages may be open at a time
    (listeners: ROUTEs).
    """

    version: int
    credits: int


class Goodbye(NamedTuple):
    """The sender leaves on purpose, or asks the other side to. Nothing new may be begun; what is open is finished."""

    reason: str


class Socket(NamedTuple):
    """init hands over a listening socket; `use` is "listen" or "metrics", `name` its table in the configuration."""

    use: str
    name: str


class SocketsEnd(NamedTuple):
    """init has handed over all `total` sockets that are this role's."""

    total: int


class Wanted(NamedTuple):
    """A new init could not bind this socket anew, since it is still open: who has it is to bring it back."""

    use: str
    name: str


class Return(NamedTuple):
    """A role brings back a listening socket that is its own."""

    use: str
    name: str


class Prepare(NamedTuple):
    """master asks init to read the configuration again and, if it is the one with this digest, to bind what is new
    in it.
    """

    digest: bytes


class Prepared(NamedTuple):
    """init has read the configuration with this digest, and everything new in it is bound. Nobody else sees that
    yet.
    """

    digest: bytes


class Unprepared(NamedTuple):
    """init can't: the first line of why. Nothing has changed."""

    reason: str


class Commit(NamedTuple):
    """The configuration with this digest, which init has prepared, is in force: new sockets are handed out, others
    end.
    """

    digest: bytes


class Abort(NamedTuple):
    """It isn't to be: what init has prepared, it closes."""


class Holds(NamedTuple):
    """init's configuration has this digest. Said to master, first of all and whenever it changes."""

    digest: bytes


class Share(NamedTuple):
    """master's share of the configuration for this role, as a sealed memfd of `size` bytes; `part` is "share"
    or "map".
    """

    generation: int
    part: str
    size: int
    digest: bytes


class ShareOk(NamedTuple):
    """The share of this generation is in force."""

    generation: int


class ShareFailed(NamedTuple):
    """The share of this generation can't be put into force for now: what serves stays. The first line of why."""

    generation: int
    reason: str


class Renew(NamedTuple):
    """master asks a tenant's supervisor for a successor with new processes: its application may have changed."""


class Command(NamedTuple):
    """An operator asks: "reload" the configuration, or the application of vhost `name`; "plan" only says what a reload
    would change.
    """

    verb: str
    name: str


class Told(NamedTuple):
    """How what was asked for goes on: one line for the operator."""

    text: str


class Answer(NamedTuple):
    """What came of it, for the operator: "done" or "failed", and lines of text as a sealed memfd of `size` bytes."""

    outcome: str
    size: int
    digest: bytes


class Route(NamedTuple):
    """A listener offers a connection that nobody has read from. The listener keeps a copy until it is settled.

    mark: the connection's, as long as this offer counts (pyttpd.tcp); 0: whatever it is.
    """

    id: int
    client: Client
    authority: str
    mark: int = 0


class Settled(NamedTuple):
    """These connections are others' now: the sender of ROUTE or PASS closes its copies."""

    ids: tuple[int, ...]


class Refuse(NamedTuple):
    """Nobody takes this connection. Who offered it answers with `status` (or, after PASS, keeps it)."""

    id: int
    status: int


class Retry(NamedTuple):
    """The worker that was given this connection is gone: offer it again if nothing has been read from it."""

    id: int


class Drop(NamedTuple):
    """A worker that can't be proved dead has this connection: close the copy and write nothing."""

    id: int


class Worker(NamedTuple):
    """A supervisor announces a worker; the descriptor is the far end of its channel. `work` is "requests" or
    "metrics".
    """

    number: int
    work: str


class Gone(NamedTuple):
    """A supervisor has reaped this worker: nobody can read from the connections it was given any more."""

    number: int


class Stuck(NamedTuple):
    """umaster tells the supervisor that this worker does not take what it was given. It is to be killed and reaped."""

    number: int


class Demand(NamedTuple):
    """umaster tells a supervisor how many connections wait for a worker of its vhost, and since when the first does.

    Said when the first begins to wait, then a few times a second for as long as there are any, and once with 0.
    """

    waiting: int
    oldest_ms: int


class Standing(NamedTuple):
    """A supervisor says how its vhost stands: "open", or "failing": its application doesn't run, and nobody shall wait
    for it. umaster says "open" back, since version 2: from then on its workers are given all that comes.
    """

    state: str


class Credit(NamedTuple):
    """The worker can take this many connections more."""

    more: int


class Dispatch(NamedTuple):
    """A connection for this worker, if its mark still is what the offer says (0: whatever it is)."""

    id: int
    client: Client
    authority: str
    mark: int = 0


class Taken(NamedTuple):
    """The worker is about to read from this connection, and answers for it from now on."""

    id: int


class Pass(NamedTuple):
    """A worker offers a connection, of which nothing is unanswered and nothing read ahead, for one of its siblings."""

    id: int
    client: Client
    authority: str
    mark: int = 0


class Spawn(NamedTuple):
    """The supervisor asks the prototype for worker `number`, with row `slot` of the scoreboard; the descriptor is the
    worker's control channel.
    """

    number: int
    slot: int


class Spawned(NamedTuple):
    """The prototype has forked worker `number` as process `pid`."""

    number: int
    pid: int


class Attach(NamedTuple):
    """The supervisor gives a worker its channel to a new umaster, with whom it has agreed on `version`."""

    version: int


class Ready(NamedTuple):
    """A prototype has imported the application, or a worker has begun to serve."""


class Beat(NamedTuple):
    """A worker's (or prototype's) event loop still turns."""


class Detached(NamedTuple):
    """A worker has lost its channel to umaster, and asks for another."""


class Failed(NamedTuple):
    """Who imports the application could not load it, or a worker ends by an error; the first line of why."""

    reason: str


class Detail(NamedTuple):
    """A line of the traceback that belongs to the Failed that follows."""

    text: str


Message: TypeAlias = (
    Hello
    | Welcome
    | Goodbye
    | Socket
    | SocketsEnd
    | Wanted
    | Return
    | Prepare
    | Prepared
    | Unprepared
    | Commit
    | Abort
    | Holds
    | Share
    | ShareOk
    | ShareFailed
    | Renew
    | Command
    | Told
    | Answer
    | Route
    | Settled
    | Refuse
    | Retry
    | Drop
    | Worker
    | Gone
    | Stuck
    | Demand
    | Standing
    | Credit
    | Dispatch
    | Taken
    | Pass
    | Spawn
    | Spawned
    | Attach
    | Ready
    | Beat
    | Detached
    | Failed
    | Detail
)
MessageType: TypeAlias = type[Any]


# ---- fields -----------------------------------------------------------------------------------------------------


def _pack_name(name: str) -> bytes:
    raw = name.encode("ascii")
    if not NAME.match(raw):
        raise LocalProtocolError(f"{name!r} is not a name")
    return raw.ljust(NAME_SIZE, b"\0")


def _unpack_name(raw: bytes) -> str:
    name = raw.rstrip(b"\0")
    if not NAME.match(name):
        raise RemoteProtocolError("bad-field", f"{name[:32]!r} is not a name")
    return name.decode("ascii")


_BYTE = tuple(bytes((number,)) for number in range(256))


def _pack_offer(message: Route | Dispatch | Pass) -> bytes:
    authority = message.authority.encode("ascii")
    if not AUTHORITY.match(authority):
        raise LocalProtocolError(f"{message.authority!r} is not an authority")
    return message.client.raw + _BYTE[message.mark] + authority


def _unpack_offer(body: bytes) -> tuple[Client, str, int]:
    client = Client.from_wire(body[:CLIENT_SIZE])
    mark = body[CLIENT_SIZE : CLIENT_SIZE + 1]
    authority = body[CLIENT_SIZE + 1 :]
    if not mark:
        raise RemoteProtocolError("bad-length", "no mark")
    if not AUTHORITY.match(authority):
        raise RemoteProtocolError("bad-field", f"{authority[:64]!r} is not an authority")
    return client, authority.decode("ascii"), mark[0]


#: Printable ASCII only: these texts go into logs.
_TEXT = re.compile(rb"[\x20-\x7e]{0,200}\Z")


def _pack_text(text: str) -> bytes:
    return re.sub(r"[^\x20-\x7e]", "?", text)[:200].encode("ascii")


def _unpack_text(body: bytes) -> str:
    if not _TEXT.match(body):
        raise RemoteProtocolError("bad-field", "text is too long or not printable")
    return body.decode("ascii")


def _exactly(body: bytes, fields: struct.Struct) -> tuple[Any, ...]:
    if len(body) != fields.size:
        raise RemoteProtocolError("bad-length", f"{len(body)} bytes, {fields.size} expected")
    return fields.unpack(body)


def _one_of(value: int, choices: tuple[str, ...]) -> str:
    if value >= len(choices):
        raise RemoteProtocolError("bad-field", f"{value} is none of {', '.join(choices)}")
    return choices[value]


ROLE_NAMES = ("init", "master", "umaster", "listener", "vhost", "operator")
SOCKET_USES = ("listen", "metrics")
SHARE_PARTS = ("share", "map")
WORK = ("requests", "metrics")
STANDINGS = ("open", "failing")
VERBS = ("reload", "plan")
OUTCOMES = ("done", "failed")

_HELLO = struct.Struct(f"!BBBx{NAME_SIZE}s")
_WELCOME = struct.Struct("!BxxxI")
_SOCKET = struct.Struct(f"!Bxxx{NAME_SIZE}s")
_DIGEST = struct.Struct("!32s")
_COMMAND = struct.Struct(f"!Bxxx{NAME_SIZE}s")
_ANSWER = struct.Struct("!BxxxI32s")
_SHARE = struct.Struct("!QBxxxI32s")
_WORKER = struct.Struct("!IBxxx")
_STANDING = struct.Struct("!Bxxx")
_TWO_U32 = struct.Struct("!II")
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")
_U64 = struct.Struct("!Q")
_MOST = 2**32 - 1
_VERSION = struct.Struct("!B3x")


def _unpack_hello(body: bytes) -> Hello:
    oldest, newest, role, name = _exactly(body, _HELLO)
    if not 1 <= oldest <= newest:
        raise RemoteProtocolError("bad-field", f"versions {oldest} to {newest}")
    return Hello(_one_of(role, ROLE_NAMES), _unpack_name(name), oldest, newest)


def _unpack_settled(body: bytes) -> Settled:
    if not body or len(body) % 8 or len(body) > 8 * MAX_BATCH:
        raise RemoteProtocolError("bad-length", f"{len(body)} bytes of ids")
    return Settled(struct.unpack(f"!{len(body) // 8}Q", body))


def _unpack_refuse(id_: int, body: bytes) -> Refuse:
    (status,) = _exactly(body, _U16)
    if not 400 <= status <= 599:
        raise RemoteProtocolError("bad-field", f"status {status}")
    return Refuse(id_, status)


def _unpack_share(body: bytes) -> Share:
    generation, part, size, digest = _exactly(body, _SHARE)
    return Share(generation, _one_of(part, SHARE_PARTS), size, digest)


def _unpack_share_failed(body: bytes) -> ShareFailed:
    if len(body) < _U64.size:
        raise RemoteProtocolError("bad-length", f"{len(body)} bytes, {_U64.size} at least")
    (generation,) = _U64.unpack_from(body)
    return ShareFailed(generation, _unpack_text(body[_U64.size :]))


def _unpack_command(body: bytes) -> Command:
    verb, name = _exactly(body, _COMMAND)
    return Command(_one_of(verb, VERBS), _unpack_name(name) if name.rstrip(b"\0") else "")


def _unpack_answer(body: bytes) -> Answer:
    outcome, size, digest = _exactly(body, _ANSWER)
    return Answer(_one_of(outcome, OUTCOMES), size, digest)


def _pack_digest(message: Prepare | Prepared | Commit | Holds) -> bytes:
    return _DIGEST.pack(message.digest)


def _pack_socket(message: Socket | Wanted | Return) -> bytes:
    return _SOCKET.pack(SOCKET_USES.index(message.use), _pack_name(message.name))


def _unpack_socket(body: bytes) -> tuple[str, str]:
    use, name = _exactly(body, _SOCKET)
    return _one_of(use, SOCKET_USES), _unpack_name(name)


def _unpack_worker(body: bytes) -> Worker:
    number, work = _exactly(body, _WORKER)
    return Worker(number, _one_of(work, WORK))


def _bodyless(body: bytes, message: Message) -> Message:
    if body:
        raise RemoteProtocolError("bad-length", f"{len(body)} bytes, none expected")
    return message


class Row(NamedTuple):
    """How one message stands on the wire. `about_one` says that the header's id names a connection."""

    code: int
    cls: MessageType
    pack: Callable[[Any], bytes]
    unpack: Callable[[int, bytes], Any]
    descriptor: DescriptorKind | None = None
    about_one: bool = False


def _nothing(_: object) -> bytes:
    return b""


MESSAGES: tuple[Row, ...] = (
    Row(
        1,
        Hello,
        lambda m: _HELLO.pack(m.oldest, m.newest, ROLE_NAMES.index(m.role), _pack_name(m.name)),
        lambda _, b: _unpack_hello(b),
    ),
    Row(
        2,
        Welcome,
        lambda m: _WELCOME.pack(m.version, m.credits),
        lambda _, b: Welcome(*_exactly(b, _WELCOME)),
    ),
    Row(3, Goodbye, lambda m: _pack_text(m.reason), lambda _, b: Goodbye(_unpack_text(b))),
    Row(10, Socket, _pack_socket, lambda _, b: Socket(*_unpack_socket(b)), DescriptorKind.LISTENER),
    Row(11, SocketsEnd, lambda m: _U32.pack(m.total), lambda _, b: SocketsEnd(*_exactly(b, _U32))),
    Row(12, Wanted, _pack_socket, lambda _, b: Wanted(*_unpack_socket(b))),
    Row(13, Return, _pack_socket, lambda _, b: Return(*_unpack_socket(b)), DescriptorKind.LISTENER),
    Row(14, Prepare, _pack_digest, lambda _, b: Prepare(*_exactly(b, _DIGEST))),
    Row(15, Prepared, _pack_digest, lambda _, b: Prepared(*_exactly(b, _DIGEST))),
    Row(16, Unprepared, lambda m: _pack_text(m.reason), lambda _, b: Unprepared(_unpack_text(b))),
    Row(17, Commit, _pack_digest, lambda _, b: Commit(*_exactly(b, _DIGEST))),
    Row(18, Abort, _nothing, lambda _, b: _bodyless(b, Abort())),
    Row(19, Holds, _pack_digest, lambda _, b: Holds(*_exactly(b, _DIGEST))),
    Row(
        20,
        Share,
        lambda m: _SHARE.pack(m.generation, SHARE_PARTS.index(m.part), m.size, m.digest),
        lambda _, b: _unpack_share(b),
        DescriptorKind.MEMFD,
    ),
    Row(21, ShareOk, lambda m: _U64.pack(m.generation), lambda _, b: ShareOk(*_exactly(b, _U64))),
    Row(
        22,
        ShareFailed,
        lambda m: _U64.pack(m.generation) + _pack_text(m.reason),
        lambda _, b: _unpack_share_failed(b),
    ),
    Row(23, Renew, _nothing, lambda _, b: _bodyless(b, Renew())),
    Row(
        24,
        Command,
        lambda m: _COMMAND.pack(VERBS.index(m.verb), _pack_name(m.name) if m.name else b""),
        lambda _, b: _unpack_command(b),
    ),
    Row(25, Told, lambda m: _pack_text(m.text), lambda _, b: Told(_unpack_text(b))),
    Row(
        26,
        Answer,
        lambda m: _ANSWER.pack(OUTCOMES.index(m.outcome), m.size, m.digest),
        lambda _, b: _unpack_answer(b),
        DescriptorKind.MEMFD,
    ),
    Row(30, Route, _pack_offer, lambda i, b: Route(i, *_unpack_offer(b)), DescriptorKind.CONNECTION, True),
    Row(31, Settled, lambda m: struct.pack(f"!{len(m.ids)}Q", *m.ids), lambda _, b: _unpack_settled(b)),
    Row(32, Refuse, lambda m: _U16.pack(m.status), _unpack_refuse, None, True),
    Row(33, Retry, _nothing, lambda i, b: _bodyless(b, Retry(i)), None, True),
    Row(34, Drop, _nothing, lambda i, b: _bodyless(b, Drop(i)), None, True),
    Row(
        40,
        Worker,
        lambda m: _WORKER.pack(m.number, WORK.index(m.work)),
        lambda _, b: _unpack_worker(b),
        DescriptorKind.CHANNEL,
    ),
    Row(41, Gone, lambda m: _U32.pack(m.number), lambda _, b: Gone(*_exactly(b, _U32))),
    Row(42, Stuck, lambda m: _U32.pack(m.number), lambda _, b: Stuck(*_exactly(b, _U32))),
    Row(
        43,
        Demand,
        lambda m: _TWO_U32.pack(min(m.waiting, _MOST), min(m.oldest_ms, _MOST)),
        lambda _, b: Demand(*_exactly(b, _TWO_U32)),
    ),
    Row(
        44,
        Standing,
        lambda m: _STANDING.pack(STANDINGS.index(m.state)),
        lambda _, b: Standing(_one_of(_exactly(b, _STANDING)[0], STANDINGS)),
    ),
    Row(50, Credit, lambda m: _U16.pack(m.more), lambda _, b: Credit(*_exactly(b, _U16))),
    Row(
        51,
        Dispatch,
        _pack_offer,
        lambda i, b: Dispatch(i, *_unpack_offer(b)),
        DescriptorKind.CONNECTION,
        True,
    ),
    Row(52, Taken, _nothing, lambda i, b: _bodyless(b, Taken(i)), None, True),
    Row(53, Pass, _pack_offer, lambda i, b: Pass(i, *_unpack_offer(b)), DescriptorKind.CONNECTION, True),
    Row(
        60,
        Spawn,
        lambda m: _TWO_U32.pack(m.number, m.slot),
        lambda _, b: Spawn(*_exactly(b, _TWO_U32)),
        DescriptorKind.CHANNEL,
    ),
    Row(61, Spawned, lambda m: _TWO_U32.pack(m.number, m.pid), lambda _, b: Spawned(*_exactly(b, _TWO_U32))),
    Row(
        62,
        Attach,
        lambda m: _VERSION.pack(m.version),
        lambda _, b: Attach(*_exactly(b, _VERSION)),
        DescriptorKind.CHANNEL,
    ),
    Row(63, Ready, _nothing, lambda _, b: _bodyless(b, Ready())),
    Row(64, Beat, _nothing, lambda _, b: _bodyless(b, Beat())),
    Row(66, Detached, _nothing, lambda _, b: _bodyless(b, Detached())),
    Row(65, Failed, lambda m: _pack_text(m.reason), lambda _, b: Failed(_unpack_text(b))),
    Row(67, Detail, lambda m: _pack_text(m.text), lambda _, b: Detail(_unpack_text(b))),
)
BY_CODE: dict[int, Row] = {row.code: row for row in MESSAGES}
BY_CLASS: dict[MessageType, Row] = {row.cls: row for row in MESSAGES}
_GREETINGS = (BY_CLASS[Hello].code, BY_CLASS[Welcome].code)
_OFFERS = (BY_CLASS[Route].code, BY_CLASS[Dispatch].code, BY_CLASS[Pass].code)


def encode(message: Message, version: int | None = None) -> bytes:
    """Return the frame of `message` (header and body) as `version` has it (None: the newest; the greeting's for a
    greeting); the descriptor, if it takes one, travels beside it.
    """
    code, cls, pack, _, descriptor, about_one = BY_CLASS[type(message)]
    body = pack(message)
    length = len(body)
    if length > MAX_BODY:
        raise LocalProtocolError(f"{cls.__name__} of {length} bytes")
    if version is None:
        version = GREETING_VERSION if code in _GREETINGS else VERSION
    if version < OFFERS_HAVE_MARKS and code in _OFFERS:
        body = body[:CLIENT_SIZE] + body[CLIENT_SIZE + 1 :]
        length = len(body)
    flags = HAS_DESCRIPTOR if descriptor is not None else 0
    return HEADER.pack(version, code, flags, 0, length, message.id if about_one else 0) + body  # type: ignore[union-attr]


def decode(frame: bytes, spoken: int | None = None) -> Message:
    """Return the message that `frame`, a packet of one frame, holds, where version `spoken` is spoken (None: see
    `encode`).

    Raises RemoteProtocolError for anything else than exactly one well-formed frame. Whether the descriptor that the
    header announces has come is the channel's business.
    """
    if spoken is None:
        spoken = GREETING_VERSION if frame[1:2] and frame[1] in _GREETINGS else VERSION
    message, end = decode_from(frame, 0, spoken)
    if end != len(frame):
        raise RemoteProtocolError(
            "bad-length", f"{end - HEADER.size} bytes announced, {len(frame) - HEADER.size} sent"
        )
    return message


def decode_from(packet: bytes, start: int, spoken: int) -> tuple[Message, int]:
    """Return the message of the frame that begins at `start`, and where it ends. Raises RemoteProtocolError."""
    begin = start + HEADER.size
    if begin > len(packet):
        raise RemoteProtocolError("truncated", f"{len(packet) - start} bytes are no header")
    version, code, flags, reserved, length, id_ = HEADER.unpack_from(packet, start)
    if version != spoken:
        raise RemoteProtocolError("bad-version", f"version {version}, {spoken} is spoken here")
    row = BY_CODE.get(code)
    if row is None:
        raise RemoteProtocolError("unknown-type", f"type {code}")
    _, cls, _, unpack, descriptor, about_one = row
    end = begin + length
    if end > len(packet) or length > MAX_BODY:
        raise RemoteProtocolError("bad-length", f"{length} bytes announced, {len(packet) - begin} sent")
    if reserved or flags != (HAS_DESCRIPTOR if descriptor is not None else 0) or (id_ and not about_one):
        raise RemoteProtocolError(
            "bad-field", f"flags {flags}, reserved {reserved}, id {id_} in {cls.__name__}"
        )
    body = packet[begin:end]
    if spoken < OFFERS_HAVE_MARKS and code in _OFFERS:
        body = body[:CLIENT_SIZE] + b"\0" + body[CLIENT_SIZE:]
    message: Message = unpack(id_, body)
    return message, end
