"""The policy in simulated time: workers that come up late, work, age and leave; an attacker; thousands of workers."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyttpd.config.shares import PoolSettings

from pyttpd_vhost import policy
from pyttpd_vhost.policy import (
    EPISODE,
    JITTER,
    MAX_STEP,
    OVERTIME,
    REPLACED_AT_A_TIME,
    STEP_INTERVAL,
    Limits,
    Load,
    Member,
    Plan,
    Reason,
    State,
    decide,
    first_notes,
)

TURN = 0.1


@dataclass
class World:
    """A supervisor without processes. spawn: how long a worker takes to be ready; leave: how long to be gone."""

    settings: PoolSettings
    seed: int = 0
    spawn: float = 0.3
    leave: float = 0.2
    now: float = 1000.0
    can_start: bool = True
    waiting: int = 0
    members: list[Member] = field(default_factory=list)
    born: int = 0
    gone: list[tuple[Member, float]] = field(default_factory=list)
    limits_reached: int = 0
    postponed: int = 0
    slept: int = 0
    starts: list[int] = field(default_factory=list)
    fewest: int = 10**6

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.notes = first_notes(self.settings, self.now)
        self._left: dict[int, float] = {}

    def of(self, state: State) -> list[Member]:
        return [member for member in self.members if member.state is state]

    @property
    def serving(self) -> int:
        return len(self.of(State.SERVING))

    def turn(self, seconds: float = TURN) -> Plan:
        self.now += seconds
        for member in self.of(State.SPAWNING):
            if self.now - member.born >= self.spawn:
                member.state, member.active = State.SERVING, self.now
        for member in self.of(State.LEAVING):
            if self.now - self._left[member.number] >= self.leave:
                self.members.remove(member)
                self.gone.append((member, self.now))
        plan = decide(self.settings, self.members, Load(self.waiting, self.can_start), self.notes, self.now)
        self.notes = plan.notes
        self.limits_reached += plan.limit_reached
        self.postponed += len(plan.postpone)
        self.slept += plan.sleep
        for member, reason in plan.mark:
            assert member.due is None
            member.due = reason
        for member in plan.postpone:
            member.postponed = True
        if plan.start:
            self.starts.append(plan.start)
        for _ in range(plan.start):
            self.born += 1
            limits = Limits.draw(self.settings, self.random.uniform)
            self.members.append(Member(self.born, self.now, limits, active=self.now))
        for member in plan.retire:
            assert member.state is State.SERVING and member.due is not None
            member.state = State.LEAVING
            self._left[member.number] = self.now
        return plan

    def run(self, seconds: float, each: Callable[[World], Any] = lambda _: None, turn: float = TURN) -> None:
        until = self.now + seconds
        while self.now < until:
            each(self)
            self.turn(turn)
            self.fewest = min(self.fewest, self.serving)

    def work(self, busy: float = 1.0, rate: float = 100.0) -> None:
        """Everybody serves, for a turn."""
        for member in self.of(State.SERVING):
            member.busy, member.active = busy, self.now
            member.requests += int(rate * TURN)
            member.cpu += busy * TURN


def pool(mode: str = "static", **settings: Any) -> PoolSettings:
    return PoolSettings(mode=mode, **({"max_age": 0.0, "max_workers": 4} | settings))


# ---- sizes ----


def test_a_static_pool_is_what_it_says_whatever_the_load() -> None:
    world = World(pool(max_workers=5))
    world.run(2.0)
    assert world.serving == 5
    world.waiting = 100
    world.run(5.0, World.work)
    world.waiting = 0
    world.run(500.0)
    assert (world.serving, world.born) == (5, 5)


def test_who_dies_is_made_anew() -> None:
    world = World(pool(max_workers=3))
    world.run(1.0)
    world.members.clear()
    world.run(1.0)
    assert (world.serving, world.born) == (3, 6)


def test_a_dynamic_pool_grows_with_the_load_and_shrinks_after_it() -> None:
    world = World(pool("dynamic", max_workers=64, min_spare=2, max_spare=4, idle_timeout=10.0), spawn=0.05)
    world.run(2.0)
    assert world.serving == 2
    world.run(20.0, World.work)
    assert world.serving == 64
    for member in world.members:
        member.busy = 0.0
    world.run(9.0)
    assert world.serving == 64
    world.run(5.0)
    assert world.serving == 4


def test_the_ramp_doubles_up_to_its_bound_and_begins_at_one_again() -> None:
    world = World(pool("dynamic", max_workers=200, min_spare=200, start_workers=1, max_spare=200), spawn=0.01)
    sizes: list[int] = []

    def look(world: World) -> None:
        if not sizes or sizes[-1] != world.notes.size:
            sizes.append(world.notes.size)

    world.run(6.0, look)
    steps = [after - before for before, after in itertools.pairwise(sizes)]
    assert steps[:7] == [1, 2, 4, 8, 16, 32, 32] and max(steps) == MAX_STEP
    assert world.notes.size == 200
    assert world.notes.step == 1  # it has stopped rising


def test_a_step_waits_for_the_one_before() -> None:
    """Workers that take long to come are no reason to start ever more of them."""
    world = World(pool("dynamic", max_workers=64), spawn=5.0)
    world.waiting = 3
    world.run(4.9)
    assert len(world.members) <= 4


def test_ramp_steps_are_apart() -> None:
    world = World(pool("dynamic", max_workers=64, min_spare=64, start_workers=1, max_spare=64), spawn=0.0)
    for _ in range(100):
        world.turn(STEP_INTERVAL / 100)
    assert world.notes.size <= 4


def test_a_static_pool_comes_up_at_once_but_not_all_in_one_turn() -> None:
    world = World(pool(max_workers=100))
    world.run(1.0)
    assert world.serving == 100
    assert max(world.starts) == MAX_STEP


# ---- on demand ----


def test_on_demand_there_is_nobody_until_somebody_waits() -> None:
    world = World(pool("ondemand", idle_timeout=5.0, max_workers=8))
    world.run(100.0)
    assert world.born == 0 and world.slept
    world.waiting = 1
    world.turn()
    assert world.born == 1
    world.waiting = 0  # umaster gives what waits to the first that has credit
    world.run(0.5)
    world.slept = 0
    world.run(4.0)
    assert world.serving == 1 and not world.slept
    world.run(6.0)
    assert not world.members
    assert world.gone[-1][0].due is Reason.IDLE
    world.run(6.0)
    assert world.slept


def test_the_last_one_waits_for_its_connections_to_end() -> None:
    world = World(pool("ondemand", idle_timeout=5.0))
    world.waiting = 1
    world.turn()
    world.waiting = 0
    world.run(0.5)
    (one,) = world.members
    one.connections = 1
    world.run(60.0)
    assert world.members == [one]
    one.connections = 0
    world.run(1.0)
    assert not world.members


def test_no_start_without_a_prototype() -> None:
    world = World(pool("ondemand"), can_start=False)
    world.waiting = 5
    world.run(3.0)
    assert world.born == 0
    world.can_start = True
    world.run(1.0)
    assert world.born


# ---- limits ----


def test_reaching_max_workers_is_said_once_an_episode() -> None:
    world = World(pool("dynamic", max_workers=2))

    def busy(world: World) -> None:
        world.work()
        world.waiting = 3

    world.run(30.0, busy)
    assert world.limits_reached == 1
    world.waiting = 0
    for member in world.members:
        member.busy = 0.0
    world.run(EPISODE + 5.0)
    world.run(30.0, busy)
    assert world.limits_reached == 2


def test_a_static_pool_at_its_limit_says_so_only_when_somebody_waits() -> None:
    world = World(pool(max_workers=2))
    world.run(30.0, World.work)
    assert world.limits_reached == 0
    world.waiting = 1
    world.run(30.0, World.work)
    assert world.limits_reached == 1


# ---- departures ----


@pytest.mark.parametrize(
    ("settings", "change", "reason"),
    [
        ({"max_requests": 100}, {"requests": 100}, Reason.REQUESTS),
        ({"max_memory": 1 << 20}, {"memory": 1 << 20}, Reason.MEMORY),
        ({"max_cpu": 5.0}, {"cpu": 5.0}, Reason.CPU),
        ({"max_age": 50.0}, {"born": 950.0}, Reason.AGE),
    ],
)
def test_each_criterion_alone(settings: dict[str, Any], change: dict[str, Any], reason: Reason) -> None:
    limits = Limits.draw(pool(**settings), lambda low, high: high)
    member = replace(Member(1, 1000.0, limits, State.SERVING), **change)
    assert policy.due(member, 1000.0) is reason
    off = replace(member, limits=Limits.draw(pool(), lambda low, high: high))
    assert policy.due(off, 1000.0) is None


def test_the_replacement_serves_before_the_old_one_goes() -> None:
    world = World(pool(max_workers=4, max_age=5.0), spawn=1.0)
    world.run(3.0)
    world.fewest = world.serving
    world.run(120.0, World.work)
    assert world.fewest == 4
    assert len(world.gone) > 40


def test_those_born_together_do_not_die_together() -> None:
    world = World(pool(max_workers=100, max_age=100.0), spawn=0.1)
    world.run(101.0, turn=0.5)
    deaths = [when for member, when in world.gone if member.number <= 100]
    spread = max(deaths) - min(deaths)
    assert spread > 100.0 * JITTER / 2
    assert all(member.limits.age >= 100.0 * (1 - JITTER) for member, _ in world.gone)


def test_load_postpones_a_retirement_but_no_longer_than_to_its_hard_age() -> None:
    """An attacker who keeps connections waiting at all times."""
    world = World(pool(max_workers=4, max_age=10.0, hard_age=30.0))

    def attack(world: World) -> None:
        world.work()
        world.waiting = 1000

    world.run(1.0)
    first = list(world.members)
    world.run(22.0, attack)
    assert not world.gone and world.postponed == 4
    world.run(16.0, attack)
    assert {member.number for member, _ in world.gone} >= {member.number for member in first}
    assert all(member.due is Reason.HARD_AGE for member in first)


def test_load_does_not_keep_a_leak() -> None:
    world = World(pool(max_workers=2, max_memory=1 << 20))
    world.run(1.0)
    world.waiting = 10
    world.members[0].memory = 2 << 20
    world.run(2.0)
    assert [member.due for member, _ in world.gone] == [Reason.MEMORY]


def test_without_a_criterion_that_is_due_nobody_goes_at_the_hard_age() -> None:
    world = World(pool(max_workers=2, hard_age=10.0))
    world.run(60.0, World.work)
    assert not world.gone


def test_who_keeps_others_from_being_born_does_not_stay_either() -> None:
    """An intruder in a worker kills the prototype again and again."""
    world = World(pool(max_workers=2, max_age=10.0, hard_age=20.0))
    world.run(1.0)
    world.can_start = False
    world.run(20.0, World.work)
    assert world.serving == 2
    world.run(OVERTIME + 1.0, World.work)
    assert world.serving == 0


def test_only_a_quarter_is_replaced_at_a_time() -> None:
    world = World(pool(max_workers=16, max_requests=10), spawn=3.0)
    world.run(4.0)
    for member in world.members:
        member.requests = 1000
    most = 0
    for _ in range(200):
        world.turn()
        marked = sum(member.due is not None and member.state is State.SERVING for member in world.members)
        most = max(most, marked)
    assert most == 16 * REPLACED_AT_A_TIME
    assert len(world.gone) == 16


# ---- anything ----


POOLS = st.builds(
    lambda mode, most, start, spare, extra, **criteria: PoolSettings(
        mode=mode,
        max_workers=most,
        start_workers=0 if mode == "static" else min(start, most),
        min_spare=min(spare, most),
        max_spare=min(spare + extra, most) if extra else 0,
        **criteria,
    ),
    st.sampled_from(["static", "dynamic", "ondemand"]),
    st.integers(1, 40),
    st.integers(0, 10),
    st.integers(0, 5),
    st.integers(0, 5),
    idle_timeout=st.sampled_from([0.5, 3.0]),
    max_requests=st.sampled_from([0, 50, 1000]),
    max_age=st.sampled_from([0.0, 2.0, 10.0]),
    max_memory=st.sampled_from([0, 1 << 20]),
    max_cpu=st.sampled_from([0.0, 1.0]),
)


@settings(max_examples=60, deadline=None)
@given(
    POOLS,
    st.lists(
        st.tuples(st.integers(0, 50), st.floats(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=12
    ),
    st.integers(0, 2**32),
)
def test_whatever_comes(
    settings: PoolSettings, phases: list[tuple[int, float, bool, bool]], seed: int
) -> None:
    """Junk and honest numbers, deaths, prototypes that come and go: the rules hold at every turn."""
    world = World(settings, seed=seed)
    most = settings.max_workers
    extra = max(1, int(most * REPLACED_AT_A_TIME))
    chance = random.Random(seed)
    for waiting, busy, can_start, deadly in phases:
        world.waiting, world.can_start = waiting, can_start
        for _ in range(15):
            for member in world.of(State.SERVING):
                member.busy, member.connections = busy, chance.choice([0, 3, 2**60])
                member.requests += chance.choice([0, 1, 500, 2**50])
                member.memory = chance.choice([0, 2**20, 2**60])
                member.cpu += busy * TURN
                if busy:
                    member.active = world.now
            if deadly and world.members and chance.random() < 0.2:
                world.members.remove(chance.choice(world.members))
            serving = world.serving
            plan = world.turn()
            assert 0 <= world.notes.size <= most
            assert 0 <= plan.start <= MAX_STEP
            assert not (plan.start and not can_start)
            here = [member for member in world.members if member.state is not State.LEAVING]
            assert sum(member.due is None for member in here) <= most
            assert sum(member.due not in (None, Reason.IDLE) for member in here) <= extra
            if settings.mode == "static":
                assert world.notes.size == most
            # Nobody on purpose below what there should be, unless it is long overdue.
            overdue = [
                member
                for member in plan.retire
                if world.now - member.born >= member.limits.hard_age + OVERTIME
            ]
            if len(overdue) < len(plan.retire):
                assert world.serving >= min(world.notes.size, serving)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.floats(1.0, 20.0), st.floats(1.0, 3.0), st.integers(0, 2**32))
def test_no_load_makes_a_worker_immortal(workers: int, age: float, times: float, seed: int) -> None:
    """Whatever an attacker holds up: nobody gets much older than its hard age, and nobody is missing meanwhile."""
    world = World(pool(max_workers=workers, max_age=age, hard_age=age * times), seed=seed, spawn=0.1)
    world.run(1.0)
    world.fewest = world.serving
    chance = random.Random(seed)

    def attack(world: World) -> None:
        world.work()
        world.waiting = chance.choice([1, 1000, 2**32])
        # All of one age wait for their turn, a quarter at a time.
        bound = age * times + 8 * (world.spawn + 2 * TURN) + TURN
        assert all(world.now - member.born <= bound for member in world.of(State.SERVING))

    world.run(age * times * 3, attack)
    assert world.fewest == workers
    assert len(world.gone) >= workers


def test_thousands_of_workers_take_no_time() -> None:
    world = World(pool("dynamic", max_workers=1024, min_spare=100, max_spare=200, max_age=50.0), spawn=0.1)
    world.run(60.0, World.work, turn=0.5)
    assert world.serving >= 1024
    several = [
        Member(number, world.now, Limits(), State.SERVING, active=world.now) for number in range(10_000)
    ]
    started = time.process_time()
    for _ in range(10):
        decide(world.settings, several, Load(), world.notes, world.now)
    assert (
        time.process_time() - started < 2.0
    )  # 20 ms each, seen; the bound is for a machine that does much else


def test_the_same_arguments_give_the_same_plan() -> None:
    world = World(pool("dynamic", max_workers=8, max_requests=5))
    world.run(2.0, World.work)
    once = decide(world.settings, world.members, Load(3), world.notes, world.now)
    assert once == decide(world.settings, world.members, Load(3), world.notes, world.now)
