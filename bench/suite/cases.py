"""The cases: who is measured with what, in turns, and by which figure the bars are read.

All peers of a case run at the same time. Within a round each has its turn; the order is turned by one from round to
round, so that nobody is always after the heaviest. Before the first round and after each, every byte of an answer is
looked at; within, whatever isn't a whole 200 is an error, and stands in the table.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException

from suite import handover, idle, locks, names, peers, spawn, tenants, uids
from suite.clients import Load, Target, WrongAnswer, constant_rate, wrk
from suite.figures import Options, Study
from suite.machine import processor_time
from suite.peers import SIZES, Peer, content, running

#: Of whom what must come: what all cases have that don't say otherwise.
HELLO = {"127.0.0.1": b"Hello, world!"}


@dataclass(slots=True)
class Figures:
    """A peer's figures, one a round: requests/s, seconds of processor time per 1,000 requests, errors in all."""

    rate: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    errors: int = 0
    latency: dict[str, float] = field(default_factory=dict)
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """`of` is to have at least `ratio` of what `against` has."""

    of: str
    against: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table of benchmarks, measured by wrk."""

    name: str
    title: str
    peers: tuple[Peer, ...]
    path: str = "/"
    bodies: Mapping[str, bytes] = field(default_factory=lambda: HELLO)
    connections: int = 32
    close: bool = False
    bars: tuple[Bar, ...] = ()
    common_rate: bool = False


@contextlib.contextmanager
def all_running(
    case: Case, options: Options, results: dict[str, Figures]
) -> Iterator[dict[str, tuple[Target, list[int]]]]:
    """Start every peer of `case`; who doesn't start, or answers wrongly, is told and left out."""
    with contextlib.ExitStack() as stack:
        found = {}
        for peer in case.peers:
            results[peer.name] = Figures()
            try:
                port, pids = stack.enter_context(running(peer, log=options.log, pin=options.pin))
                target = Target(port, case.path, case.bodies)
                target.wait()
                found[peer.name] = (target, pids)
            except (SystemExit, OSError, WrongAnswer, HTTPException) as error:
                results[peer.name].failed = str(error)
                print(f"    {peer.name}: not measured: {error}", file=sys.stderr, flush=True)
        yield found


def measure(case: Case, options: Options) -> dict[str, Figures]:
    """Measure `case`; every round ends with a look at every byte."""
    results: dict[str, Figures] = {}
    with all_running(case, options, results) as servers:
        for number in range(options.rounds + 1):  # the first one warms up
            names = list(servers)
            turn = number % len(names) if names else 0
            for name in names[turn:] + names[:turn]:
                target, pids = servers[name]
                before = sum(map(processor_time, pids))
                load = wrk(
                    target,
                    options.seconds if number else 1,
                    case.connections,
                    close=case.close,
                    pin=options.pin,
                )
                used = sum(map(processor_time, pids)) - before
                if number:
                    note(results[name], load, used)
            for target, _ in servers.values():
                target.check()
            if number:
                print(
                    f"    round {number}: "
                    + ", ".join(f"{name} {results[name].rate[-1]:,.0f}" for name in names),
                    flush=True,
                )
        if case.common_rate and servers:
            at_common_rate({name: server[0] for name, server in servers.items()}, results, options)
    return results


def note(figures: Figures, load: Load, used: float) -> None:
    figures.rate.append(load.rate)
    figures.cost.append(1000 * used / load.requests if load.requests else 0.0)
    figures.errors += load.errors


def at_common_rate(targets: dict[str, Target], results: dict[str, Figures], options: Options) -> None:
    """Half of the slowest peer's most, for all."""
    rate = min(max(results[name].rate) for name in targets) / 2
    for name, target in targets.items():
        found = constant_rate(target, rate, max(3.0, options.seconds))
        results[name].latency = {"rate": found.rate, "p50": found.p50, "p99": found.p99, "p99.9": found.p999}
        results[name].errors += found.errors


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
STATIC = (peers.PYTTPD_STATIC, peers.NGINX_STATIC, peers.NGINX_CACHED, peers.APACHE_EVENT, peers.APACHE_ITK)
ITK_BARS = (Bar("pyttpd", "Apache mpm-itk", 10.0),)
FILES_BARS = (Bar("pyttpd", "nginx", 1.0),)


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
            Bar("pyttpd", "granian", 1.0),
            Bar("pyttpd", "gunicorn sync", 8.0),
            Bar("pyttpd", "nginx + granian", 1.8),
            Bar("pyttpd", "nginx + uWSGI", 2.0),
            Bar("pyttpd", "pyttpd's worker alone", 0.95),
        ),
        common_rate=True,
    ),
    Case("wsgi-512", "WSGI, 512 kept connections", WSGI, connections=512),
    Case(
        "wsgi-close",
        "WSGI, a connection for each request",
        (*WSGI, peers.MPM_ITK_WSGI),
        close=True,
        bars=(
            Bar("pyttpd", "nginx + granian", 1.0),
            Bar("pyttpd", "nginx + gunicorn", 3.0),
            Bar("pyttpd", "Apache mpm-itk", 10.0),
        ),
    ),
    Case(
        "asgi",
        "ASGI, kept connections",
        (peers.PYTTPD_ASGI, peers.UVICORN_HTTPTOOLS, peers.UVICORN_H11, peers.GRANIAN_ASGI, peers.HYPERCORN),
        bars=(Bar("pyttpd", "uvicorn httptools", 1.0),),
    ),
    Case(
        "static-1k",
        "A file of 1 KB",
        STATIC,
        "/1k.bin",
        static("1k.bin"),
        bars=(Bar("pyttpd", "nginx", 0.9), Bar("pyttpd", "nginx open_file_cache", 0.8)),
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
    ),
    tenants.STUDY,
    spawn.STUDY,
    idle.STUDY,
    names.STUDY,
    locks.STUDY,
    handover.STUDY,
)
