"""A client's requests, one after the other: what HttpToolsProtocol is in uvicorn.

Theory of operation. The worker's threads have read the first head; the next ones are read here, by the same reader
(http/heads.py), which is stricter than llhttp alone, and quicker. What isn't a whole head, isn't a request that may be
served, or isn't this application's goes back to the threads unread (aside.py), as does a connection that has been
idle for a moment (eventloop.KEEP), and one that is to end.

    waiting ── room for one more request ──> serving ── answered ──> sending, if the client hasn't taken all ──> idle
      └── too long: 503                                                                                           │
                                                 serving <── its next request ────────────────────────────────────┤
                                                                                       given back <───────────────┘

Rules:
- While a request is answered, of what comes behind it one read is kept, and then nothing is read any more.
- A body is read ahead up to uvicorn's HIGH_WATER_LIMIT, and then as the application takes it.
- A body that is malformed, too large or too slow, is answered for that, whatever the application says, as in every
  kind.
- There may be thousands, most of them idle. So nothing of a request is kept behind it, what only some need is made
  when it is needed, and what has ended doesn't refer to itself by way of others: it would wait for the garbage
  collector, and what a process has had at the most it keeps.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from pyttpd.head import Refused

from pyttpd_vhost.http.engine import CHUNKED
from pyttpd_vhost.http.errors import ClientGone, RequestError
from pyttpd_vhost.http.exchange import State
from pyttpd_vhost.http.patience import Pace
from pyttpd_vhost.http.stream import BODY_READ, HEAD_READ
from pyttpd_vhost.kinds.asgi.complaints import Complaints
from pyttpd_vhost.kinds.asgi.cycle import Cycle
from pyttpd_vhost.kinds.asgi.stream import LoopBody
from pyttpd_vhost.kinds.asgi.websocket import WebSocket, asked_for

if TYPE_CHECKING:
    from pyttpd_vhost.http.engine import Request
    from pyttpd_vhost.http.exchange import Exchange
    from pyttpd_vhost.kinds.asgi.eventloop import Application
    from pyttpd_vhost.kinds.asgi.line import Line

#: How long (s) a request waits for another one's end when there are `max_concurrency` already.
ROOM_TIMEOUT = 10.0

_NOTHING = State.NOTHING


class CycleTransport:
    """What a cycle sees of the line. Uvicorn's closes what an application leaves half answered: `unfinished` does, and
    not the connection that has another request meanwhile.
    """

    __slots__ = ("_line",)

    def __init__(self, line: Line) -> None:
        self._line = line

    def write(self, data: bytes) -> None:
        """Send `100 Continue`."""
        self._line.write(data)

    def is_closing(self) -> bool:
        """Whether that makes sense no more."""
        return self._line.ended

    def close(self) -> None:
        """See above."""


class Conversation:
    """See the module's text. `app`: the application that the first request is for.

    Its cycles know it as uvicorn's FlowControl, too.
    """

    __slots__ = (
        "_app",
        "_body",
        "_came",
        "_cycle",
        "_pace",
        "_room",
        "_stream",
        "_waited",
        "_whole",
        "cycles",
        "exchange",
        "line",
        "logger",
        "read_paused",
        "write_paused",
    )

    def __init__(self, line: Line, app: Application) -> None:
        self.line = line
        self.exchange: Exchange = line.exchange
        self.logger = Complaints(line)
        self.cycles = CycleTransport(line)
        self.read_paused = False
        self.write_paused = False
        self._room: asyncio.Event | None = None  # what the application's send() waits for
        self._app = app
        self._stream = line.stream
        self._body: LoopBody | None = None
        self._pace: Pace | None = None
        self._came = 0
        self._cycle: Cycle | None = None
        self._whole = False  # all of the answer is given to the stream
        self._waited: float | None = None

    # From the line

    def start(self) -> None:
        """Serve the request that the worker's threads have read."""
        request = self.exchange.request
        body = None
        if request.length:
            body = self._new_body(request)
            self.exchange.body = body
        self._begin(request, body)

    def readable(self) -> None:
        """Something has come, or the end has."""
        if self._body is not None and not self._body.done and self._body.failed is None:
            self._pull()
            return
        try:
            data = self._stream.receive(HEAD_READ)
        except BlockingIOError:
            return
        except ClientGone as gone:
            self.line.lose(gone)
            return
        if self.idle and not self._stream.ahead:
            if not data:
                self.line.give_back(idle=True)  # whose next turn sees it, too
                return
            self._stream.ahead = data
            self._next()
        elif data:
            self._stream.ahead += data
            self.line.hold(held=True)
        else:
            self.line.hold(held=True)
            self._hear_no_more()

    def closing(self) -> None:
        """Nobody asks for that here: the exchange knows whether the connection ends."""

    def drained(self) -> None:
        """All that was pending is sent."""
        if self._whole:
            self._answered()

    @property
    def idle(self) -> bool:
        """Between two requests."""
        return self._cycle is None and self._waited is None and not self._whole

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone: the application is told, whatever it waits for."""
        if self._waited is not None:
            self._app.waiting.remove(self)
            self._waited = None
        self._hear_no_more()
        self._cycle = None
        self.resume_writing()

    def leave(self) -> None:
        """The worker retires."""
        if self.idle and not self._stream.ahead:
            self.line.give_back(idle=True)

    # What its cycles wait for

    def pause_reading(self) -> None:
        """There is enough of the body for now."""
        if not self.read_paused:
            self.read_paused = True
            self.line.pause_reading()

    def resume_reading(self) -> None:
        """The application takes what there is of the body."""
        if self.read_paused:
            self.read_paused = False
            self.line.resume_reading()

    def pause_writing(self) -> None:
        """The client has enough to take for now."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """It has taken it, or has gone."""
        self.write_paused = False
        if self._room is not None:
            self._room.set()
            self._room = None

    async def drain(self) -> None:
        """Wait for that."""
        if self.write_paused:
            if self._room is None:
                self._room = asyncio.Event()
            await self._room.wait()

    # A request

    def _next(self) -> None:
        """Begin with the next request, if it is one, and ours."""
        if self.line.ended:
            return
        connection, stream = self.line.connection, self._stream
        data = stream.ahead
        try:
            request = self.line.owner.site.heads.read(data)
            if request is not None:
                connection.admit(request)
        except Refused:
            request = None
        if request is None or not self._app.serves(request):
            self.line.give_back(idle=False)
            return
        stream.ahead = data[request.end :]
        body = self._new_body(request) if request.length else None
        connection.begin(request, body)
        self.line.hold(held=False)  # here, and not before: what came in between has held it again
        self.line.owner.wake(self.line)
        self._begin(request, body)

    def _new_body(self, request: Request) -> LoopBody:
        site = self.line.owner.site
        return LoopBody(
            self._stream,
            request.length,
            site.engine.chunked() if request.length == CHUNKED else None,
            expect=request.expect,
            limit=site.settings.body_limit,
        )

    def _begin(self, request: Request, body: LoopBody | None) -> None:
        if self._app.room:
            self._run(request, body)
        else:
            self._waited = 0.0
            self._app.waiting.append(self)
            self.line.hold(held=True)
            self._app.count()

    def enter(self) -> None:
        """There is room now."""
        self._waited = None
        self.line.hold(held=False)
        self._run(self.exchange.request, self.exchange.body)  # type: ignore[arg-type]

    def _run(self, request: Request, body: LoopBody | None) -> None:
        app = self._app
        scope = app.scopes.of(request, self.exchange, self.line.server, app.lifespan_state)
        if app.websockets and asked_for(request):
            self._become_websocket(scope)
            return
        cycle = self._cycle = Cycle(self, scope, expect=request.expect)
        self._body = body
        if body is None:
            cycle.more_body = False
            cycle.message_event.set()
        else:
            self._pace = Pace()
            self._came = 0
            self._pull()
        task = cycle.task = self.line.owner.loop.create_task(cycle.run_asgi(app.call))
        app.tasks.add(task)
        task.add_done_callback(app.tasks.discard)

    def _become_websocket(self, scope: dict[str, Any]) -> None:
        line = self.line
        if line.owner.leaving:
            self.exchange.keep = False
            self._fail(503)  # another worker is a better one
            self.on_response_complete()
            return
        self.exchange.spoil()  # whoever ends it says nothing of HTTP
        line.counts = True
        line.talk = WebSocket(line, self._app, scope)
        line.talk.begin()

    # Its body

    def _pull(self) -> None:
        """Read of the body what is there, as far as there is room for it."""
        body, cycle = self._body, self._cycle
        assert body is not None
        assert cycle is not None
        before = self._came
        try:
            while not body.done and len(cycle.body) <= HIGH_WATER_LIMIT:
                piece = body.read(BODY_READ)
                cycle.body += piece
                self._came += len(piece)
        except BlockingIOError:
            pass
        except RequestError as error:
            self._spoil(error)
            return
        if body.done:
            cycle.more_body = False
            cycle.waiting_for_100_continue = False
        elif self._came != before:
            cycle.waiting_for_100_continue = False
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.pause_reading()
        else:
            return
        cycle.message_event.set()

    def _spoil(self, error: RequestError) -> None:
        """The body can't be read to its end: nothing of it counts, and nothing comes behind it."""
        assert self._body is not None
        self._body.failed = error
        self.line.hold(held=True)
        self._hear_no_more()

    def _hear_no_more(self) -> None:
        if self._cycle is not None:
            self._cycle.disconnected = True
            self._cycle.message_event.set()

    # Its answer

    def on_response_complete(self) -> None:
        """The cycle has given all of the answer to the stream."""
        self._whole = True
        if not self._stream.pending:
            self._answered()
        else:
            self.line.sent()

    def unfinished(self, cycle: Cycle) -> None:
        """The application has returned, or failed, and the answer isn't whole."""
        if self.line.ended or cycle is not self._cycle:
            return
        if cycle.condemned:
            self.exchange.keep = False
        self._fail(504 if cycle.condemned else 500)
        cycle.response_complete = True
        self.on_response_complete()

    def _fail(self, code: int) -> None:
        try:
            self.exchange.fail(code)
        except ClientGone as gone:
            self.line.lose(gone)

    def _answered(self) -> None:
        """All of it is sent."""
        line = self.line
        if line.ended:
            return
        exchange, body, stream = self.exchange, self._body, self._stream
        line.connection.answered()
        self._cycle = self._body = self._pace = None
        self._whole = False
        self.resume_reading()
        if not exchange.keep:
            announced = not exchange.request.keep_alive and not stream.ahead and (body is None or body.done)
            line.give_back(idle=False, announced=announced)
        elif stream.ahead:
            line.owner.loop.call_soon(self._next)
        elif line.owner.leaving:
            line.give_back(idle=True)
        else:
            line.hold(held=False)
            line.owner.rest(line)

    # Time

    def sweep(self, seconds: float) -> None:
        """See `Line.sweep`."""
        cycle = self._cycle
        if self._waited is not None:
            self._waited += seconds
            if self._waited >= ROOM_TIMEOUT:
                self._turn_away()
        elif self._whole:
            pass  # the line sees how the client takes it
        elif cycle is not None:
            self._watch_body(seconds)
            if not self._waits_for_client():
                cycle.age += seconds
                self._watch_application(cycle)

    def _waits_for_client(self) -> bool:
        if self.write_paused:
            return True
        body = self._body
        return body is not None and not body.done and body.failed is None and not self.read_paused

    def _watch_body(self, seconds: float) -> None:
        body = self._body
        if body is None or body.done or body.failed is not None or self.read_paused:
            return
        patience, pace = self.line.owner.site.patience, self._pace
        assert pace is not None
        if self._cycle is not None and self._cycle.waiting_for_100_continue:
            return  # it waits for us
        pace.add(seconds, self._came, patience.body_rate)
        self._came = 0
        if pace.left(patience.read, patience.body_rate, patience.grace) <= 0:
            self._spoil(
                RequestError(
                    408, pace.slow(patience.read, "of the body came", "read_timeout", "min_body_rate")
                )
            )

    def _watch_application(self, cycle: Cycle) -> None:
        pool = self.line.owner.site.share.pool
        if pool.request_timeout and cycle.age >= pool.request_timeout and not cycle.condemned:
            cycle.condemned = True
            self.line.owner.condemned(self.exchange.request, cycle.task, cycle.age)
            self.unfinished(cycle)
            if cycle.task is not None:
                cycle.task.cancel()
        elif (
            pool.slow_request
            and cycle.age >= pool.slow_request
            and not cycle.reported
            and self.exchange.state is _NOTHING
        ):
            cycle.reported = True
            self.line.owner.slow(self.exchange.request, cycle.task, cycle.age)

    def _turn_away(self) -> None:
        """There was no room for it."""
        self._app.waiting.remove(self)
        self._waited = None
        self._app.told_full()
        self.exchange.keep = False
        self._fail(503)
        self.on_response_complete()
