"""When a vhost is under stress: all its workers are busy, and somebody waits for one.

As in Postfix (STRESS_README): what is waited for less patiently then are the clients, because it is slow ones that keep
workers busy for nothing. What shrinks is in http/patience.py, by how much is `http.stress_factor`.

    calm ── pressed for AFTER ──> stressed ── not pressed for UNTIL ──> calm

"Pressed" is a moment's news, several times a second: umaster has connections that wait although there are workers
(Demand), or all threads of all workers are busy and connections are ready that none has taken (scoreboard). It takes
AFTER to count, so that a burst that is worked off at once is none; and UNTIL to be over, so that it doesn't come and go
with each request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pyttpd_vhost.policy import State

if TYPE_CHECKING:
    from pyttpd.log import Log

    from pyttpd_vhost.commons import Commons
    from pyttpd_vhost.processes import WorkerChild
    from pyttpd_vhost.scoreboard import Row, Scoreboard

#: How long (s) it must last to be stress, and how long nobody may have waited for it to be over.
AFTER, UNTIL = 1.0, 10.0
#: News at least this often (s) are one press: as often as umaster speaks and the supervisor looks, with some slack.
GAP = 1.5


class Stress:
    """The state; `on` is what all workers are told. Times are CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self.on = False
        self.episodes = 0
        self.since = 0.0
        self._pressed_since = float("-inf")
        self._pressed_last = float("-inf")

    def follow(
        self,
        workers: Iterable[WorkerChild],
        board: Scoreboard,
        commons: Commons,
        waiting: int,
        now: float,
        log: Log,
    ) -> None:
        """Tell the workers when stress begins and ends, and the operator."""
        rows = [board.read(worker.slot, worker.number) for worker in workers if worker.state is State.SERVING]
        began = self.since
        if not self.look(rows, waiting, now):
            return
        commons.stressed = int(self.on)
        if self.on:
            log.warning("stress begins: all workers are busy, and clients wait", workers=len(rows))
        else:
            log.info("stress ends", seconds=round(now - began, 1))

    def look(self, rows: Sequence[Row], waiting: int, now: float) -> bool:
        """Say whether `on` has changed, by the rows of the serving workers, and by how many `waiting` umaster has."""
        if rows and (
            waiting
            or (all(row.busy_threads >= row.threads for row in rows) and any(row.waiting for row in rows))
        ):
            self.press(now)
        return self.weigh(now)

    def press(self, now: float) -> None:
        """All are busy, and somebody waits."""
        if now - self._pressed_last > GAP:
            self._pressed_since = now
        self._pressed_last = now

    def weigh(self, now: float) -> bool:
        """Say whether `on` has changed by now."""
        if self.on:
            changed = now - self._pressed_last >= UNTIL
        else:
            changed = now - self._pressed_last <= GAP and self._pressed_last - self._pressed_since >= AFTER
        if changed:
            self.on = not self.on
            self.since = now
            self.episodes += self.on
        return changed
