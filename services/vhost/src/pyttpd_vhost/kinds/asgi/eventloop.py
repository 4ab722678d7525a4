"""The event loop of a worker's ASGI applications: their lifespan, the connections it has, and its end.

Theory of operation. It runs in the process's main thread, where programs that were written for uvicorn expect to be
(signal handlers, child watchers); the worker's own threads are others then. What they give it they put into the loop
(`call_soon_threadsafe`); what it gives back goes into their epoll directly (`Host.settle`). The worker's watcher looks
at it from outside: a loop that doesn't come round is stuck in synchronous code.

    begin: lifespan.startup ──> run ──> leave: idle ones go back, WebSockets get 1012
                                          └── everything answered, or time to go ──> finish: lifespan.shutdown ──> end

Rules:
- Everything here is done in the loop's thread, but for what `Aside` says otherwise.
- An application has at most `max_concurrency` tasks: requests, background tasks behind their answers, WebSockets. More
  wait; umaster is given less credit before (`excess`), and kept connections go to siblings (`full`).
- A startup that fails ends the worker, which says why, as an import that fails does.
- What has no end (a stream, a task that is awaited for ever) is cancelled a little before the worker's grace is over;
  what can't be cancelled doesn't keep the application from its shutdown.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.lifespan.on import LifespanOn
from uvicorn.server import ServerState

from pyttpd_vhost.aside import Load
from pyttpd_vhost.http.connection import Want
from pyttpd_vhost.kinds.asgi.complaints import shown, stack
from pyttpd_vhost.kinds.asgi.conversation import Conversation
from pyttpd_vhost.kinds.asgi.line import Line
from pyttpd_vhost.kinds.asgi.scopes import Scopes
from pyttpd_vhost.output import GIVEN_UP, SLOW

if TYPE_CHECKING:
    from pyttpd.config.kinds import AsgiOptions

    from pyttpd_vhost.aside import Host
    from pyttpd_vhost.http.engine import Request
    from pyttpd_vhost.kinds.base import Kind
    from pyttpd_vhost.parking import Parked
    from pyttpd_vhost.site import Site

#: How often (s) lines are looked at: half of what clients are looked at elsewhere, and of what idle ones stay.
LOOK = 0.25
#: An idle connection stays for so long (s): giving it back and getting it again costs as much as a request.
KEEP = 0.5
#: So many idle ones are given back at a time: then others have their turn, who would wait for thousands else.
A_FEW = 32
#: An application may take so long (s) to start, as to be imported (evictor.LOAD_TIMEOUT), less what telling takes.
STARTUP_TIMEOUT = 55.0
#: Of the worker's grace, what is left for the application's shutdown when everything else was cut off; at most (s).
GRACE_LEFT, MOST_LEFT = 0.25, 5.0
#: A loop that hasn't come round for so long (s) is stuck for as long as that lasts: siblings serve what they can.
STUCK_AFTER = 0.1
#: Lines of the access log are sent so long (s) after a connection was given back, if the watcher hasn't before.
FLUSH_AFTER = 0.02
#: How often (s) it is told that requests found no room.
TELL_EVERY = 10.0


class StartupError(Exception):
    """The application doesn't start: the last line of what it says of that, which is often a whole traceback. All of it
    is a note.
    """

    def __init__(self, said: str) -> None:
        lines = said.split("\n")
        super().__init__(next((line for line in reversed(lines) if line.strip()), "lifespan.startup failed"))
        if len(lines) > 1:
            self.add_note(said)


class _Tasks(set[Any]):
    """An application's tasks, as uvicorn keeps them; says when there are `most`, and when there is one less."""

    def __init__(self, most: int, full: Callable[[], None], less: Callable[[], None]) -> None:
        super().__init__()
        self._most = most
        self._full = full
        self._less = less

    def add(self, task: Any) -> None:
        """Begin."""
        super().add(task)
        if len(self) >= self._most:
            self._full()

    def discard(self, task: Any) -> None:
        """End."""
        super().discard(task)
        self._less()


class _Lifespan(LifespanOn):
    """uvicorn's, which keeps what the application says of its failure."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.said: list[str] = []
        self.logger = self  # type: ignore[assignment]  # the two methods that are used

    def info(self, text: str, *args: object) -> None:
        """Uvicorn's progress report."""

    def error(self, text: str, *args: object, exc_info: BaseException | None = None) -> None:
        """Keep it: a message of the application's, or its exception."""
        if exc_info is not None:
            self.said.append(shown(exc_info))
        elif not text.endswith("failed. Exiting."):  # uvicorn's own last word, which isn't true here
            self.said.append(text)


class Application:
    """One application in this process: `call` is it, as ASGI 3. `room`: one more task may be begun."""

    def __init__(
        self, application: Callable[..., Any], options: AsgiOptions, owner: EventLoop, kind: Kind
    ) -> None:
        self.options = options
        self.owner = owner
        self._kind = kind
        self.websockets = options.websockets
        self.config = Config(
            application,
            log_config=None,
            loop="none",
            workers=1,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            lifespan="auto" if options.lifespan == "off" else options.lifespan,  # type: ignore[arg-type]
            ws_max_size=options.websocket_max_size,
            ws_ping_interval=options.websocket_ping or None,
            ws_ping_timeout=options.websocket_ping or None,
            ws_per_message_deflate=options.websocket_compression,
        )
        self.config.load()
        self.call = self.config.loaded_app
        self.scopes = Scopes(owner.site)
        self.state = ServerState()
        self._most = options.max_concurrency
        self.tasks = self.state.tasks = _Tasks(self._most, self.count, self._less)
        self.lifespan: _Lifespan | None = None
        self.lifespan_state: dict[str, Any] = {}
        #: Requests that wait for room, the first one first.
        self.waiting: deque[Conversation] = deque()
        self.room = True
        self._told = -TELL_EVERY

    def serves(self, request: Request) -> bool:
        """Whether `request` is this application's."""
        kind: Any = self.owner.site.kind
        if kind is self._kind:
            return True
        if request.placed is None:
            request.placed = kind.place(request.path)
        return request.placed is not None and request.placed.kind is self._kind

    def count(self) -> None:
        """See whether there is room."""
        room = len(self.tasks) < self._most and not self.waiting
        if room != self.room:
            self.room = room
            self.owner.look_for_room()

    def excess(self, credit: int) -> int:
        """See `Aside.excess`."""
        return max(0, len(self.tasks) + len(self.waiting) + credit - self._most)

    def told_full(self) -> None:
        """Say, now and then, that requests were turned away."""
        now = time.monotonic()
        if now - self._told >= TELL_EVERY:
            self._told = now
            self.owner.site.log.warning(
                "requests were answered 503: max_concurrency is reached", max_concurrency=self._most
            )

    def _less(self) -> None:
        if self.room and not self.owner.held_back:
            return  # nearly always
        while self.waiting and len(self.tasks) < self._most:
            self.waiting.popleft().enter()
        self.count()
        self.owner.one_less()


class EventLoop:
    """`Aside`; see the module's text."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.applications: list[Application] = []
        self.full = False
        self.most = 0
        self.leaving = False
        self.loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]  # there is one from `begin` on
        self._home = site
        self._host: Host = None  # type: ignore[assignment]
        self._lines: dict[Line, None] = {}
        #: Those of them that are between two requests, and since when; in this order.
        self._idle: dict[Line, float] = {}
        #: Connections on their way into the loop. (A dictionary, since single steps of it are atomic.)
        self._coming: dict[Parked, None] = {}
        self._crowded = False
        self._ended = False
        self._finishing = False
        self._finished = threading.Event()
        self._swept = 0.0
        self._cut_at = self._give_up_at = 0.0
        self._clock = -1
        self._cpu = 0.0
        self._looked = 0.0
        self._load = Load()
        # The watcher's question whether the loop comes round, and when it was asked; 0.0: it was answered.
        self._asked = 0.0
        self._flushing = False
        self.held_back = False  # umaster got less credit than it might have
        #: Requests that were logged as slow, and those that were ended.
        self.slow_requests = self.timed_out = 0

    # ---- the life of it ----

    def begin(self, host: Host) -> None:
        """See `Aside.begin`."""
        self._host = host
        self.most = min(app.options.max_concurrency for app in self.applications)
        self.site = self._home.for_thread()
        wanted = {app.options.event_loop for app in self.applications}
        self.loop = _new_loop("uvloop" if "uvloop" in wanted else "asyncio")
        asyncio.set_event_loop(self.loop)
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self.loop.run_until_complete(self._start())

    async def _start(self) -> None:
        for app in self.applications:
            if app.options.lifespan == "off":
                continue
            lifespan = app.lifespan = _Lifespan(app.config)
            try:
                await asyncio.wait_for(lifespan.startup(), STARTUP_TIMEOUT)
            except TimeoutError:
                raise StartupError(f"lifespan.startup takes more than {STARTUP_TIMEOUT:.0f} s") from None
            if lifespan.should_exit:
                raise StartupError("\n".join(lifespan.said))
            if lifespan.error_occurred:
                self.site.log.info("the application raised an exception for lifespan: it is served without")
            app.lifespan_state = lifespan.state

    def run(self) -> None:
        """See `Aside.run`."""
        self._swept = time.monotonic()
        self.loop.call_later(LOOK, self._sweep)
        while not self._ended:
            try:
                self.loop.run_forever()  # also when the application has stopped it
            except (SystemExit, KeyboardInterrupt) as error:
                self.site.log.warning(
                    "a task of the application's wanted to end the process", error=repr(error)
                )

    #: It has a thread of its own, so nobody gives it turns.
    fd = -1
    hurry = False

    def turn(self) -> None:
        """See `Aside.turn`."""

    def sweep(self, now: float) -> None:
        """See `Aside.sweep`."""

    def leave(self) -> None:
        """See `Aside.leave`."""
        self._call(self._leave)

    def _leave(self) -> None:
        grace = self.site.share.grace
        left = min(MOST_LEFT, grace * GRACE_LEFT)
        self._cut_at = time.monotonic() + grace - left
        self._give_up_at = self._cut_at + left / 2
        self.leaving = True
        for line in list(self._lines):
            if not line.ended:
                line.talk.leave()

    def finish(self) -> bool:
        """See `Aside.finish`."""
        if not self._finishing:
            self._finishing = True
            self._call(self._shut_down)
        return self._finished.is_set()

    def _shut_down(self) -> None:
        task = self.loop.create_task(self._stop())
        task.add_done_callback(lambda _: self._finished.set())

    async def _stop(self) -> None:
        for app in self.applications:
            lifespan = app.lifespan
            if lifespan is not None:
                await lifespan.shutdown()
                if lifespan.shutdown_failed:
                    self.site.log.warning("lifespan.shutdown failed", error="\n".join(lifespan.said))
        await self.loop.shutdown_asyncgens()

    def end(self) -> None:
        """See `Aside.end`."""
        self._ended = True
        self._call(self.loop.stop)

    def fork(self, dup_dead: Callable[[Parked], None]) -> None:
        """See `Aside.fork`."""
        for one in self.taken():
            dup_dead(one)
        self.loop.call_soon(os._exit, 0)

    def _call(self, what: Callable[..., object], *args: object) -> None:
        try:
            self.loop.call_soon_threadsafe(what, *args)
        except RuntimeError:
            pass  # it is closed: the application did that

    # ---- connections ----

    def take(self, one: Parked) -> None:
        """See `Aside.take`."""
        self._coming[one] = None
        self._call(self._open, one)

    def _open(self, one: Parked) -> None:
        if self._coming.pop(one, self) is self:
            return  # it was taken away meanwhile
        app = one.connection.taker
        assert isinstance(app, Application)
        line = Line(self, one)
        self._lines[line] = None
        talk = line.talk = Conversation(line, app)
        line.open()
        talk.start()

    def rest(self, line: Line) -> None:
        """`line` is between two requests from now on."""
        self._idle[line] = time.monotonic()

    def wake(self, line: Line) -> None:
        """`line` has a request."""
        self._idle.pop(line, None)

    def give_back(self, line: Line, want: Want) -> None:
        """`line` has ended: its connection is the worker's again."""
        self._lines.pop(line, None)
        self._idle.pop(line, None)
        line.connection.move(self._home)
        self._host.settle(line.one, want)
        if self.site.access is not None and not self._flushing:
            self._flush_soon()

    def _flush_soon(self) -> None:
        self._flushing = True
        self.loop.call_later(FLUSH_AFTER, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self.site.flush()

    # ---- room ----

    def look_for_room(self) -> None:
        """An application has room that had none, or the other way round."""
        self.full = self._crowded = any(not app.room for app in self.applications)

    def one_less(self) -> None:
        """A task has ended."""
        if self._crowded or self.held_back:
            self.held_back = False
            self._host.give_credit()

    def excess(self, credit: int) -> int:
        """See `Aside.excess`."""
        excess = max(app.excess(credit) for app in self.applications)
        if excess:
            self.held_back = True
        return excess

    # ---- time ----

    def _sweep(self) -> None:
        self.loop.call_later(LOOK, self._sweep)
        now = time.monotonic()
        seconds, self._swept = now - self._swept, now
        for line in [line for line in self._lines if line not in self._idle]:
            if not line.ended:
                line.sweep(seconds)
        self._let_go()
        if self.leaving and now >= self._cut_at:
            for task in [task for app in self.applications for task in app.tasks if not task.cancelling()]:
                task.cancel()
        self.site.flush()

    def _let_go(self) -> None:
        """Give back who has been idle for a while."""
        latest = time.monotonic() - KEEP
        due = [line for line, since in islice(self._idle.items(), A_FEW) if since <= latest]
        for line in due:
            line.give_back(idle=True)
        if len(due) == A_FEW:
            self.loop.call_soon(self._let_go)

    def slow(self, request: Request, task: Any, age: float) -> None:
        """A request takes long."""
        self.slow_requests += 1
        self._tell(SLOW, request, task, age)

    def condemned(self, request: Request, task: Any, age: float) -> None:
        """A request has had its time."""
        self.timed_out += 1
        self._tell(GIVEN_UP, request, task, age)

    def _tell(self, event: str, request: Request, task: Any, age: float) -> None:
        self.site.log.warning(
            event,
            method=request.method,
            host=request.host,
            path=request.target.decode("latin-1"),
            seconds=round(age, 3),
            traceback="\n".join(["Task, which is slow:", *stack(task)]),
        )

    # ---- for the watcher ----

    @property
    def busy(self) -> bool:
        """See `Aside.busy`."""
        if self.leaving and time.monotonic() >= self._give_up_at:
            return False  # what can't be cancelled ends with the process
        return bool(self._lines or self._coming or any(app.tasks for app in self.applications))

    def look(self, now: float) -> Load:
        """See `Aside.look`."""
        load = self._load
        load.connections = len(self._lines) + len(self._coming)
        load.requests = sum(len(app.tasks) for app in self.applications)
        load.waiting = sum(len(app.waiting) for app in self.applications)
        stuck = self.stuck_for(now)
        seconds = now - self._looked
        if seconds > 0:
            cpu = time.clock_gettime(self._clock)
            share = min(1.0, (cpu - self._cpu) / seconds)
            self._cpu, self._looked = cpu, now
            if stuck >= STUCK_AFTER:
                share = 1.0
            load.busy = max(
                share, *(len(app.tasks) / app.options.max_concurrency for app in self.applications)
            )
        self.full = self._crowded or stuck >= STUCK_AFTER
        if not self._asked:
            self._asked = now
            self._call(self._answer)
        return load

    def _answer(self) -> None:
        self._asked = 0.0

    def stuck_for(self, now: float) -> float:
        """See `Aside.stuck_for`."""
        asked = self._asked
        return now - asked if asked else 0.0

    def taken(self) -> Iterable[Parked]:
        """See `Aside.taken`."""
        return [*[line.one for line in list(self._lines)], *list(self._coming)]


def _new_loop(name: str) -> asyncio.AbstractEventLoop:
    """Return a new loop. Raises ImportError when it is one that the tenant hasn't got."""
    if name == "uvloop":
        import uvloop  # type: ignore[import-not-found,unused-ignore]  # the tenant's, from its virtual environment

        return uvloop.new_event_loop()  # type: ignore[no-any-return]
    return asyncio.new_event_loop()
