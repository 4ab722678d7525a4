"""What is done to the tree, and in which order: a pure function of the seed.

An *event* is an action on one process (or, for a pair, two at the same moment). What an action does to whom is a table,
so that every process of every role has its turn, and none more than the others.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator
from dataclasses import dataclass


class Action(enum.Enum):
    """How a process is disturbed."""

    KILL = "kill -9"
    STOP = "SIGSTOP"
    TERM = "SIGTERM"
    REPLACE = "replace"
    RELOAD = "reload"


#: The processes of a tree: a role's keeper is `keeper NAME`, what it has forked is NAME.
ROLES = ("init", "master", "umaster", "listener", "supervisor")
KEEPERS = tuple(f"keeper {role}" for role in ROLES)
CHILDREN = ("prototype", "worker", "init-metrics")

TARGETS: dict[Action, tuple[str, ...]] = {
    Action.KILL: (*ROLES, *CHILDREN, "worker", "worker", *KEEPERS),
    Action.STOP: (*ROLES, *CHILDREN, "worker", *KEEPERS),
    Action.TERM: (*ROLES, *CHILDREN) * 2,
    Action.REPLACE: ROLES * 3,
    Action.RELOAD: ("tree", "vhost") * 6,
}
#: One event in so many is a pair.
PAIRS = 4
#: Between an event and the next one, after the tree is whole again (s).
PAUSE = 0.4


@dataclass(frozen=True, slots=True)
class Deed:
    """One action on one process. `pick` chooses among several of the same kind, and `host` among tenants."""

    action: Action
    target: str
    pick: int

    def __str__(self) -> str:
        return f"{self.action.value} {self.target}"


@dataclass(frozen=True, slots=True)
class Event:
    """What is done at one moment, and how long (s) is waited before."""

    number: int
    pause: float
    deeds: tuple[Deed, ...]

    def __str__(self) -> str:
        return " + ".join(map(str, self.deeds))


def plan(seed: int, actions: tuple[Action, ...] = tuple(Action)) -> Iterator[Event]:
    """Yield the events of `seed`, without end: in each round every pair of action and target once, shuffled."""
    chance = random.Random(seed)
    every = [(action, target) for action in actions for target in TARGETS[action]]
    number = 0
    while True:
        chance.shuffle(every)
        for action, target in every:
            deeds = [Deed(action, target, chance.getrandbits(16))]
            if chance.randrange(PAIRS) == 0:
                other, whom = chance.choice(every)
                deeds.append(Deed(other, whom, chance.getrandbits(16)))
            yield Event(number, chance.uniform(0.0, PAUSE), tuple(deeds))
            number += 1
