"""What an HTTP engine is: it turns one head, which the shared scanner has accepted and measured, into a
`Request`.

The rules, the same for every engine:
- `pyttpd.head.scan` speaks first. The engine sees exactly the bytes of one head, never a byte of a body or of
  the next request.
- The engine may refuse what the scanner let through; it can't accept what the scanner refused. So the
  stricter one wins.
- The framing of the body is decided here, once, for all engines (`body_length`): RFC 9112 section 6.3 without
  its tolerances.
- Upgrade is ignored (RFC 9110 section 7.8 allows that): the request is served as if it weren't there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote_to_bytes

from pyttpd.head import Head, Refused

from pyttpd_vhost.http.chunked import ChunkedDecoder

if TYPE_CHECKING:
    from pyttpd_vhost.kinds.base import Placed

#: `Request.length` of a chunked body: its length is known when it ends.
CHUNKED = -1

#: The names of the fields that decide framing and life time, and of one that has a single meaning or none.
SPECIAL = frozenset({b"content-length", b"transfer-encoding", b"connection", b"expect", b"content-type"})

_LENGTH = re.compile(rb"[0-9]{1,18}")

Fields = list[tuple[bytes, bytes]]


class Request:
    """One request, its head read and its framing decided; the body is still to come.

    `method` as sent; `target` as sent; `path` and `query` are the target's parts, not decoded ("*" for
    `OPTIONS *`; absolute-form is reduced to its path). `version` is 10 or 11. `fields` are the header fields in
    the order sent, names as sent, values without blanks around them. `host` is normalised by the scanner ("" only
    for HTTP/1.0), `port` 0 if not named. `keep_alive` is what the client asks for. `length` is the body's length
    in bytes or CHUNKED. `expect` is `Expect: 100-continue`. `end` is where the head ended in the bytes that were
    read.

    `known`: the same fields have come before (heads.py). `kept`: so has the whole head, and this stands for later ones,
    too; what follows from it alone may be kept there, as in `Known.kept`. `placed`: which mount it belongs to, where a
    vhost has several (mounts.py). Nothing else is to be changed.
    """

    __slots__ = (
        "end",
        "expect",
        "fields",
        "host",
        "keep_alive",
        "kept",
        "known",
        "length",
        "method",
        "path",
        "placed",
        "port",
        "query",
        "target",
        "version",
    )

    method: str
    target: bytes
    path: bytes
    query: bytes
    version: int
    fields: Fields
    host: str
    port: int
    keep_alive: bool
    length: int
    expect: bool
    end: int
    kept: dict[object, Any] | None
    known: Known | None
    placed: Placed | None

    def __init__(self, head: Head, fields: Fields, special: Fields) -> None:
        """Make it of the scanner's verdict and the engine's `fields`.

        `special` are those of them in SPECIAL, with names in lower case. Raises Refused.
        """
        self.method = head.method.decode("ascii")
        self.version = head.version
        self.fields = fields
        self.host = head.host
        self.port = head.port
        self.end = head.end
        self.kept = None
        self.known = None
        self.placed = None
        target = self.target = head.target
        if target[:1] != b"/":
            target = _path_and_query(head)
        self.path, _, self.query = target.partition(b"?")
        self.keep_alive = head.version == 11
        self.length = 0
        self.expect = False
        if special:
            self.length = body_length(head.version, special)
            self._live(special)

    @classmethod
    def of(cls, known: Known, method: bytes, target: bytes, end: int) -> Request:
        """Return a request without a body, whose fields are known: only its line, in origin-form, is another one."""
        like = known.request
        self = object.__new__(cls)
        self.method = method.decode("ascii")
        self.target = target
        self.path, _, self.query = target.partition(b"?")
        self.version = like.version
        self.fields = like.fields
        self.host = like.host
        self.port = like.port
        self.keep_alive = like.keep_alive
        self.length = 0
        self.expect = False
        self.end = end
        self.kept = None
        self.known = known
        self.placed = None
        return self

    @property
    def mount(self) -> str:
        """The prefix of the mount that this is for, each byte a character: SCRIPT_NAME."""
        return "" if self.placed is None else self.placed.mount

    @property
    def path_info(self) -> bytes:
        """The rest of the path, decoded: PATH_INFO. b"" for `OPTIONS *`, which is no path (RFC 3875 section 4.1.5)."""
        if self.placed is not None:
            return self.placed.info
        return b"" if self.path == b"*" else unquote_to_bytes(self.path)

    def again(self, placed: Placed) -> Request:
        """Return the same request for somebody else."""
        cls = type(self)
        new = object.__new__(cls)
        for each in cls.__mro__[:-1]:
            for name in each.__slots__:  # type: ignore[attr-defined]  # each of them has some
                setattr(new, name, getattr(self, name))
        new.kept = None
        new.placed = placed
        return new

    def _live(self, special: Fields) -> None:
        """Decide what comes behind this request (RFC 9112 section 9.3), and what before its body.

        Two types of one content are refused here, too: no client means that (RFC 9110 section 5.3).
        """
        for name, value in special:
            if name == b"connection":
                options = {option.strip() for option in value.lower().split(b",")}
                if b"close" in options:
                    self.keep_alive = False
                    break  # whatever follows
                if b"keep-alive" in options:
                    self.keep_alive = True
        if len([name for name, _ in special if name == b"content-type"]) > 1:
            raise Refused(400, "more than one Content-Type")
        for name, value in special:
            if name == b"expect":
                if value.lower() != b"100-continue":
                    raise Refused(417, "expectation not served")
                # a 1.0 client can't understand 100 (RFC 9110 section 10.1.1); without a body there is nothing
                # to go on with
                self.expect = self.version == 11 and self.length != 0

    def get(self, name: bytes) -> bytes | None:
        """Return the value of the header `name` (lower case), None if absent.

        Several fields are joined with ", " (RFC 9110 section 5.3).
        """
        values = [value for key, value in self.fields if key.lower() == name]
        return b", ".join(values) if values else None

    def takes_trailers(self) -> bool:
        """Whether the client does something with trailers (RFC 9110 section 10.1.4)."""
        codings = (self.get(b"te") or b"").lower().split(b",")
        return any(coding.strip() == b"trailers" for coding in codings)


class Known:
    """Fields that have come before: `request` is the first one with them, in origin-form and without a body.

    `kept` is for whoever makes something of a request that depends on its fields, host and version alone: each keeps it
    under a name (or an object) of its own. It is the process's for as long as the fields are remembered, so nothing in
    it may be changed; what is of one request or one connection doesn't belong there.
    """

    __slots__ = ("kept", "request")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.kept: dict[object, Any] = {}


def body_length(version: int, special: Fields) -> int:
    """Return the length of a request's body, or CHUNKED: RFC 9112 section 6.3, step by step. Raises Refused.

    (Its steps 1, 2 and 8 are about responses.)
    """
    lengths = [value for name, value in special if name == b"content-length"]
    codings = [value for name, value in special if name == b"transfer-encoding"]
    if codings and lengths:  # 3: may be refused, so it is
        raise Refused(400, "Content-Length with Transfer-Encoding")
    if codings:  # 4
        if version != 11:  # section 6.1: faulty, whatever else it says
            raise Refused(400, "Transfer-Encoding in HTTP/1.0")
        if len(codings) != 1 or codings[0].lower() != b"chunked":
            raise Refused(501, "transfer coding not served")
        return CHUNKED
    if lengths:
        if len(lengths) != 1 or _LENGTH.fullmatch(lengths[0]) is None:  # 5, without its tolerances
            raise Refused(400, "malformed Content-Length")
        return int(lengths[0])  # 6
    return 0  # 7


class Engine(Protocol):
    """Reads heads. Holds no state between two heads: one engine serves all connections of a thread."""

    def read(self, data: bytes, head: Head) -> Request:
        """Read the head `data[:head.end]`. Raises Refused."""
        ...

    def again(self, data: bytes, end: int, method: bytes, target: bytes, known: Known) -> Request | None:
        """Read the head `data`, whose request line ends at `end`; the rest of it this engine has read before: `known`.

        The scanner has found `method` and `target` in the line. None: read all of it.
        """
        ...

    def chunked(self) -> ChunkedDecoder:
        """Return a decoder for the chunked body of the request just read."""
        ...


def _path_and_query(head: Head) -> bytes:
    """Return the path and query of a target that isn't in origin-form (RFC 9112 section 3.2).

    The scanner has used its authority.
    """
    if head.target == b"*":
        return b"*"
    if head.method == b"CONNECT":
        raise Refused(501, "CONNECT is not served")
    rest = head.target.partition(b"://")[2]
    start = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
    rest = rest[start:]
    return rest if rest[:1] == b"/" else b"/" + rest
