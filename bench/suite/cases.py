"""The cases: who is measured with what, in turns, and by which figure the bars are read.

All peers of a case run at the same time. Within a round each has its turn; the order is turned by one from round to
round, so that nobody is always after the heaviest. Before the first round and after each, every byte of an answer is
looked at; within, whatever isn't a whole 200 is an error, and stands in the table. A peer that doesn't start, ends or
answers wrongly is out of its case, and its row says why.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException

from suite import handover, idle, locks, names, peers, spawn, tenants, uids
from suite.clients import BROWSERS, Target, WrongAnswer, constant_rate, wrk
from suite.figures import OURS, Bar, Figures, Options, Study
from suite.machine import processor_time
from suite.peers import SIZES, Peer, content, running

#: Of whom what must come: what all cases have that don't say otherwise.
HELLO = {"127.0.0.1": b"Hello, world!"}
#: All peers of a case have load at the same time for so long first (s): those that start processes as they need them
#: have them then.
WARM_UP = 2.0
#: A round at the common rate lasts so long (s), and longer where it is so low that fewer than so many are asked.
AT_COMMON_RATE, ASKED = 0.6, 200
_FAULTS = (SystemExit, OSError, WrongAnswer, HTTPException, subprocess.SubprocessError)


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table of benchmarks, measured by wrk. `common_rate`: how long answers take when all peers are
    asked at one rate, too.
    """

    name: str
    title: str
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


@dataclass(slots=True)
class Server:
    """A peer that runs."""

    target: Target
    pids: list[int]
    figures: Figures


class Turns:
    """The peers of a case that are still in it."""

    def __init__(self, results: dict[str, Figures]) -> None:
        self.results = results
        self.servers: dict[str, Server] = {}

    def out(self, name: str, error: BaseException) -> None:
        """`name` isn't measured any more."""
        self.servers.pop(name, None)
        self.results[name] = Figures(failed=str(error) or type(error).__name__)
        print(f"    {name}: not measured: {error}", file=sys.stderr, flush=True)

    def each(self, number: int, do: Callable[[Server], None]) -> None:
        """One round: `do` it with each, the first one being another each time."""
        order = list(self.servers)
        turn = number % len(order) if order else 0
        for name in order[turn:] + order[:turn]:
            try:
                do(self.servers[name])
            except _FAULTS as error:
                self.out(name, error)


@contextlib.contextmanager
def all_running(case: Case, chosen: tuple[Peer, ...], options: Options) -> Iterator[Turns]:
    """Start every peer of `chosen`."""
    turns = Turns({peer.name: Figures() for peer in chosen})
    with contextlib.ExitStack() as stack:
        for peer in chosen:
            try:
                port, pids = stack.enter_context(running(peer, log=options.log, pin=options.pin))
                target = Target(port, case.path, case.bodies)
                target.wait()
                turns.servers[peer.name] = Server(target, pids, turns.results[peer.name])
            except _FAULTS as error:
                turns.out(peer.name, error)
        yield turns


def measure(
    case: Case, options: Options, chosen: tuple[Peer, ...], *, common_rate: bool
) -> dict[str, Figures]:
    """Measure `chosen` of `case`'s peers."""

    def loaded(server: Server) -> None:
        before = processor_time(*server.pids)
        load = wrk(
            server.target,
            options.seconds,
            case.connections,
            close=case.close,
            pin=options.pin,
            script=case.script,
        )
        used = processor_time(*server.pids) - before
        server.figures.rate.append(load.rate)
        if load.requests:
            server.figures.cost.append(1000 * used / load.requests)
        server.figures.errors += load.errors
        server.target.check()

    def answered(server: Server) -> None:
        if not any(server.figures.rate):
            raise WrongAnswer("not one answer in any round")

    def timed(server: Server) -> None:
        seconds = max(AT_COMMON_RATE, ASKED / rate)
        found = constant_rate(server.target, rate, seconds, case.connections, close=case.close)
        server.figures.common = rate
        for key, value in (("p50", found.p50), ("p99", found.p99), ("p99.9", found.p999)):
            server.figures.latency.setdefault(key, []).append(value)
        server.figures.errors += found.errors

    with all_running(case, chosen, options) as turns:
        warm_up(case, turns, options)
        for number in range(options.rounds):
            turns.each(number, loaded)
            told = (f"{name} {server.figures.rate[-1]:,.0f}" for name, server in turns.servers.items())
            print(f"    round {number + 1}: {', '.join(told)}", flush=True)
        turns.each(0, answered)
        if common_rate and turns.servers:
            rate = min(max(server.figures.rate) for server in turns.servers.values()) / 2
            for number in range(options.rounds):
                turns.each(number, timed)
    return turns.results


def warm_up(case: Case, turns: Turns, options: Options) -> None:
    """Load on all at once."""
    with ThreadPoolExecutor(max(1, len(turns.servers))) as pool:
        for server in turns.servers.values():
            pool.submit(wrk, server.target, WARM_UP, case.connections, close=case.close, pin=options.pin)


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
        BROWSED,
        script=BROWSERS % "false",
        bars=BROWSED_BARS,
    ),
    Case(
        "wsgi-new-heads",
        "WSGI, kept connections, long heads of which none comes twice",
        BROWSED,
        script=BROWSERS % "true",
        bars=BROWSED_BARS,
    ),
    Case("wsgi-512", "WSGI, 512 kept connections", WSGI, connections=512),
    Case(
        "wsgi-close",
        "WSGI, a connection for each request",
        (*WSGI, peers.MPM_ITK_WSGI),
        close=True,
        bars=(
            Bar("nginx + granian", 1.0),
            Bar("nginx + gunicorn", 3.0),
            Bar("Apache mpm-itk", 10.0),
            Bar("nginx + gunicorn", 1.0, p99=True),
        ),
        common_rate=True,
    ),
    Case(
        "asgi",
        "ASGI, kept connections",
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
        STATIC,
        "/1k.bin",
        static("1k.bin"),
        bars=(Bar("nginx", 0.9), Bar("nginx open_file_cache", 0.8)),
        common_rate=True,
    ),
    Case(
        "static-1k-browsers",
        "A file of 1 KB, for browsers",
        STATIC,
        "/1k.bin",
        static("1k.bin"),
        script=BROWSERS % "false",
        bars=(Bar("nginx", 0.9),),
    ),
    Case("static-100k", "A file of 100 KB", STATIC, "/100k.bin", static("100k.bin"), bars=FILES_BARS),
    Case(
        "static-10m",
        "A file of 10 MB",
        STATIC,
        "/10m.bin",
        static("10m.bin"),
        connections=8,
        bars=FILES_BARS,
    ),
    Case(
        "uids-wsgi",
        "Ten tenants, each its uid: WSGI, kept connections",
        uids.WSGI,
        bodies=uids.HOSTS,
        connections=40,
    ),
    Case(
        "uids-wsgi-close",
        "Ten tenants, each its uid: WSGI, a connection for each request",
        uids.WSGI,
        bodies=uids.HOSTS,
        connections=40,
        close=True,
        bars=ITK_BARS,
    ),
    Case(
        "uids-php",
        "Ten tenants, each its uid: PHP, kept connections",
        uids.PHP_PEERS,
        path="/index.php",
        bodies=uids.HOSTS,
        connections=40,
    ),
    Case(
        "uids-php-close",
        "Ten tenants, each its uid: PHP, a connection for each request",
        uids.PHP_PEERS,
        path="/index.php",
        bodies=uids.HOSTS,
        connections=40,
        close=True,
        bars=ITK_BARS,
    ),
    tenants.STUDY,
    spawn.STUDY,
    idle.STUDY,
    names.STUDY,
    locks.STUDY,
    handover.STUDY,
)
