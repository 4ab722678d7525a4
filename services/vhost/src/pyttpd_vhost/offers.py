"""Connections that a worker has offered to its siblings, through umaster, until one has taken them or none has.

    parked or fresh ── Pass ──> offered ── Settled, Drop ──> a sibling's, or nobody's: closed here
                                   └── Refuse, Retry, umaster gone ──> taken back

Rules:
- Everything here happens under the worker's lock.
- Only what is unread is offered (`Connection.unread`). It is out of epoll and of `parked` before: nobody of us reads it
  any more. It isn't counted for its client meanwhile; whoever takes it counts it.
- Refuse says that no sibling has it. After Retry, or without umaster, one may have had it: it is taken back only if
  nobody has claimed it, or read from it, since. One that is claimed and unread is looked at again a moment later
  (tcp.py): its claimant may not have been able to say so.
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
        self._later = later
        self._offered: dict[int, Parked] = {}
        self._claimed: dict[int, Parked] = {}
        self._next_id = 0
        self._pause_until = 0.0
        self.passed = 0

    def __len__(self) -> int:
        return len(self._offered) + len(self._claimed)

    def __iter__(self) -> Iterator[Parked]:
        return iter([*self._offered.values(), *self._claimed.values()])

    @property
    def pausing(self) -> bool:
        """No sibling was free a moment ago."""
        return time.monotonic() < self._pause_until

    def make(self, one: Parked, channel: Channel | None) -> None:
        """Offer `one`, which is idle (or fresh) and out of `parked`."""
        self._parking.forget(one)
        self._next_id += 1
        try:
            one.consumed = tcp.consumed(one.connection.sock)
            one.mark = tcp.mark(one.connection.sock)
        except OSError:
            one.connection.detach().close()
            return
        one.connection.uncount()
        self._offered[self._next_id] = one
        if channel is None or not channel.send(Pass(self._next_id, one.client, one.authority), one.fd):
            self._take_back(self._next_id, sure=True)

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
        self._take_back(id_, sure=True)

    def retry(self, id_: int) -> None:
        """The sibling that was to have it is gone."""
        self._take_back(id_, sure=False)

    def retry_all(self) -> None:
        """Umaster is gone."""
        for id_ in list(self._offered):
            self._take_back(id_, sure=False)

    def clear(self) -> None:
        """In a forked child: nothing of it is ours."""
        self._offered.clear()
        self._claimed.clear()

    def _take_back(self, id_: int, *, sure: bool) -> None:
        one = self._offered.pop(id_, None)
        if one is None:
            return
        unread, claimed = (True, False) if sure else self._look(one)
        if unread and claimed:
            self._claimed[id_] = one
            self._later(tcp.PUT_BACK_WITHIN, lambda: self._look_again(id_))
        else:
            self._end(one, ours=unread)

    def _look_again(self, id_: int) -> None:
        one = self._claimed.pop(id_, None)
        if one is not None:
            self._end(one, ours=self._look(one) == (True, False))

    def _look(self, one: Parked) -> tuple[bool, bool]:
        """Say whether nobody has read from it since it was offered, and whether somebody has claimed it."""
        try:
            sock = one.connection.sock
            return tcp.consumed(sock) == one.consumed, tcp.mark(sock) != one.mark
        except OSError:
            return False, False

    def _end(self, one: Parked, *, ours: bool) -> None:
        if ours:
            one.connection.count()
            self._give_back(one)
        else:
            one.connection.detach().close()
