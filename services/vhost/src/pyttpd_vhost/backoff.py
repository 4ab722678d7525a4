"""When something that has ended is started again: what dies young, after a delay that grows (nursery, execution)."""

from __future__ import annotations

#: Delays (s) before what died young is started again; what lived for STABLE_AFTER counts as healthy.
FIRST_DELAY, LAST_DELAY, STABLE_AFTER = 0.1, 5.0, 10.0
#: So many that died young, one after the other, are a crash loop.
YOUNG_DEATHS = 3
#: 2**6 times the first delay is more than the last one: no greater power is ever needed.
_STEPS = 6


class Backoff:
    """The deaths in a row of one kind of process. Times are CLOCK_MONOTONIC (s)."""

    __slots__ = ("try_at", "young")

    def __init__(self) -> None:
        self.young = 0
        self.try_at = 0.0

    @property
    def looping(self) -> bool:
        """Whether it is a crash loop."""
        return self.young >= YOUNG_DEATHS

    def may_try(self, now: float) -> bool:
        return now >= self.try_at

    def remaining(self, now: float) -> float:
        """How long (s) until the next try; 0 if nothing is waited for."""
        return max(0.0, self.try_at - now)

    def died_young(self, now: float) -> float:
        """Return the delay (s) before the next one."""
        self.young += 1
        delay = min(LAST_DELAY, FIRST_DELAY * float(2 ** min(self.young, _STEPS)))
        self.try_at = now + delay
        return delay

    def died(self, lived: float, now: float) -> float:
        """One has ended that had lived for `lived` s; return the delay before the next one (s)."""
        if lived > STABLE_AFTER:
            self.young = 0
            return 0.0
        return self.died_young(now)

    def pause(self, now: float) -> float:
        """One has ended that was healthy, and that isn't started anew at once; return the delay (s)."""
        self.young = 0
        self.try_at = now + FIRST_DELAY
        return FIRST_DELAY

    def healthy(self) -> None:
        """One has lived for STABLE_AFTER."""
        self.young = 0
