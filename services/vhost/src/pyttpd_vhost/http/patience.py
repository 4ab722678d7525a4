"""How long we wait for clients: a vhost's deadlines and minimum rates, and how one client does against them.

Rules:
- A `Patience` is the configuration's; under stress there is a second one, shrunk by `stress_factor`
  (`Site.patience` says which is in force). Whoever waits asks for it again at least every LOOK, so stress also
  shortens waits that had begun before.
- A rate is what a client must do over the time that *we wait for it*; time that the application takes isn't the
  client's. It may lag behind by `grace`, at the start and later. As in Apache's mod_reqtimeout (MinRate), but nothing
  is saved up: who has taken a megabyte in a moment can't take a byte a second for the next half hour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyttpd.config.shares import HttpSettings

#: Who waits for a client looks at it this often (s), to see what it has taken, and whether stress has begun.
LOOK = 0.5
#: What a client is charged for at most between two looks. More only passes when our threads are busy elsewhere: then
#: the client may have done all it could, and we haven't sent or read.
MOST_AT_ONCE = 3 * LOOK


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in seconds, rates in bytes/s (0: none is asked for)."""

    head: float
    idle: float
    read: float
    write: float
    body_rate: float
    read_rate: float
    grace: float

    @classmethod
    def of(cls, http: HttpSettings, factor: float = 1.0) -> Patience:
        """Make it of a vhost's settings: `factor` 1 is its ordinary one, less than 1 is less patient."""
        return cls(
            head=http.head_timeout * factor,
            idle=http.idle_timeout * factor,
            read=http.read_timeout * factor,
            write=http.write_timeout * factor,
            body_rate=http.min_body_rate / factor,
            read_rate=http.min_read_rate / factor,
            grace=http.rate_grace * factor,
        )


class Pace:
    """How one client does over one body, or one response: nothing has moved for the last `still` seconds, and it is
    `lag` seconds behind the rate.
    """

    __slots__ = ("lag", "still")

    def __init__(self) -> None:
        self.lag = 0.0
        self.still = 0.0

    def add(self, seconds: float, count: int, rate: float) -> None:
        """We have waited for so long, and so many bytes have moved meanwhile."""
        seconds = min(seconds, MOST_AT_ONCE)
        self.still = 0.0 if count else self.still + seconds
        if rate:
            self.lag = max(0.0, self.lag + seconds - count / rate)

    def left(self, timeout: float, rate: float, grace: float) -> float:
        """How long (s) we wait yet if nothing moves; 0 or less: it is too slow."""
        left = timeout - self.still
        return min(left, grace - self.lag) if rate else left

    def slow(self, timeout: float, what: str, key: str, rate_key: str) -> str:
        """Say why it is too slow, with the names of the limits."""
        return f"{what} {f'nothing for {key}' if self.still >= timeout else f'less than {rate_key}'}"
