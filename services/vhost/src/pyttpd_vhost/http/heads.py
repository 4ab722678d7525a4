"""From bytes to a `Request`: the scanner, then the engine, and a memory of what they said.

Both are pure functions of the head's bytes, and many clients (health checks, pollers, services calling
services) send the same short head over and over. So the verdict on a short head without a body is remembered:
looking it up costs a tenth of making it. Longer heads (browsers send 500 bytes and more, and seldom the same)
aren't looked up at all, because hashing them isn't free. What depends on the connection (whether the host is
ours here) isn't part of the verdict and is asked every time.
"""

from __future__ import annotations

from pyttpd.head import DEFAULT_BOUNDS, Bounds, scan

from pyttpd_vhost.http.engine import Engine, Request

#: Longer heads aren't remembered.
MAX_REMEMBERED = 384

#: Heads remembered; then all are forgotten. With their requests and what kinds add to them, at most about 1
#: MB a process.
MAX_MEMORY = 256


class HeadReader:
    """Reads heads for all connections of a thread. Refused and malformed heads are never remembered.

    `last` is the last request, for the scoreboard.
    """

    __slots__ = ("_bounds", "_engine", "_limit", "_memory", "_once", "last")

    def __init__(self, engine: Engine, limit: int, bounds: Bounds = DEFAULT_BOUNDS) -> None:
        self._engine = engine
        self._limit = limit
        self._bounds = bounds
        self._memory: dict[bytes, Request] = {}
        self._once: set[bytes] = set()
        self.last: Request | None = None

    def read(self, data: bytes) -> Request | None:
        """Return the request whose head `data` starts with, None if it isn't complete. Raises Refused."""
        short = len(data) <= MAX_REMEMBERED
        if short:
            request = self._memory.get(data)
            if request is not None:
                self.last = request
                return request
        head = scan(data, self._limit, self._bounds)
        if head is None:
            return None
        request = self.last = self._engine.read(data, head)
        if short and not request.length and request.end == len(data):
            self._remember(data, request)
        return request

    def _remember(self, data: bytes, request: Request) -> None:
        """Keep the request, if this is the second time: most heads come once, and then keeping costs more."""
        if data in self._once:
            if len(self._memory) >= MAX_MEMORY:
                self._memory.clear()
            self._memory[data] = request
            request.remembered = True
        else:
            if len(self._once) >= MAX_MEMORY:
                self._once.clear()
            self._once.add(data)
