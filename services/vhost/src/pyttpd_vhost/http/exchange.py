"""One request's answer: framing decided here and nowhere else.

Rules:
- A response is either whole (`respond`, `respond_prepared`, `send_file`, `send_parts`) or in pieces (`begin`,
  `write`..., `end`). The table of what is allowed when is `State`; anything else is a ResponseError in the kind.
- No body for HEAD, 204, 205 and 304, whatever the kind gives (RFC 9110 6.4.1, 15.3.5, 15.3.6, 15.4.5); no length for
  204, length 0 for 205. A kind can't send 1xx.
- Unknown length: chunked to 1.1, ended by the connection's end to 1.0. Trailers go to who asked for them (`TE:
  trailers`), in a chunked body.
- A request's body that turns out to be malformed, too large or too slow before a byte of the response is sent is
  answered for that (400, 413, 408) and not as the kind would have it: nobody knows what the client meant.
- A body longer than its Content-Length is cut, a shorter one can't be finished: both end the connection, and
  are logged.
- `keep` is true if the connection may serve another request after this one. It only ever goes from true to
  false.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyttpd_vhost.http.body import Body
from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.errors import ResponseError
from pyttpd_vhost.http.response import CLOSE, KEEP_ALIVE, STATUS, Fields, Prepared, Trailers, date_line
from pyttpd_vhost.http.stream import JOIN_LIMIT, MORE, OpenFile, Part, Stream

if TYPE_CHECKING:
    from pyttpd_vhost.http.proxies import Origin
    from pyttpd_vhost.site import Site


class State(enum.Enum):
    """How far the response is."""

    NOTHING = enum.auto()  # no byte of it is sent
    BODY = enum.auto()  # its head is sent, the body isn't whole
    DROPPED = enum.auto()  # answered for the request's body instead; what the kind still says is dropped
    DONE = enum.auto()  # whole, given to the stream
    PARTED = enum.auto()  # another process answers, and the connection is its own (kinds/handoff)
    GIVEN = enum.auto()  # somebody else answers, beside the worker's threads (aside.py)


class Framing(enum.Enum):
    """How the client finds the end of the body."""

    LENGTH = enum.auto()
    CHUNKED = enum.auto()
    CLOSE = enum.auto()
    NO_BODY = enum.auto()


# Enum attributes cost a dict look-up each on the hot path; names of the module don't.
_NOTHING, _BODY, _DROPPED, _DONE, _PARTED, _GIVEN = State
_LENGTH, _CHUNKED, _CLOSE, _NO_BODY = Framing

#: Stands for the request between two requests.
_NO_REQUEST: Request = Request.__new__(Request)

LAST_CHUNK = b"0\r\n\r\n"


class Exchange:
    """What a kind gets with a request. One per connection, used again for each request (`start`).

    All methods raise ClientGone when nobody is left to answer, and ResponseError when the kind broke the
    rules.
    """

    __slots__ = (
        "_framing",
        "_left",
        "_server_address",
        "_stream",
        "body",
        "client",
        "code",
        "head_size",
        "keep",
        "origin",
        "request",
        "site",
        "state",
        "taker",
    )

    def __init__(self, stream: Stream, site: Site, client: tuple[str, str]) -> None:
        self._stream = stream
        self.site = site
        self.client = (
            client  # address and port; behind a trusted proxy they are the request's, not the connection's
        )
        self.origin: Origin | None = None  # what a trusted proxy says of the request
        self.request: Request = _NO_REQUEST
        self.body: Body | None = None  # None: the request has none
        self.state = _NOTHING
        self.keep = True
        self.code = 0
        self.taker: object = None
        self.head_size = 0  # bytes of the response's head
        self._framing = _LENGTH
        self._left = 0
        self._server_address = ""

    def start(self, request: Request, body: Body | None, *, keep: bool) -> None:
        """Begin with the next request."""
        self.request = request
        self.body = body
        self.keep = keep
        self.state = _NOTHING

    def part(self) -> None:
        """Another process has the connection: nothing more is said here, and our copy is closed."""
        self.state = _PARTED

    def spoil(self) -> None:
        """Another process has written to the connection, or may have: no answer is begun any more."""
        self.state = _BODY

    def give_away(self, request: Request, taker: object) -> None:
        """Let somebody else answer `request`: the kind does nothing more here. `taker` is for who gets it."""
        self.request = request
        self.taker = taker
        self.state = _GIVEN

    def lend(self, stream: Stream) -> None:
        """Answer by another stream from here on; if it was given away, nothing is answered yet."""
        self._stream = stream
        if self.state is _GIVEN:
            self.state = _NOTHING

    def forget(self) -> None:
        """Let go of the request: its connection may be idle for long."""
        self.request = _NO_REQUEST
        self.body = None

    @property
    def stream(self) -> Stream:
        """The client's socket, for a kind that waits for it and for something else at once."""
        return self._stream

    @property
    def server_address(self) -> str:
        """The address that the client has connected to, empty when nobody knows any more."""
        if not self._server_address:
            try:
                self._server_address = str(self._stream.sock.getsockname()[0])
            except OSError:
                return ""
        return self._server_address

    @property
    def full(self) -> bool:
        """The client has got, or is about to get, all of the body that it may have."""
        return self.state is _DROPPED or (
            self.state is _BODY
            and (self._framing is _NO_BODY or (self._framing is _LENGTH and not self._left))
        )

    @property
    def current(self) -> Request | None:
        """The request, between `start` and `forget`."""
        return None if self.request is _NO_REQUEST else self.request

    # A whole response

    def respond(self, status: str, code: int, fields: Fields, content: bytes, *, last: bool = False) -> None:
        """Send a whole response.

        Without a Content-Length in `fields` it is `content`'s; for one that disagrees see the rules. `last`: the kind
        does nothing after it. If the connection ends then, its end shares the answer's packet.
        """
        if self.state is not _NOTHING:
            raise ResponseError("a second response to one request")
        if self.body is not None and (failed := self._settle_body()):
            code = failed
            status = STATUS[code]
            fields, content = self.site.page(code)
        length = len(content)
        request = self.request
        if (
            (fields.length is not None and fields.length != length)
            or code in (204, 205, 304)
            or request.method == "HEAD"
        ):
            self._begin(status, code, fields, length if fields.length is None else fields.length, content)
            self.end()
            return
        connection = "" if self.keep and request.version == 11 else self._connection()
        date = "" if fields.date else date_line()
        head = f"HTTP/1.1 {status}\r\n{fields.text}Content-Length: {length}\r\n{date}{connection}\r\n".encode(
            "latin-1"
        )
        self.state = _DONE
        self.code = code
        self.head_size = len(head)
        if length <= JOIN_LIMIT:
            self._stream.send_whole(head + content, MORE if last and not self.keep else 0)
        else:
            self._stream.begin()
            self._stream.send_last((head, content))
            self._stream.wait_tail()

    def respond_prepared(self, answer: Prepared) -> None:
        """Send a whole response that was made before, for requests like this one.

        The caller has seen to it: HTTP/1.1, `keep`, no body of the request, and a method that `answer` is for.
        """
        self.state = _DONE
        self.code = answer.code
        self.head_size = answer.head_size
        if answer.file is None:
            self._stream.send_whole(answer.dated(date_line()))
        else:
            self._stream.begin()
            self._stream.send_parts(answer.dated(date_line()), answer.file)

    def send_file(self, status: str, code: int, fields: Fields, fd: int, offset: int, count: int) -> None:
        """Send a whole response whose body is `count` bytes of the file `fd` from `offset`.

        Owns `fd` from now on. The worker's epoll finishes it. `fields.length`, if given, must be `count`.
        """
        self.send_parts(status, code, fields, ((OpenFile(fd), offset, count),), count)

    def send_parts(self, status: str, code: int, fields: Fields, parts: Sequence[Part], length: int) -> None:
        """Send a whole response whose body is `parts`, `length` bytes in all, at least one of them of a file.

        The worker's epoll finishes it. `fields.length`, if given, must be `length`.
        """
        if self.state is not _NOTHING:
            raise ResponseError("a second response to one request")
        if self.body is not None and (failed := self._settle_body()):
            self.fail(failed)
            return
        self._stream.begin()
        head = self._head(status, code, fields, length)
        self.state = _DONE
        if self._framing is _NO_BODY or not length:
            self._stream.send_whole(head)
        else:
            self._stream.send_parts(head, parts)

    # A response in pieces

    def begin(self, status: str, code: int, fields: Fields, first: bytes = b"", *, wait: bool = True) -> None:
        """Send the head of a response, and the first piece of its body with it. `wait`: see `write`."""
        if self.state is not _NOTHING:
            raise ResponseError("a second response to one request")
        if self.body is not None and self.body.failed is not None:
            self.fail(self.body.failed.status)
            self.state = _DROPPED
            return
        self._begin(status, code, fields, fields.length, first, wait=wait)

    def write(self, data: bytes, *, wait: bool = True) -> None:
        """Send a piece of the body.

        Returns when the system has all of it (PEP 3333), or if it was the last of its Content-Length. Without `wait` it
        returns at once, and what the system hasn't taken is pending (`stream`): the next piece has to wait for it.
        """
        if self.state is _DROPPED:
            return
        if self.state is not _BODY:
            raise ResponseError("a body without a response")
        self._send(b"", data, wait=wait)

    def end(self, trailers: Trailers | None = None) -> None:
        """End the response: all pieces were written. `trailers` are dropped unless the client asked for some."""
        if self.state is _DROPPED:
            self.state = _DONE
            return
        if self.state is not _BODY:
            raise ResponseError("the end without a response")
        self.state = _DONE
        if self._framing is _CHUNKED:
            if trailers is not None and self.request.takes_trailers():
                self._stream.send_after(b"0\r\n%b\r\n" % trailers.text.encode("latin-1"))
            else:
                self._stream.send_after(LAST_CHUNK)
        elif self._framing is _LENGTH and self._left:
            self._spoilt("response shorter than its Content-Length")
        if self.body is not None and self.keep:
            self._settle_body()

    def fail(self, code: int) -> None:
        """Answer with the page of an error if nothing was sent yet.

        Else end the connection, so that the client sees a cut body.
        """
        if self.state is _NOTHING:
            fields, content = self.site.page(code)
            self.respond(STATUS[code], code, fields, content)
        else:
            self.keep = False
            self.state = _DONE

    # Inside

    def _settle_body(self) -> int:
        """Find out whether the next request can be found behind this one's body, before the head says so.

        Returns the status that the body deserves, 0 if nothing is wrong with it as far as it has come.
        """
        body = self.body
        if body is None:
            return 0
        body.drain()
        if not body.done:
            self.keep = False
        return body.failed.status if body.failed is not None else 0

    def _spoilt(self, reason: str) -> None:
        self.keep = False
        self.site.log.warning(
            reason, method=self.request.method, target=self.request.target.decode("latin-1")
        )

    def _connection(self) -> str:
        if not self.keep:
            return CLOSE
        return KEEP_ALIVE if self.request.version == 10 else ""

    def _head(self, status: str, code: int, fields: Fields, length: int | None) -> bytes:
        """Choose the framing, and return the head that tells the client."""
        request = self.request
        self.code = code
        framing = ""
        if code in (204, 205):
            self._framing = _NO_BODY
            if code == 205:
                framing = "Content-Length: 0\r\n"
        elif request.method == "HEAD" or code == 304:
            self._framing = _NO_BODY
            # what GET would have had; 304 only if the kind says it, because its content here is not the
            # representation
            if length is not None and (code != 304 or fields.length is not None):
                framing = f"Content-Length: {length}\r\n"
        elif length is not None:
            self._framing = _LENGTH
            self._left = length
            framing = f"Content-Length: {length}\r\n"
        elif request.version == 11:
            self._framing = _CHUNKED
            framing = "Transfer-Encoding: chunked\r\n"
        else:
            self._framing = _CLOSE
            self.keep = False
        date = "" if fields.date else date_line()
        head = f"HTTP/1.1 {status}\r\n{fields.text}{framing}{date}{self._connection()}\r\n".encode("latin-1")
        self.head_size = len(head)
        return head

    def _begin(
        self, status: str, code: int, fields: Fields, length: int | None, first: bytes, *, wait: bool = True
    ) -> None:
        if self.body is not None:
            self.body.answered()
        head = self._head(status, code, fields, length)
        self.state = _BODY
        self._stream.begin()
        self._send(head, first, wait=wait)

    def _send(self, head: bytes, data: bytes, *, wait: bool = True) -> None:
        """Send `head` (or b"") and a piece of the body in its framing."""
        stream = self._stream
        framing = self._framing
        if framing is _NO_BODY:
            parts: tuple[bytes, ...] = (head,)
        elif framing is _LENGTH:
            if len(data) > self._left:
                self._spoilt("response longer than its Content-Length")
                data = data[: self._left]
            self._left -= len(data)
            parts = (head + data,) if len(data) <= JOIN_LIMIT else (head, data)
        elif framing is _CHUNKED and data:
            parts = (head + b"%x\r\n" % len(data), data, b"\r\n")
        else:
            parts = (head, data)
        if not wait:
            stream.send_last(parts)
        elif framing is _LENGTH and not self._left:
            stream.wait_sent()
            stream.send_last(parts)
            stream.wait_tail()
        else:
            stream.write(parts)
