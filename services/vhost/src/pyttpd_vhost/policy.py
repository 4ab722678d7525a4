"""The pool's policy: who starts, who must go, and when. A pure function of a table and a clock.

Rules
  1. No process, no socket, no clock of its own: `decide` gets the members as the supervisor knows them, what umaster
     says of the queue, its own notes of last time and the time, and returns a Plan. The same arguments give the same
     plan.
  2. `Notes.size` is how many workers there should be. Load makes it grow, by 1, 2, 4 ... MAX_STEP at a time while it
     rises, and from 1 again when it has stopped; time without work makes it shrink. What is missing is started.
  3. Who reaches one of its limits is *due*. It is marked, which makes room for one more; it is retired only when
     there are as many others serving as there should be: the replacement is ready before it goes. Only a quarter of
     the pool is marked at a time, so that replacing never takes much of it.
  4. While connections wait for a worker, nobody newly due is marked, but for three: who is over its memory, who has
     reached its hard age, and who has no work. So whoever keeps the server busy delays a retirement, and can't
     prevent it.
  5. Who is older than its hard age by OVERTIME is retired even if no replacement can be had: an intruder who
     keeps the prototype from starting others would stay for ever otherwise.

Each member has limits of its own, up to JITTER below those configured, so that workers born together don't die
together.

In step with: docs/pools.md, tests/test_policy.py (simulated time, an attacker, thousands of workers).
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from pyttpd.config.shares import PoolSettings

#: Each of a worker's limits is up to this share below what is configured.
JITTER = 0.2
#: The most workers that a step of the ramp starts (Apache's MAX_SPAWN_RATE), and the time (s) between two steps.
MAX_STEP = 32
STEP_INTERVAL = 0.25
#: Of a pool, what may be replaced at a time; at least one.
REPLACED_AT_A_TIME = 0.25
#: A worker that is busy for this share of its threads' time has no room for what comes next.
BUSY = 0.75
#: A pool that hasn't wanted more than max_workers for so long (s) begins a new episode when it does again.
EPISODE = 10.0
#: So long (s) after its hard age a worker goes, replacement or not.
OVERTIME = 60.0

_NEVER = float("inf")


class State(enum.Enum):
    """Of a worker: asked for; ready; told to leave."""

    SPAWNING = "spawning"
    SERVING = "serving"
    LEAVING = "leaving"


class Reason(enum.Enum):
    """Why a worker is asked to leave."""

    REQUESTS = "requests"
    AGE = "age"
    HARD_AGE = "hard-age"
    MEMORY = "memory"
    CPU = "cpu"
    IDLE = "idle"


#: Not put off by load: a leak under load is the worst, and who is idle isn't under load.
_NOT_POSTPONED = frozenset({Reason.MEMORY, Reason.HARD_AGE, Reason.IDLE})


@dataclass(frozen=True, slots=True)
class Limits:
    """One worker's own limits; infinite where a criterion is off. Times in seconds, memory in bytes."""

    requests: float = _NEVER
    age: float = _NEVER
    hard_age: float = _NEVER
    memory: float = _NEVER
    cpu: float = _NEVER

    @classmethod
    def draw(
        cls, settings: PoolSettings, uniform: Callable[[float, float], float] = random.uniform
    ) -> Limits:
        """Return limits for a worker that is born now."""

        def some(value: float) -> float:
            return value * uniform(1 - JITTER, 1) if value else _NEVER

        age = some(settings.max_age)
        return cls(
            requests=some(settings.max_requests),
            age=age,
            # Never below the age, which would make postponing impossible.
            hard_age=max(some(settings.oldest), min(age, settings.oldest)),
            memory=some(settings.max_memory),
            cpu=some(settings.max_cpu),
        )


@dataclass(slots=True, eq=False)
class Member:
    """What the policy knows of a worker. Times are CLOCK_MONOTONIC (s); `memory` is what it has of its own (bytes).

    busy: the share of its threads' time that it has worked lately, 0 to 1. active: when it last had anything to do.
    due: why it is to be replaced, None as long as it isn't marked. postponed: it was due, and load kept it.
    """

    number: int
    born: float
    limits: Limits
    state: State = State.SPAWNING
    requests: int = 0
    connections: int = 0
    memory: int = 0
    cpu: float = 0.0
    busy: float = 0.0
    active: float = 0.0
    due: Reason | None = None
    postponed: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """What stands outside: connections that wait in umaster, and whether workers can be started at all now."""

    waiting: int = 0
    can_start: bool = True


@dataclass(frozen=True, slots=True)
class Notes:
    """What the policy remembers from one time to the next."""

    size: int
    step: int = 1
    stepped: float = -_NEVER
    wanted_more: float = -_NEVER
    wanted: float = -_NEVER


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done now. The caller does it, in this order, and keeps `notes`."""

    notes: Notes
    mark: tuple[tuple[Member, Reason], ...] = ()
    postpone: tuple[Member, ...] = ()
    start: int = 0
    retire: tuple[Member, ...] = ()
    limit_reached: bool = False
    sleep: bool = False


def first_notes(settings: PoolSettings, now: float, *, least: int = 0) -> Notes:
    """Return the notes of a pool that is about to start, with at least so many workers."""
    return Notes(max(settings.first, least), wanted=now)


def decide(settings: PoolSettings, members: Iterable[Member], load: Load, notes: Notes, now: float) -> Plan:
    """Return what is to be done at `now`."""
    members = list(members)
    here = [member for member in members if member.state is not State.LEAVING]
    serving = [member for member in here if member.state is State.SERVING]
    notes, limit_reached = _grow(settings, here, serving, load, notes, now)
    notes, idle = _shrink(settings, serving, load, notes, now)
    mark, postpone = _departures(serving, idle, load, notes, now)
    marked = {id(member) for member, _ in mark} | {id(member) for member in here if member.due is not None}
    there = sum(id(member) not in marked for member in here)
    start = min(max(0, notes.size - there), MAX_STEP) if load.can_start else 0
    retire = _retire(serving, marked, notes.size, now)
    return Plan(
        notes,
        tuple(mark),
        tuple(postpone),
        start,
        retire,
        limit_reached,
        sleep=settings.mode == "ondemand"
        and not (members or notes.size or load.waiting)
        and now - notes.wanted >= settings.idle_timeout,
    )


def _grow(
    settings: PoolSettings, here: list[Member], serving: list[Member], load: Load, notes: Notes, now: float
) -> tuple[Notes, bool]:
    """Take a step of the ramp if the pool is too small; say whether it would be, at max_workers, for the first time."""
    spawning = len(here) - len(serving)
    free = spawning + sum(member.busy < BUSY and member.due is None for member in serving)
    spare = settings.min_spare if settings.mode == "dynamic" else 0
    if here:
        spare = max(1, spare)  # with none free, who comes next has to wait behind somebody
    needed = max(spare - free, load.waiting - spawning)
    if needed > 0:
        notes = replace(notes, wanted=now)
    # What is missing is being started already; growing more would only make more of the same wait.
    if needed <= 0 or spawning + len(serving) < notes.size:
        return (notes if needed > 0 or notes.step == 1 else replace(notes, step=1)), False
    most = settings.max_workers
    if notes.size >= most:
        begun = now - notes.wanted_more > EPISODE
        saturated = settings.mode != "static" or load.waiting > 0
        return (replace(notes, wanted_more=now), begun) if saturated else (notes, False)
    if now - notes.stepped < STEP_INTERVAL or not load.can_start:
        return notes, False
    more = min(notes.step, needed, most - notes.size)
    return replace(notes, size=notes.size + more, step=min(2 * notes.step, MAX_STEP), stepped=now), False


def _shrink(
    settings: PoolSettings, serving: list[Member], load: Load, notes: Notes, now: float
) -> tuple[Notes, list[Member]]:
    """Return those who have been without work for so long that the pool is to be smaller by them, longest first."""
    if settings.mode == "static" or load.waiting:
        return notes, []
    ondemand = settings.mode == "ondemand"
    idle = [member for member in serving if member.due is None and member.busy < BUSY]
    spare, least = (0, 0) if ondemand else (settings.most_spare, max(1, settings.min_spare))
    gone = sorted(
        [
            member
            for member in idle
            # The last one's connections would go to nobody: they end by their own timeout first.
            if now - member.active >= settings.idle_timeout and not (ondemand and member.connections)
        ],
        key=lambda member: member.active,
    )[: max(0, min(len(idle) - spare, notes.size - least))]
    if gone:
        notes = replace(notes, size=notes.size - len(gone), wanted=now)
    return notes, gone


def due(member: Member, now: float) -> Reason | None:
    """Return the first limit that `member` has reached; HARD_AGE if it is one that load has kept for too long."""
    limits, age = member.limits, now - member.born
    for reason, value, limit in (
        (Reason.MEMORY, member.memory, limits.memory),
        (Reason.REQUESTS, member.requests, limits.requests),
        (Reason.CPU, member.cpu, limits.cpu),
        (Reason.AGE, age, limits.age),
    ):
        if value >= limit:
            return reason if age < limits.hard_age else Reason.HARD_AGE
    return None


def _departures(
    serving: list[Member], idle: list[Member], load: Load, notes: Notes, now: float
) -> tuple[list[tuple[Member, Reason]], list[Member]]:
    """Return who is marked now, with why, and whose retirement is postponed for the first time."""
    mark = [(member, Reason.IDLE) for member in idle]
    leaving = {id(member) for member in idle}
    room = max(1, int(notes.size * REPLACED_AT_A_TIME)) - sum(
        member.due not in (None, Reason.IDLE) for member in serving
    )
    postpone = []
    found = [
        (member, reason)
        for member in serving
        if member.due is None and id(member) not in leaving and (reason := due(member, now)) is not None
    ]
    # Who can't be postponed comes first, then who has been here the longest.
    found.sort(key=lambda pair: (pair[1] not in _NOT_POSTPONED, pair[0].born))
    for member, reason in found:
        if load.waiting and reason not in _NOT_POSTPONED:
            if not member.postponed:
                postpone.append(member)
        elif room > 0:
            room -= 1
            mark.append((member, reason))
    return mark, postpone


def _retire(serving: list[Member], marked: set[int], size: int, now: float) -> tuple[Member, ...]:
    """Return those of the marked who can go: as many as there are more serving than there should be, oldest first."""
    candidates = sorted(
        [member for member in serving if id(member) in marked], key=lambda member: member.born
    )
    surplus = max(0, len(serving) - size)
    overdue = [
        member for member in candidates[surplus:] if now - member.born >= member.limits.hard_age + OVERTIME
    ]
    return (*candidates[:surplus], *overdue)
