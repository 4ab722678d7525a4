"""Connections that a worker has offered to its siblings, through umaster, until one has taken them or none has.

    parked or fresh ── Pass ──> offered ── Settled, Drop ──> a sibling's, or nobody's: closed here
                                   └── Refuse, Retry, umaster gone ──> taken back

Rules:
- Everything here happens under the worker's lock.
- Only what is unread is offered (`Connection.unread`). It is out of epoll and of `parked` before: nobody of us reads it
  any more. It isn't counted for its client meanwhile; whoever takes it counts it.
- What is offered has a new mark. What comes back is recalled (tcp.py), since a sibling may have it although umaster, or
  our channel, is gone. One that is claimed is looked at again a moment later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from pyttpd import tcp
from pyttpd.channel import Channel
from pyttpd.wire.messages import Pass

from pyttpd_vhost.parking import Parked, Parking

#: When no sibling was free, none is asked again for so long (s).
PASS_PAUSE = 0.25


class Offers:
    """A worker's. give_back(one) is called for each that is ours again; later(seconds, what) calls `what` then.

    `passed` counts those that were taken.
    """

    def __init__(
        self,
        parking: Parking,
        give_back: Callable[[Parked], None],
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._parking = parking
        self._give_back = give_back
        self._offered: dict[int, Parked] = {}
        self._doubtful = tcp.SecondLook(self._end, later)
        self._next_id = 0
        self._pause_until = 0.0
        self.passed = 0

    def __len__(self) -> int:
        return len(self._offered) + len(self._doubtful)

    def __iter__(self) -> Iterator[Parked]:
        return iter([*self._offered.values(), *self._doubtful])

    @property
    def pausing(self) -> bool:
        """No sibling was free a moment ago."""
        return time.monotonic() < self._pause_until

    def make(self, one: Parked, channel: Channel | None) -> None:
        """Offer `one`, which is idle (or fresh) and out of `parked`."""
        self._parking.forget(one)
        self._next_id += 1
        one.mark = tcp.offer(one.sock)
        one.connection.uncount()
        self._offered[self._next_id] = one
        if channel is None or not channel.send(
            Pass(self._next_id, one.client, one.authority, one.mark), one.fd
        ):
            self._take_back(self._next_id)

    def settled(self, id_: int) -> None:
        """A sibling has taken it."""
        if self.dropped(id_):
            self.passed += 1

    def dropped(self, id_: int) -> bool:
        """It isn't ours any more. False: it wasn't before."""
        one = self._offered.pop(id_, None)
        if one is None:
            return False
        one.connection.detach().close()
        return True

    def refused(self, id_: int) -> None:
        """No sibling is free."""
        self._pause_until = time.monotonic() + PASS_PAUSE
        self._take_back(id_)

    def retry(self, id_: int) -> None:
        """The sibling that was to have it is gone."""
        self._take_back(id_)

    def retry_all(self) -> None:
        """Umaster is gone."""
        for id_ in list(self._offered):
            self._take_back(id_)

    def clear(self) -> None:
        """In a forked child: nothing of it is ours."""
        self._offered.clear()
        self._doubtful.clear()

    def _take_back(self, id_: int) -> None:
        one = self._offered.pop(id_, None)
        if one is not None:
            self._doubtful.look(one)

    def _end(self, one: Parked, ours: bool) -> None:
        if ours:
            one.connection.count()
            self._give_back(one)
        else:
            one.connection.detach().close()
