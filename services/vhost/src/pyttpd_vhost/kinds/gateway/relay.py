"""One request between its client and an application in another process: bytes both ways, nothing held back.

Theory of operation. The thread that serves the request waits for four things at once: the client to send more of its
body, and to take more of its answer; the application to take more of the body, and to say more. One piece of each
direction is in hand at a time, so memory is flat however large bodies are, and whoever writes before it has read
doesn't stop the other direction. `Codec` knows how the application's protocol wraps the bytes; it never waits.

Nearly always an application is told all at once, and says its whole answer at once (`_at_once`): that is done in as few
steps as there are. Whatever comes otherwise is gone on with in full (`_pass_on`).

Or a switchboard waits for many of them in one thread (switchboard.py). Then it calls, instead of `run`: `start`; `hear`
when the application has said something, if it was told all; `pass_on_by` if that wasn't its whole answer, or took
longer than a look; from then on `go_on` with what has happened, also with nothing every LOOK; and `finish` once `over`.

Who is waited for pays for it:
    the client hasn't taken the answer        write_timeout, min_read_rate (http/stream.py)
    the client hasn't sent the body           read_timeout, min_body_rate: 408
    else the application                      its own read_timeout, and pool.request_timeout in all: 504

pool.request_timeout ends the request here a moment before the worker's audit would: the worker isn't stuck, and needn't
leave for it.

The client has gone when its connection is reset, or when it has closed its side and nothing has moved for
ABANDONED_AFTER: a FIN may be a half-close, and then an answer is still read. (nginx doesn't wait at all.)
"""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from time import monotonic
from typing import Protocol

from pyttpd_vhost.http.errors import ClientGone
from pyttpd_vhost.http.exchange import Exchange, State
from pyttpd_vhost.http.patience import LOOK
from pyttpd_vhost.kinds.gateway.answers import Answer, HeadParser
from pyttpd_vhost.kinds.gateway.bodies import NOTHING, Source
from pyttpd_vhost.kinds.gateway.errors import Errors
from pyttpd_vhost.kinds.gateway.faults import BackendError, Fault

#: One read of what the application says.
READ = 65536
#: How long (s) a client that has closed its side is served without anything moving.
ABANDONED_AFTER = 2.0
#: When the client needs no more of the answer (HEAD), the application may still say so much, and take so long (s), to
#: come to its end in peace.
REST_LIMIT = 1 << 20
REST_TIME = 1.0
#: How much earlier (s) than the worker's audit we end a request; at most this part of request_timeout.
MARGIN, MARGIN_PART = 2.0, 0.2

#: Pieces of the request's body that are passed on before we look at the answer.
BURST = 16

_DONE = State.DONE
_READABLE, _CLOSED = select.POLLIN, select.POLLRDHUP


class Said:
    """What a codec finds in the bytes of an application: pieces of its answer, of its complaints, and its end."""

    OUTPUT, ERRORS, END = range(3)


Event = tuple[int, bytes]


class Codec(Protocol):
    """Between the bytes of one request and what is on the wire. Without I/O."""

    def body(self, data: bytes) -> bytes:
        """Return a piece of the request's body as it is sent; of b"", what says that it is all."""
        ...

    def whole(self, data: bytes) -> bytes | None:
        """Return the whole answer if `data`, the first that the application says, is that and nothing else; or None:
        then it is for `receive`.
        """
        ...

    def receive(self, data: bytes) -> Sequence[Event]:
        """Return what `data` (not empty) says. Raises BackendError."""
        ...

    def closed(self) -> Sequence[Event]:
        """The application has closed its end. Raises BackendError if it mustn't have."""
        ...


class Wires:
    """The descriptors of an application: what we write to, read from, and its standard error if it has one (-1: none).

    The same one twice is a socket. All are non-blocking, and belong to who made this.
    """

    __slots__ = ("errors", "reading", "waiter", "writing")

    def __init__(self, writing: int, reading: int, errors: int = -1) -> None:
        self.writing = writing
        self.reading = reading
        self.errors = errors
        #: Waits for `reading` to be readable, where that is all that there is to be waited for; None: it isn't.
        self.waiter: select.poll | None = None

    def end_writing(self) -> None:
        """The request's body is over. For pipes: close the writing end, and set `writing` to -1."""


class Watcher(Protocol):
    """What a relay asks for events: a `select.poll`, or what puts them into somebody's epoll, which has the same."""

    def register(self, fd: int, eventmask: int, /) -> None: ...
    def unregister(self, fd: int, /) -> None: ...


class Relay:
    """See the module's text. `first` is sent before the body; `patience` (s) bounds the application's silence."""

    # How things stand at first, and in most requests at the end.
    _client = -1  # the client's descriptor, once it is watched
    _poll: Watcher
    _pending = _asks = False  # the client is waited for: to take the answer, to send the body
    _began = 0.0  # since when that is so, or the application is waited for
    _silent = _spent = 0.0
    _answer: Answer | None = None
    _left: int | None = None  # of the answer's Content-Length
    _surplus = 0  # bytes of the answer that nobody needs
    _full_since = 0.0  # when the client had all that it may have, 0: it hasn't
    _closed_since = 0.0  # when it has closed its side, 0: it hasn't
    #: Bytes of the request have got to the application.
    begun = False
    #: The application has all of the request.
    told = False
    #: It has said something.
    heard = False
    #: It has come to its end.
    ended = False

    def __init__(
        self,
        exchange: Exchange,
        codec: Codec,
        wires: Wires,
        source: Source,
        first: bytes,
        errors: Errors,
        patience: float,
    ) -> None:
        self._exchange = exchange
        self._stream = exchange.stream
        self._codec = codec
        self._wires = wires
        self._source = source
        self._out: bytes | memoryview = first
        self._errors = errors
        self._patience = patience
        self._parser = HeadParser()
        self._watched: dict[int, int] = {}

    def run(self) -> str:
        """Pass all on. Returns the path and query of a local redirect, else "": then the exchange has its answer.

        `ended` says whether the application has come to its end, or was left in the middle. Raises BackendError,
        RequestError, and ClientGone.
        """
        try:
            self.start()
            waiter = self._wires.waiter
            if waiter is None or not self.told or not self._at_once(waiter):
                self._pass_on()
        finally:
            self.close()
        return self.finish()

    def start(self) -> None:
        """Tell the application what it takes now."""
        if self._source.done:
            self._out = b"".join((self._out, self._codec.body(b"")))
        self._pump()

    def close(self) -> None:
        """It is over, well or not."""
        self._errors.end()

    def finish(self) -> str:
        """End the answer; see `run`."""
        answer = self._answer
        if answer is None:
            raise self._parser.end()
        if answer.local:
            return answer.local
        if self._exchange.state is not _DONE:
            if self._left:
                raise BackendError(Fault.LENGTH, f"{self._left} bytes fewer than its Content-Length")
            self._exchange.end()
        return ""

    def _at_once(self, waiter: select.poll) -> bool:
        """The application was told all: take its whole answer, if that is what comes next, and within a look."""
        reading = self._wires.reading
        client = self._stream.sock.fileno()
        began = monotonic()
        waiter.register(client, _CLOSED)
        events = waiter.poll(min(LOOK, self._patience) * 1000)
        waiter.unregister(client)
        self._spent = monotonic() - began
        # with an end behind it, if the connection isn't kept
        if len(events) != 1 or events[0][0] != reading or not events[0][1] & _READABLE:
            self._silent = 0.0 if events else self._spent
            return False
        return self.hear()

    def hear(self) -> bool:
        """Take what the application says first; say whether that was its whole answer."""
        try:
            data = os.read(self._wires.reading, READ)
        except OSError:
            return False
        if not data:
            return False
        self.heard = True
        whole = self._codec.whole(data)
        if whole is None:
            self._read(data)
            return False
        self.ended = True
        self._say(whole)
        return True

    def _pass_on(self) -> None:
        """Pass on what comes, until the application has come to its end."""
        self._poll = poll = select.poll()
        self._begin_to_pass_on()
        while not self.over:
            left = self._expect()
            events = poll.poll(left * 1000)
            self._waited(moved=bool(events))
            self._turn(events)

    def pass_on_by(self, watcher: Watcher, *, silent: float, spent: float) -> None:
        """Go on in full, with the events that `watcher` is asked for. The application has said nothing for `silent` s,
        and has had the request for `spent` s.
        """
        self._silent, self._spent = silent, spent
        self._poll = watcher
        self._begin_to_pass_on()
        if not self.over:
            self._expect()

    def go_on(self, events: list[tuple[int, int]]) -> None:
        """So much has happened since the last time."""
        self._waited(moved=bool(events))
        self._turn(events)
        if not self.over:
            self._expect()

    def _begin_to_pass_on(self) -> None:
        limit = self._exchange.site.share.pool.request_timeout
        #: What the application may take in all (s); 0: as long as it likes.
        self._limit = limit - min(MARGIN, limit * MARGIN_PART)
        self._moved = self._looked = monotonic()
        self._client = self._stream.sock.fileno()

    @property
    def over(self) -> bool:
        """Nothing more is to be passed on: `finish` is next."""
        return self.ended or self._enough()

    @property
    def at_a_boundary(self) -> bool:
        """Nothing is half said to the application: something else may be said."""
        return self.begun and not self._out

    def _enough(self) -> bool:
        """The client has all that it may have, and the application doesn't come to an end."""
        if self._answer is None:
            return False
        if self._answer.local:
            return True
        if not self._full_since:
            return False
        return self._surplus > REST_LIMIT or monotonic() - self._full_since >= REST_TIME

    # ---- waiting ----

    def _expect(self) -> float:
        """Ask for the events of whoever is next; return how long (s) to wait for them."""
        stream, wires = self._stream, self._wires
        pending = stream.pending
        asks = not self._out and not self._source.done
        left = LOOK
        client = 0 if self._closed_since else select.POLLRDHUP
        if pending:
            client |= select.POLLOUT
        if asks:
            client |= select.POLLIN
            if not pending:
                left = min(left, self._source.waited(0.0))
        elif not pending:
            left = min(left, self._patience - self._silent)
        if self._full_since:
            left = min(left, self._full_since + REST_TIME - monotonic())
        self._watch(self._client, client)
        reading = 0 if pending else select.POLLIN
        writing = select.POLLOUT if self._out else 0
        if wires.writing == wires.reading:
            self._watch(wires.reading, reading | writing)
        else:
            self._watch(wires.reading, reading)
            self._watch(wires.writing, writing)
        self._watch(wires.errors, select.POLLIN)
        self._pending, self._asks, self._began = pending, asks, monotonic()
        if pending or asks:
            stream.waiting = self._began
        return max(0.0, left)

    def _waited(self, *, moved: bool) -> None:
        """That was waited for, since `_expect`. Raises for who is too slow."""
        stream, pending, asks = self._stream, self._pending, self._asks
        now = monotonic()
        if pending or asks:
            stream.waited += now - self._began
            stream.waiting = 0.0
        self._charge(now, now - self._began, pending=pending, asks=asks, moved=moved)

    def _watch(self, fd: int, events: int) -> None:
        """Ask for `events` of `fd` from now on; 0: not even for its end, which only the client's tells always."""
        if fd < 0 or self._watched.get(fd, 0) == events != 0:
            return
        if events or fd == self._client:
            self._poll.register(fd, events)
            self._watched[fd] = events
        elif fd in self._watched:
            self._poll.unregister(fd)
            del self._watched[fd]

    def _charge(self, now: float, took: float, *, pending: bool, asks: bool, moved: bool) -> None:
        """Let whoever was waited for pay."""
        if pending:
            if now - self._looked >= LOOK:
                self._looked = now
                self._stream.look()
        elif asks:
            self._source.waited(took)
        else:
            self._spent += took
            self._silent = 0.0 if moved else self._silent + took
            if self._silent >= self._patience and not self._full_since:
                raise BackendError(Fault.SLOW, f"it neither said nor took anything for {self._patience:g} s")
            if self._limit and self._spent >= self._limit:
                raise BackendError(Fault.SLOW, "not done within pool.request_timeout")
        if moved:
            self._moved = now
        elif self._closed_since and now - max(self._moved, self._closed_since) >= ABANDONED_AFTER:
            raise ClientGone("the client has closed its side, and nothing moves")

    def _turn(self, events: list[tuple[int, int]]) -> None:
        """Do what can be done without waiting."""
        wires = self._wires
        for fd, event in events:
            if fd == self._client:
                if event & (select.POLLERR | select.POLLHUP):
                    raise ClientGone("the client has reset its connection")
                if event & select.POLLRDHUP:
                    self._closed_since = monotonic()
                if event & select.POLLOUT:
                    self._stream.flush()
                if event & select.POLLIN:
                    self._pump()
                continue
            if fd == wires.errors:
                self._read_errors()
                continue
            if fd == wires.writing and event & ~select.POLLIN:
                self._pump()
            if fd == wires.reading and event & ~select.POLLOUT and not self._stream.pending:
                self._read()

    # ---- the request ----

    def _pump(self) -> None:
        """Pass on of the request what there is, and what the application takes."""
        for _ in range(BURST):
            if not self._write():
                return
            if self._source.done:
                if not self.told:
                    self.told = True
                    if self._wires.writing != self._wires.reading:
                        self._watch(self._wires.writing, 0)  # its number may be another's afterwards
                    self._wires.end_writing()
                return
            data = self._source.read()
            if data is None:
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        """Have in hand what comes next; behind the last of it, what says that it is the last."""
        self._out = self._codec.body(data) if data else b""
        if self._source.done:
            self._out += self._codec.body(b"")

    def _write(self) -> bool:
        """Write what is in hand. False: the application doesn't take it now, or takes nothing any more."""
        while out := self._out:
            try:
                count = os.write(self._wires.writing, out)
            except BlockingIOError:
                return False
            except OSError:
                # It has closed its end. What it has said before is still to be read, and may be a whole answer.
                self._out = b""
                self._source = NOTHING
                return False
            self.begun = True
            self._out = b"" if count == len(out) else memoryview(out)[count:]
        return True

    # ---- the answer ----

    def _read(self, data: bytes = b"") -> None:
        """Take what the application says. Before its answer begins, twice: its end is often there already, and then the
        client gets a length, or is told of a wrong one. `data` was read before.
        """
        pieces: list[bytes] = []
        if data:
            self._hear(self._codec.receive(data), pieces)
        for _ in range(1 if data or self._answer is not None else 2):
            if self.ended or not self._read_some(pieces):
                break
        if pieces:
            self._say(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def _read_some(self, pieces: list[bytes]) -> bool:
        """Add to `pieces` of the answer. False: there is nothing to read."""
        try:
            data = os.read(self._wires.reading, READ)
        except BlockingIOError:
            return False
        except OSError:
            data = b""  # ECONNRESET: it has closed without reading all of the request
        if data:
            self.heard = True
        self._hear(self._codec.receive(data) if data else self._codec.closed(), pieces)
        return True

    def _hear(self, said: Sequence[Event], pieces: list[bytes]) -> None:
        """Take apart what was said."""
        for what, piece in said:
            if what == Said.OUTPUT:
                pieces.append(piece)
            elif what == Said.ERRORS:
                self._errors.feed(piece)
            else:
                self.ended = True

    def _read_errors(self) -> None:
        try:
            data = os.read(self._wires.errors, READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._errors.feed(data)
        else:
            self._watch(self._wires.errors, 0)
            self._wires.errors = -1

    def _say(self, data: bytes) -> None:
        """Pass a piece of the answer on to the client."""
        exchange = self._exchange
        if self._answer is None:
            found = self._parser.feed(data)
            if found is None:
                return
            self._answer, data = found
            if not self._answer.local:
                self._begin(self._answer, data)
        elif self._full_since:
            self._surplus += len(data)
            if self._left == 0:
                raise BackendError(Fault.LENGTH, "more bytes than its Content-Length")
        else:
            exchange.write(self._fitting(data), wait=False)
        if exchange.full and not self._full_since:
            self._full_since = monotonic()
            if self._left is not None and self._left < 0:
                raise BackendError(Fault.LENGTH, "more bytes than its Content-Length")
        if self._stream.pending:
            self._stream.watch()
            self._looked = monotonic()

    def _fitting(self, data: bytes) -> bytes:
        """Return what of `data` the answer's Content-Length has room for."""
        if self._left is None:
            return data
        piece = data[: self._left]
        self._left -= len(data)  # less than nothing: it says too much
        return piece

    def _begin(self, answer: Answer, data: bytes) -> None:
        """Send the head, and what has come of the body with it; all of it, if the application has ended already."""
        exchange = self._exchange
        length = answer.fields.length
        bodiless = exchange.request.method == "HEAD" or answer.code in (204, 205, 304)
        if not self.ended or (bodiless and length is None):
            if not bodiless:
                self._left = length
                data = self._fitting(data)
            exchange.begin(answer.status, answer.code, answer.fields, data, wait=False)
            return
        if length is not None and length != len(data) and not bodiless:
            raise BackendError(Fault.LENGTH, f"{len(data)} bytes, and its Content-Length says {length}")
        exchange.respond(answer.status, answer.code, answer.fields, data)
