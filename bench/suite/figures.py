"""What a case is asked for, and what it answers if it isn't wrk's: a `Study`, which returns `Row`s.

A study measures what it is about by its own means (memory, start time, processor time of one role, a latency beside
10,000 idle connections), in rounds that are interleaved with its peers' as wrk's cases are, and looks at every byte of
every answer. `report.py` prints its rows, computes ratios and says which bars are met; results.json has them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

#: Whose figure a ratio is of, where there is one.
OURS = "pyttpd"


@dataclass(frozen=True, slots=True)
class Options:
    """How long, how often; whether servers are pinned to one core, and write access logs."""

    rounds: int
    seconds: float
    pin: bool = True
    log: bool = True

    def turn(self, number: int) -> float:
        """How long (s) a turn of round `number` lasts, where the first one, 0, warms up and isn't counted."""
        return self.seconds if number else self.seconds / 2


@dataclass(frozen=True, slots=True)
class Limit:
    """A bar: the figure, or its ratio to what `against` has of the same, is at least `least` and at most `most`."""

    against: str = ""
    least: float | None = None
    most: float | None = None

    def met(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        unit = f" x {self.against}" if self.against else ""
        parts = [f"at least {self.least:g}{unit}"] if self.least is not None else []
        parts += [f"at most {self.most:g}{unit}"] if self.most is not None else []
        return " and ".join(parts)


@dataclass(slots=True)
class Figures:
    """What wrk's cases have of a peer, one a round: requests/s, seconds of processor time per 1,000 requests (of all
    its processes); errors in all. `common` is the rate at which all were asked for `latency`: p50, p99, p99.9 in
    seconds, of all rounds' answers together, as a round has too few beyond p99; `p99` has each round's.
    """

    rate: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    errors: int = 0
    common: float = 0.0
    latency: dict[str, float] = field(default_factory=dict)
    p99: list[float] = field(default_factory=list)
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """`of` is to have at least `ratio` of what `against` has in requests/s; or, for `p99`, at most `ratio` of its p99
    at the common rate. `logs`: with access logs on, or off; None: with either.
    """

    against: str
    ratio: float
    p99: bool = False
    logs: bool | None = None
    of: str = OURS

    def met(self, value: float) -> bool:
        return value <= self.ratio if self.p99 else value >= self.ratio

    def __str__(self) -> str:
        what = "p99 at most" if self.p99 else "at least"
        return f"{what} {self.ratio:g} x {self.against}"


@dataclass(slots=True)
class Row:
    """One figure of one server: `values` has one a round. Rows of the same `figure` are compared with each other."""

    figure: str
    server: str
    unit: str
    values: list[float] = field(default_factory=list)
    bars: tuple[Limit, ...] = ()
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Study:
    """One row of the table of benchmarks that isn't measured by wrk. `run` is called once, in the first setting that
    is asked for. `versions` is what else is written down: a name, and the command that says its version.
    """

    name: str
    title: str
    run: Callable[[Options], list[Row]]
    versions: tuple[tuple[str, tuple[str, ...]], ...] = ()
