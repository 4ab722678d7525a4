"""The audit: which requests take too long, what their threads are doing, and the end of those that have had their time.

Theory of operation. The worker's watcher looks at each serving thread now and then. A thread says which connection it
serves, the connection how many requests it has begun: what is the same in two looks is one request, which is at least
as old as the time between them. So requests pay nothing for being watched. Time in which a request waits for its
client isn't counted: that has bounds of its own (http/stream.py).

    older than slow_request: one entry in the tenant's log, with tracebacks of all threads; it goes on
    older than request_timeout: its client is taken away from it, and gets 504 if nothing was sent; the worker retires

Taken away means: the number that the thread knows as its client's socket becomes another, dead socket
(`Parking.take_away`), so there is no moment at which both could write. Whether the thread had begun to answer is asked
*afterwards*: it says so before it sends (http/exchange.py, `state`), and what it sends after that reaches nobody.

All of that needs the interpreter. Where a C function holds its lock, the watcher stands still as well and the worker
says no Beat; then the supervisor looks (inquest.py).

Rules:
- Nothing here waits, and nothing here calls the tenant's code.
- What is logged is bounded in size and in rate, and names what a client has chosen; the log makes it printable.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType
from typing import TYPE_CHECKING

from pyttpd_vhost import kinds
from pyttpd_vhost.http.response import CLOSE, STATUS, date_line
from pyttpd_vhost.output import SLOW, STUCK, TIMED_OUT

if TYPE_CHECKING:
    from pyttpd_vhost.aside import Aside
    from pyttpd_vhost.crew import Server
    from pyttpd_vhost.http.connection import Connection
    from pyttpd_vhost.parking import Parking
    from pyttpd_vhost.site import Site, SiteLog

#: Entries that a worker writes within WINDOW (s); the others are counted, and told with the next one.
MAX_ENTRIES = 10
WINDOW = 10.0
#: Frames shown of the slow thread and of each other one, innermost kept; and how many others.
MAX_FRAMES = 30
MAX_OTHER_FRAMES = 10
MAX_OTHERS = 10
#: Where the code of kinds is.
_KINDS = kinds.__path__[0]
#: What the main thread of a worker and its others begin in.
_STARTERS = ((f"{os.path.dirname(_KINDS)}/prototype.py", "_be_worker"), (threading.__file__, "run"))
#: A file's or function's name longer than this is cut.
MAX_NAME = 120
#: How long (s) a client that got 504 may take to close, as after any answer of ours.
LINGER = 2.0
_LINGER_READ = 65536
#: recv(2) calls for a lingering client in one look.
_LINGER_BURST = 16


class Audit:
    """A worker's. Its counters are for the scoreboard: `slow` requests, those `timed_out`, those of them `answered`."""

    def __init__(self, site: Site, log: SiteLog, parking: Parking) -> None:
        self._slow_after = site.share.pool.slow_request
        self._end_after = site.share.pool.request_timeout
        self._page = site.page
        self._log = log
        self._parking = parking
        self._lingering: list[tuple[socket.socket, float]] = []
        self._entries: list[float] = []
        self._suppressed = 0
        self._stuck_told = False
        self.slow = 0
        self.timed_out = 0
        self.answered = 0
        self.bytes_sent = 0

    @property
    def lingering(self) -> bool:
        """Some clients that got 504 haven't closed yet."""
        return bool(self._lingering)

    def look(self, now: float, servers: Iterable[Server]) -> list[Server]:
        """See what each of `servers` is at, log what is slow, and return who has been at it for request_timeout."""
        overdue = []
        for server in servers:
            age = follow(server, now)
            if self._end_after and age >= self._end_after:
                overdue.append(server)
            elif self._slow_after and age >= self._slow_after and not server.reported:
                server.reported = True
                self.slow += 1
                self._report(SLOW, server, age, now)
        if self._lingering:
            self._linger(now)
        return overdue

    def condemn(self, server: Server, now: float) -> bool:
        """Take its client away from `server`, and answer 504 if nobody has. False: it has finished meanwhile."""
        one = server.one
        if one is None or server.seen != (one, one.connection.served):
            return False
        age = now - server.since
        connection = one.connection
        try:
            ours, dead = socket.socketpair()
            with ours, dead:
                dead.shutdown(socket.SHUT_RDWR)
                sock = self._parking.take_away(one, dead)
        except OSError:
            # No free descriptor: the end of the connection takes none, but there will be no answer.
            sock = None
            if connection.sock.fileno() < 0:
                return False
            with contextlib.suppress(OSError):  # ENOTCONN: the client was faster
                connection.sock.shutdown(socket.SHUT_RDWR)
        else:
            if sock is None:
                return False
        server.condemned = one
        self.timed_out += 1
        self._report(TIMED_OUT, server, age, now)
        if sock is not None:
            self._part(sock, connection, now)
        return True

    def look_aside(self, aside: Aside, now: float) -> None:
        """Log an event loop that doesn't come round: whatever it serves is slow."""
        stuck = aside.stuck_for(now)
        if stuck < self._slow_after or not self._slow_after:
            self._stuck_told = False
        elif not self._stuck_told:
            self._stuck_told = True
            self.slow += 1
            self._log.warning(
                STUCK,
                seconds=round(stuck, 3),
                connections=len(list(aside.taken())),
                traceback="\n".join(tracebacks(threading.main_thread().ident or 0)),
            )

    def stuck_aside(self, aside: Aside, now: float) -> bool:
        """Take all clients away from an event loop that hasn't come round for request_timeout; say whether that is."""
        if not self._end_after or aside.stuck_for(now) < self._end_after:
            return False
        for one in aside.taken():
            try:
                ours, dead = socket.socketpair()
                with ours, dead:
                    dead.shutdown(socket.SHUT_RDWR)
                    sock = self._parking.take_away(one, dead)
            except OSError:
                with contextlib.suppress(OSError):
                    one.connection.sock.shutdown(socket.SHUT_RDWR)
                continue
            if sock is not None:
                self._part(sock, one.connection, now)
        self.timed_out += 1
        return True

    def _part(self, sock: socket.socket, connection: Connection, now: float) -> None:
        """Answer 504 if nothing was sent, and close as soon as the client has read it. Owns `sock`."""
        request = connection.request
        if connection.unanswered and request is not None:
            fields, content = self._page(504)
            head = f"HTTP/1.1 {STATUS[504]}\r\n{fields.text}Content-Length: {len(content)}\r\n{date_line()}{CLOSE}\r\n"
            if request.method == "HEAD":
                content = b""
            try:
                self.bytes_sent += sock.send(head.encode("latin-1") + content)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # gone, or it takes nothing: what is left is to close
            else:
                self.answered += 1
                connection.taken_away(504, len(content))
                self._lingering.append((sock, now + LINGER))
                return
        connection.taken_away()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()

    def _linger(self, now: float) -> None:
        """Read and drop what clients still send, so that no reset overtakes their answer (RFC 9112 section 9.6)."""
        left = []
        for sock, until in self._lingering:
            try:
                for _ in range(_LINGER_BURST):
                    if not sock.recv(_LINGER_READ):
                        break
                else:
                    left.append((sock, until))
                    continue
            except BlockingIOError:
                if now < until:
                    left.append((sock, until))
                    continue
            except OSError:
                pass
            sock.close()
        self._lingering = left

    def fork(self) -> None:
        """In a forked child: who lingers isn't its client."""
        for sock, _ in self._lingering:
            sock.close()
        self._lingering = []

    def _report(self, event: str, server: Server, age: float, now: float) -> None:
        one = server.one
        request = None if one is None else one.connection.request
        if request is None:
            return  # it has just ended
        self._entries = [then for then in self._entries if now - then < WINDOW]
        if len(self._entries) >= MAX_ENTRIES:
            self._suppressed += 1
            return
        self._entries.append(now)
        fields: dict[str, object] = {
            "method": request.method,
            "host": request.host,
            "path": request.target.decode("latin-1"),
            "seconds": round(age, 3),
            "thread": server.name,
        }
        if self._suppressed:
            fields["not_told"] = self._suppressed
            self._suppressed = 0
        self._log.warning(event, **fields, traceback="\n".join(tracebacks(server.ident)))


def follow(server: Server, now: float) -> float:
    """Return how old (s) the request is that `server` serves, at least; 0.0: it serves none, or one that is new."""
    one = server.one
    if one is None or one is server.condemned or one.connection.request is None:
        server.seen = None
        return 0.0
    connection = one.connection
    seen = one, connection.served
    if seen != server.seen:
        server.seen = seen
        server.since = now
        server.waited = connection.waited(now)
        server.reported = False
        return 0.0
    return now - server.since - (connection.waited(now) - server.waited)


def tracebacks(ident: int) -> Iterator[str]:
    """Yield lines that show where the threads of this process are: last, and in full, the one with `ident`."""
    frames = sys._current_frames()  # noqa: SLF001 - documented, and the only way
    slow = frames.pop(ident, None)
    frames.pop(threading.get_ident(), None)
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for number, (other, frame) in enumerate(frames.items()):
        if number == MAX_OTHERS:
            yield f"({len(frames) - MAX_OTHERS} more threads)"
            break
        yield f"Thread {names.get(other, other)}:"
        yield from stack(frame, MAX_OTHER_FRAMES)
    yield f"Thread {names.get(ident, ident)}, which is slow:"
    if slow is None:
        yield "  (it has ended)"
    else:
        yield from stack(slow, MAX_FRAMES)


def stack(frame: FrameType | None, most: int) -> list[str]:
    """Return a line for each of the `most` innermost frames, the innermost last. Reads no source file.

    Of a thread that is in an application only the application's frames: how we got there is the same each time.
    """
    lines: list[str] = []
    while frame is not None and not (lines and _enters_application(frame.f_code)):
        if len(lines) == most:
            lines.append("  ...")
            break
        code = frame.f_code
        lines.append(
            f'  File "{code.co_filename[-MAX_NAME:]}", line {frame.f_lineno}, in {code.co_qualname[-MAX_NAME:]}'
        )
        frame = frame.f_back
    return lines[::-1]


def _enters_application(code: CodeType) -> bool:
    """Say whether this is a kind's `handle`, from which an application is called; or, as that isn't seen where it is
    compiled, who has started this thread.
    """
    in_kind = code.co_name == "handle" and code.co_filename.startswith(_KINDS)
    return in_kind or (code.co_filename, code.co_name) in _STARTERS
