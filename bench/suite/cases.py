"""The cases: who is measured with what, in turns, and by which figure the bars are read.

All peers of a case run at the same time; those of neighbouring cases with the same servers are started once. Within a
round each has its turn, in an order of the round's own, so that nobody is always after the heaviest. Before the first
round and after each turn, every byte of an answer is looked at, which also waits for what the last load has left in a
queue; within, whatever isn't a whole 200 is an error, and stands in the table. A peer that doesn't start, ends or
answers wrongly is out of its case, and its row says why; in the next case it is tried again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException

from suite import handover, idle, locks, logs, names, peers, spawn, tenants, uids
from suite.clients import BROWSERS, Target, WrongAnswer, constant_rate, quantiles, wrk
from suite.figures import OURS, Bar, Figures, Options, Study
from suite.machine import processor_time
from suite.peers import SIZES, Peer, content, running

#: Of whom what must come: what all cases have that don't say otherwise.
HELLO = {"127.0.0.1": peers.BODY}
#: All peers of a case have load at the same time for so long first (s), so that those that start processes as they need
#: them have them: when they have just been started, and when they have been through a case.
FIRST_WARM_UP, WARM_UP = 2.0, 1.0
#: A round at the common rate lasts so long (s), and longer where it is so low that fewer than so many are asked: of
#: all rounds' answers together ten or more are beyond p99 then. But not longer than that: somebody who hardly answers,
#: as on a busy machine, keeps nobody for minutes.
AT_COMMON_RATE, ASKED, LONGEST = 0.4, 200, 2.0
FAULTS = (SystemExit, OSError, WrongAnswer, HTTPException, subprocess.SubprocessError)


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table of benchmarks, measured by wrk. `servers`: neighbours with the same word here have the same
    servers, which are started once for all of them. `common_rate`: how long answers take when all peers are asked at
    one rate, too.
    """

    name: str
    title: str
    servers: str
    peers: tuple[Peer, ...]
    path: str = "/"
    bodies: Mapping[str, bytes] = field(default_factory=lambda: HELLO)
    connections: int = 32
    close: bool = False
    script: str = ""
    bars: tuple[Bar, ...] = ()
    common_rate: bool = False

    def among(self, called: set[str]) -> tuple[Peer, ...]:
        """Those of its peers that are called so."""
        return tuple(peer for peer in self.peers if peer.name in called)

    @property
    def in_bars(self) -> set[str]:
        """pyttpd, and those that a bar compares it with."""
        return {OURS, *(name for bar in self.bars for name in (bar.of, bar.against))}


@dataclass(frozen=True, slots=True)
class Server:
    """A peer that runs."""

    port: int
    pids: list[int]


class Servers:
    """The peers of neighbouring cases: those that run, and what the others died of."""

    def __init__(self) -> None:
        self.there: dict[str, Server] = {}
        self.failed: dict[str, str] = {}


@contextlib.contextmanager
def all_running(chosen: Iterable[Peer], options: Options) -> Iterator[Servers]:
    """Start every peer of `chosen`."""
    servers = Servers()
    with contextlib.ExitStack() as stack:
        for peer in chosen:
            try:
                found = stack.enter_context(running(peer, log=options.log, pin=options.pin))
                servers.there[peer.name] = Server(*found)
            except FAULTS as error:
                servers.failed[peer.name] = said(error)
        try:
            yield servers
        finally:  # all are asked at once, as some take seconds; each is waited for where it was started
            for pid in itertools.chain.from_iterable(server.pids for server in servers.there.values()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)


def said(error: BaseException) -> str:
    """What stands in a table of why somebody wasn't measured."""
    return str(error) or type(error).__name__


@dataclass(frozen=True, slots=True)
class One:
    """A server in a case: what it is asked for, and what was found; `took` has the seconds that each answer of each
    round at the common rate took.
    """

    server: Server
    target: Target
    figures: Figures
    took: list[list[float]] = field(default_factory=list)


class Turns:
    """The peers of a case that are still in it."""

    def __init__(self, case: Case, chosen: tuple[Peer, ...], servers: Servers) -> None:
        self.results = {peer.name: Figures() for peer in chosen}
        self.there: dict[str, One] = {}
        for name, figures in self.results.items():
            if name in servers.there:
                server = servers.there[name]
                self.there[name] = One(server, Target(server.port, case.path, case.bodies), figures)
            else:
                self.out(name, servers.failed[name])

    def out(self, name: str, why: str) -> None:
        """`name` isn't measured any more."""
        self.there.pop(name, None)
        self.results[name] = Figures(failed=why)
        print(f"    {name}: not measured: {why}", file=sys.stderr, flush=True)

    def each(self, number: int, do: Callable[[One], None]) -> None:
        """One round: `do` it with each, in an order that is this round's."""
        order = list(self.there)
        random.Random(number).shuffle(order)
        for name in order:
            try:
                do(self.there[name])
            except FAULTS as error:
                self.out(name, said(error))


def measured(
    cases: Iterable[tuple[Case, tuple[Peer, ...]]],
    options: Options,
    announce: Callable[[Case], None] = lambda _: None,
    *,
    common_rate: bool,
) -> Iterator[tuple[Case, dict[str, Figures]]]:
    """Measure these peers of each case; neighbours share their servers. `announce` is called before each."""
    for _, each in itertools.groupby(cases, lambda pair: pair[0].servers):
        together = list(each)
        announce(together[0][0])
        with all_running(
            dict.fromkeys(peer for _, chosen in together for peer in chosen), options
        ) as servers:
            for case, chosen in together:
                if case is not together[0][0]:
                    announce(case)
                turns = Turns(case, chosen, servers)
                warm_up(case, turns, options, FIRST_WARM_UP if case is together[0][0] else WARM_UP)
                yield case, measure(case, options, turns, common_rate=common_rate and case.common_rate)


def measure(case: Case, options: Options, turns: Turns, *, common_rate: bool) -> dict[str, Figures]:
    """Measure those that are in `turns`."""

    def loaded(one: One) -> None:
        before = processor_time(*one.server.pids)
        load = wrk(
            one.target,
            options.seconds,
            case.connections,
            close=case.close,
            pin=options.pin,
            script=case.script,
        )
        used = processor_time(*one.server.pids) - before
        one.figures.rate.append(load.rate)
        if load.requests:
            one.figures.cost.append(1000 * used / load.requests)
        one.figures.errors += load.errors
        one.target.check()

    def answered(one: One) -> None:
        if not any(one.figures.rate):
            raise WrongAnswer("not one answer in any round")

    def timed(one: One) -> None:
        seconds = min(LONGEST, max(AT_COMMON_RATE, ASKED / rate))
        found = constant_rate(one.target, rate, seconds, case.connections, close=case.close)
        one.figures.common = rate
        one.figures.errors += found.errors
        one.took.append(found.took)

    for number in range(options.rounds):
        turns.each(number, loaded)
        told = (f"{name} {one.figures.rate[-1]:,.0f}" for name, one in turns.there.items())
        print(f"    round {number + 1}: {', '.join(told)}", flush=True)
    turns.each(0, answered)
    if common_rate and turns.there:
        rate = min(max(one.figures.rate) for one in turns.there.values()) / 2
        for number in range(options.rounds):
            turns.each(number, timed)
        for one in turns.there.values():
            one.figures.p99 = [quantiles(took)["p99"] for took in one.took]
            one.figures.latency = quantiles([took for each in one.took for took in each])
    return turns.results


def warm_up(case: Case, turns: Turns, options: Options, seconds: float) -> None:
    """Put load on all at once, and look at their answers before and afterwards."""
    turns.each(0, lambda one: one.target.wait())
    with ThreadPoolExecutor(max(1, len(turns.there))) as pool:
        for one in turns.there.values():
            pool.submit(wrk, one.target, seconds, case.connections, close=case.close, pin=options.pin)
    turns.each(0, lambda one: one.target.check())


WSGI = (
    peers.PYTTPD_WSGI,
    peers.ALONE,
    peers.GRANIAN_WSGI,
    peers.UWSGI,
    peers.GUNICORN_SYNC,
    peers.GUNICORN_GTHREAD,
    peers.WAITRESS,
    peers.NGINX_GRANIAN,
    peers.NGINX_UWSGI,
    peers.NGINX_GUNICORN,
    peers.MOD_WSGI,
)
BROWSED = (peers.PYTTPD_WSGI, peers.ALONE, peers.GRANIAN_WSGI, peers.UWSGI, peers.NGINX_GRANIAN)
BROWSED_BARS = (Bar("granian", 0.8),)
STATIC = (peers.PYTTPD_STATIC, peers.NGINX_STATIC, peers.NGINX_CACHED, peers.APACHE_EVENT, peers.APACHE_ITK)
#: Of WSGI with a connection for each request: by itself, and with ten tenants. PHP has no bar (issue 9).
ITK_BARS = (Bar("Apache mpm-itk", 10.0),)
FILES_BARS = (Bar("nginx", 1.0),)


def static(name: str) -> dict[str, bytes]:
    """What a file's request must be answered with."""
    return {"127.0.0.1": content(SIZES[name])}


#: All that `make bench` measures. A study stands in a module of its own, and here by its name.
CASES: tuple[Case | Study, ...] = (
    Case(
        "wsgi",
        "WSGI, kept connections",
        "wsgi",
        WSGI,
        bars=(
            Bar("granian", 1.0, logs=False),
            Bar("granian", 0.8, logs=True),
            Bar("gunicorn sync", 8.0, logs=False),
            Bar("gunicorn gthread", 8.0, logs=False),
            Bar("nginx + granian", 1.8, logs=False),
            Bar("nginx + uWSGI", 2.0, logs=False),
            Bar("pyttpd's worker alone", 0.95, logs=False),
            Bar("nginx + gunicorn", 1.0, p99=True),
        ),
        common_rate=True,
    ),
    # wrk always sends the same short head, which a worker remembers. Browsers don't.
    Case(
        "wsgi-browsers",
        "WSGI, kept connections of browsers: long heads, another path each time",
        "wsgi",
        BROWSED,
        script=BROWSERS % "false",
        bars=BROWSED_BARS,
    ),
    Case(
        "wsgi-new-heads",
        "WSGI, kept connections, long heads of which none comes twice",
        "wsgi",
        BROWSED,
        script=BROWSERS % "true",
        bars=BROWSED_BARS,
    ),
    Case("wsgi-512", "WSGI, 512 kept connections", "wsgi", WSGI, connections=512),
    Case(
        "wsgi-close",
        "WSGI, a connection for each request",
        "wsgi",
        (*WSGI, peers.MPM_ITK_WSGI),
        close=True,
        bars=(
            Bar("nginx + granian", 1.0),
            Bar("nginx + gunicorn", 3.0),
            *ITK_BARS,
            Bar("nginx + gunicorn", 1.0, p99=True),
        ),
        common_rate=True,
    ),
    Case(
        "asgi",
        "ASGI, kept connections",
        "asgi",
        (
            peers.PYTTPD_ASGI,
            peers.PYTTPD_ASGI_UVLOOP,
            peers.UVICORN_HTTPTOOLS,
            peers.UVICORN_UVLOOP,
            peers.UVICORN_H11,
            peers.GRANIAN_ASGI,
            peers.HYPERCORN,
        ),
        bars=(
            Bar("uvicorn httptools", 1.0),
            Bar("uvicorn httptools, uvloop", 1.0, of="pyttpd, uvloop"),
        ),
        common_rate=True,
    ),
    Case(
        "static-1k",
        "A file of 1 KB",
        "static",
        STATIC,
        "/1k.bin",
        static("1k.bin"),
        bars=(Bar("nginx", 0.9), Bar("nginx open_file_cache", 0.8)),
        common_rate=True,
    ),
    Case(
        "static-1k-browsers",
        "A file of 1 KB, for browsers",
        "static",
        STATIC,
        "/1k.bin",
        static("1k.bin"),
        script=BROWSERS % "false",
        bars=(Bar("nginx", 0.9),),
    ),
    Case(
        "static-100k", "A file of 100 KB", "static", STATIC, "/100k.bin", static("100k.bin"), bars=FILES_BARS
    ),
    Case(
        "static-10m",
        "A file of 10 MB",
        "static",
        STATIC,
        "/10m.bin",
        static("10m.bin"),
        connections=8,
        bars=FILES_BARS,
    ),
    Case(
        "uids-wsgi",
        "Ten tenants, each its uid: WSGI, kept connections",
        "uids-wsgi",
        uids.WSGI,
        bodies=uids.HOSTS,
        connections=40,
    ),
    Case(
        "uids-wsgi-close",
        "Ten tenants, each its uid: WSGI, a connection for each request",
        "uids-wsgi",
        uids.WSGI,
        bodies=uids.HOSTS,
        connections=40,
        close=True,
        bars=ITK_BARS,
    ),
    Case(
        "uids-php",
        "Ten tenants, each its uid: PHP, kept connections",
        "uids-php",
        uids.PHP_PEERS,
        path="/index.php",
        bodies=uids.HOSTS,
        connections=40,
    ),
    Case(
        "uids-php-close",
        "Ten tenants, each its uid: PHP, a connection for each request",
        "uids-php",
        uids.PHP_PEERS,
        path="/index.php",
        bodies=uids.HOSTS,
        connections=40,
        close=True,
    ),
    tenants.STUDY,
    spawn.STUDY,
    idle.STUDY,
    names.STUDY,
    locks.STUDY,
    handover.STUDY,
    logs.STUDY,
)
