"""What serves connections beside a worker's threads: an event loop in a thread of its own, for the kind asgi; or what
the thread that leads gives turns, for the kinds fastcgi and scgi (kinds/gateway/switchboard.py).

Theory of operation. The worker's threads own fresh and parked connections and read each first head. A kind that
serves elsewhere gives the exchange away (`Exchange.give_away`); the worker takes the connection out of its epoll and
gives it to its `Aside`. That serves this request and those behind it that are the kind's, and gives the connection
back between two messages: idle, to be parked; with the next head read ahead, when that isn't its own, isn't whole, or
isn't a request; or to be ended. So everything that isn't an exchange with the application has one implementation: heads
that come slowly, refusals, idle time, handing on to siblings, lingering.

    parked ── readable, a request for it ──> given (`Aside.take`) ── answered ──> idle there, for a moment ──┐
      ^                                           ^                                  │ its next request      │
      │                                           └──────────────────────────────────┘                      │
      └───────────────────────────────── given back (`Host.settle`) <────────────────────────────────────────┘

Rules:
- A connection has one owner: the worker's threads until `take`, from `settle` on again.
- `take`, `leave`, `finish`, `end` may be called by any thread, and don't wait. `settle` and `credit` may be, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pyttpd_vhost.http.connection import Want
    from pyttpd_vhost.parking import Parked
    from pyttpd_vhost.site import Site


class Host(Protocol):
    """What an `Aside` needs of its worker."""

    def settle(self, one: Parked, want: Want) -> None:
        """Take `one` back: wait for `want`, or close it."""
        ...

    def give_credit(self) -> None:
        """There is room again."""
        ...


@dataclass(slots=True)
class Load:
    """How much an `Aside` has to do, for the scoreboard and the pool's policy."""

    connections: int = 0
    requests: int = 0
    waiting: int = 0
    busy: float = 0.0


class Aside(Protocol):
    """See the module's text. Made in the prototype, with the kind; begun in each worker."""

    #: Readable when `turn` has something to do; -1: it has a thread of its own, for `run`.
    fd: int
    #: It can take nothing more, or is stuck: what becomes readable is better served by a sibling.
    full: bool
    #: How many requests it takes at a time.
    most: int
    #: Its own site: counters, parser and memory of heads of its thread.
    site: Site
    #: Requests that were logged as slow, and those that were ended since they had had their time.
    slow_requests: int
    timed_out: int

    @property
    def busy(self) -> bool:
        """It has connections, or tasks."""
        ...

    def begin(self, host: Host) -> None:
        """Be ready to serve, in the calling thread. Raises whatever the application raises."""
        ...

    def run(self) -> None:
        """Serve, in the same thread, until `end`."""
        ...

    def turn(self) -> None:
        """Without a thread of its own: do what can be done without waiting."""
        ...

    @property
    def hurry(self) -> bool:
        """`turn` is to be called every PASS_AFTER at least, whatever `fd` says."""
        ...

    def sweep(self, now: float) -> None:
        """Without a thread of its own: look who takes too long; called every SWEEP_INTERVAL."""
        ...

    def take(self, one: Parked) -> None:
        """Serve `one`, which is nobody else's now."""
        ...

    def excess(self, credit: int) -> int:
        """How many connections more than it should have there may be, if `credit` ones come besides."""
        ...

    def look(self, now: float) -> Load:
        """Say how it is; called by the worker's watcher, several times a second while there is anything to do."""
        ...

    def taken(self) -> Iterable[Parked]:
        """Return what is being served."""
        ...

    def stuck_for(self, now: float) -> float:
        """How long (s) its thread hasn't come to look at anything; 0.0 if it does."""
        ...

    def leave(self) -> None:
        """The worker retires: give back what is idle, end what has no end by itself."""
        ...

    def finish(self) -> bool:
        """Everything is answered: let the application end. True once it has."""
        ...

    def end(self) -> None:
        """Let `run` return."""
        ...

    def fork(self, dup_dead: Callable[[Parked], None]) -> None:
        """In a child that the application has forked: `dup_dead` is called for each connection that isn't its."""
        ...
