"""What an HTTP engine is: it turns one head, which the shared scanner has accepted and measured, into a `Request`.

The rules, the same for every engine:
- `pyttpd.head.scan` speaks first. The engine sees exactly the bytes of one head, never a byte of a body or of the next request.
- The engine may refuse what the scanner let through; it can't accept what the scanner refused. So the stricter one wins.
- The framing of the body is decided here, once, for all engines (`frame`): RFC 9112 section 6.3 without its tolerances.
- Upgrade is ignored (RFC 9110 section 7.8 allows that): the request is served as if it weren't there.
"""

from __future__ import annotations

import re
from typing import Protocol

from pyttpd.head import Head, Refused

from pyttpd_vhost.http.chunked import ChunkedDecoder

#: `Request.length` of a chunked body: its length is known when it ends.
CHUNKED = -1

#: The header names that decide framing and life time. Engines collect them while they read; absent is the common case.
FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection", b"expect"})

_LENGTH = re.compile(rb"[0-9]{1,18}")

Headers = list[tuple[bytes, bytes]]


class Request:
    """One request, its head read and its framing decided; the body is still to come.

    `method` as sent; `target` as sent; `path` and `query` are the target's parts, not decoded ("*" for `OPTIONS *`; absolute-form
    is reduced to its path). `version` is 10 or 11. `headers` in the order sent, names in lower case, values without blanks around
    them. `host` is normalised by the scanner ("" only for HTTP/1.0), `port` 0 if not named. `keep_alive` is what the client
    asks for. `length` is the body's length in bytes or CHUNKED. `expect` is `Expect: 100-continue`.
    """

    __slots__ = ("expect", "headers", "host", "keep_alive", "length", "method", "path", "port", "query", "target", "version")

    method: str
    target: bytes
    path: bytes
    query: bytes
    version: int
    headers: Headers
    host: str
    port: int
    keep_alive: bool
    length: int
    expect: bool

    def get(self, name: bytes) -> bytes | None:
        """Return the value of the header `name` (lower case), several joined with ", " (RFC 9110 section 5.3), None if absent."""
        values = [value for key, value in self.headers if key == name]
        return b", ".join(values) if values else None


class Engine(Protocol):
    """Reads heads. Holds no state between two heads, so that one engine serves all connections of a thread."""

    def read(self, data: bytes, head: Head) -> Request:
        """Read the head `data[:head.end]`. Raises Refused."""
        ...

    def chunked(self) -> ChunkedDecoder:
        """Return a decoder for the chunked body of the request just read."""
        ...


def split_target(request: Request, head: Head) -> None:
    """Set `target`, `path` and `query` from the request target (RFC 9112 section 3.2)."""
    target = request.target = head.target
    if target[:1] != b"/":
        if target == b"*":
            request.path, request.query = target, b""
            return
        if head.method == b"CONNECT":
            raise Refused(501, "CONNECT is not served")
        # absolute-form: the scanner has checked and used the authority
        rest = target.partition(b"://")[2]
        start = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
        target = rest[start:]
        if target[:1] != b"/":
            target = b"/" + target
    if b"?" in target:
        request.path, _, request.query = target.partition(b"?")
    else:
        request.path, request.query = target, b""


def frame(request: Request, special: Headers) -> None:
    """Set `keep_alive`, `length` and `expect` from the version and the FRAMING headers. Raises Refused for whatever is ambiguous."""
    request.length = 0
    request.expect = False
    request.keep_alive = request.version == 11
    if not special:
        return
    lengths = [value for name, value in special if name == b"content-length"]
    codings = [value for name, value in special if name == b"transfer-encoding"]
    if codings:
        if lengths:
            raise Refused(400, "Content-Length with Transfer-Encoding")
        if request.version != 11:
            raise Refused(400, "Transfer-Encoding in HTTP/1.0")
        if len(codings) != 1 or codings[0].lower() != b"chunked":
            raise Refused(501, "transfer coding not served")
        request.length = CHUNKED
    elif lengths:
        if len(lengths) != 1 or _LENGTH.fullmatch(lengths[0]) is None:
            raise Refused(400, "malformed Content-Length")
        request.length = int(lengths[0])
    for name, value in special:
        if name == b"connection":
            options = {option.strip() for option in value.lower().split(b",")}
            if b"close" in options:
                request.keep_alive = False
                break  # "close" wins over whatever follows (RFC 9112 section 9.3)
            if b"keep-alive" in options:
                request.keep_alive = True
    for name, value in special:
        if name == b"expect":
            if value.lower() != b"100-continue":
                raise Refused(417, "expectation not served")
            # a 1.0 client can't understand 100 (RFC 9110 section 10.1.1); without a body there is nothing to go on with
            request.expect = request.version == 11 and request.length != 0
