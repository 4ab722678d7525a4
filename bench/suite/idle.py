"""10,000 idle connections: what each costs in memory, and how long an active one waits beside them.

Each connection asks once, is answered, and is kept. Memory is what all of a server's processes have for themselves,
less what they had before the first of them, by 10,000. Everybody's idle timeout is 10 minutes, so that nobody closes
them; that all are still there is looked at in each round, and in the last one each is asked once more. The latency is
that of 32 other connections at a constant rate, without and beside them.
"""

from __future__ import annotations

import contextlib
import resource
import select
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from suite import peers
from suite.clients import Target, WrongAnswer, constant_rate, quantiles
from suite.figures import OURS, Limit, Options, Row, Study
from suite.machine import family, private_memory
from suite.peers import Peer, Setting, running

CONNECTIONS = 10_000
#: Opened at once: less than anybody's accept queue.
BATCH = 100
#: What the active ones ask, all together (1/s).
RATE = 1000.0
TIMEOUT = 600
#: A round takes sixteen seconds, most of them for opening and asking, and memory hardly differs from one to the next.
ROUNDS = 3
HELLO = {"127.0.0.1": b"Hello, world!"}
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
MEMORY = "memory of an idle connection"
BAR = Limit(most=4.0)


def pyttpd(kind: str, application: str) -> Callable[[Setting], list[list[str]]]:
    def start(setting: Setting) -> list[list[str]]:
        table = peers.tenant(setting, kind, application=application)
        return peers.tree(setting, f"{table}\n[vhost.t0.http]\nidle_timeout = {TIMEOUT}\n")

    return start


def nginx_granian(setting: Setting) -> list[list[str]]:
    behind = peers.granian("wsgi")(Setting(setting.folder, setting.spare, False, setting.spare + 1))
    http = f"keepalive_timeout {TIMEOUT}s; upstream app {{ server 127.0.0.1:{setting.spare}; keepalive 64; }}"
    return [*behind, peers.nginx(setting, http=http, server=f"location / {{ {peers.PROXY} }}")]


def granian(setting: Setting) -> list[list[str]]:
    """Its "backpressure" counts connections, idle ones too, and is 1,024 unless told."""
    (command,) = peers.granian("wsgi")(setting)
    return [[*command, "--backpressure", str(2 * CONNECTIONS)]]


def uvicorn(setting: Setting) -> list[list[str]]:
    (command,) = peers.uvicorn("httptools", "uvloop")(setting)
    return [[*command, "--timeout-keep-alive", str(TIMEOUT)]]


SERVERS = (
    Peer(OURS, pyttpd("wsgi", "hello:app"), peers.OUR_VERSION),
    Peer("pyttpd ASGI", pyttpd("asgi", "hello_asgi:app"), peers.OUR_VERSION),
    Peer("nginx + granian", nginx_granian, peers.NGINX_VERSION),
    Peer("granian", granian, peers.GRANIAN_WSGI.version),
    Peer("uvicorn httptools", uvicorn, peers.UVICORN_HTTPTOOLS.version),
)


@contextlib.contextmanager
def many_files() -> Iterator[None]:
    """As many descriptors as may be, for us and the servers that are started meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def ask(socks: list[socket.socket]) -> None:
    """Ask on each of `socks`, and look at every byte of each answer."""
    for sock in socks:
        sock.sendall(REQUEST)
    for sock in socks:
        answer = b""
        while not answer.endswith(HELLO["127.0.0.1"]):
            more = sock.recv(4096)
            if not more:
                raise WrongAnswer(f"a kept connection was closed after {answer[:80]!r}")
            answer += more
        if not answer.startswith(b"HTTP/1.1 200 ") or answer.count(b"HTTP/1.1") != 1:
            raise WrongAnswer(f"{answer[:80]!r}")


@contextlib.contextmanager
def idle(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Have `count` connections that have been answered once."""
    with contextlib.ExitStack() as stack:
        found: list[socket.socket] = []
        while len(found) < count:
            batch = [
                stack.enter_context(socket.create_connection(("127.0.0.1", port), 30))
                for _ in range(min(BATCH, count - len(found)))
            ]
            ask(batch)
            found += batch
        yield found


@dataclass(slots=True)
class Server:
    """One that runs: whom to ask, its processes, and the memory that they had before the first idle connection."""

    target: Target
    pids: list[int]
    before: int = 0

    def memory(self) -> int:
        return private_memory(family(*self.pids))


def look(socks: list[socket.socket]) -> None:
    """See that none of `socks` was closed by its server: one that was would have something to read."""
    poll = select.poll()
    for sock in socks:
        poll.register(sock, select.POLLIN | select.POLLRDHUP)
    if found := poll.poll(0):
        raise WrongAnswer(f"{len(found)} kept connections of {len(socks)} aren't idle any more")


def once(server: Server, options: Options, *, last: bool) -> dict[tuple[str, str], float]:
    """Measure one server: figure and unit, and its value."""
    alone = constant_rate(server.target, RATE, options.seconds)
    server.before = server.before or server.memory()
    with idle(server.target.port, CONNECTIONS) as connections:
        after = server.memory()
        beside = constant_rate(server.target, RATE, options.seconds)
        look(connections)
        for first in range(0, CONNECTIONS if last else 0, BATCH):
            ask(connections[first : first + BATCH])
    if errors := alone.errors + beside.errors:
        raise WrongAnswer(f"{errors} wrong answers")
    none, many = quantiles(alone.took), quantiles(beside.took)
    return {
        (MEMORY, "KB"): (after - server.before) / CONNECTIONS / 1024,
        ("p50 with none idle", "ms"): 1000 * none["p50"],
        (f"p50 beside {CONNECTIONS:,} idle ones", "ms"): 1000 * many["p50"],
        ("p99 with none idle", "ms"): 1000 * none["p99"],
        (f"p99 beside {CONNECTIONS:,} idle ones", "ms"): 1000 * many["p99"],
    }


def measure(options: Options) -> list[Row]:
    """All run; each has its turn in each round."""
    rows: dict[tuple[str, str], Row] = {}
    with many_files(), contextlib.ExitStack() as stack:
        servers: dict[str, Server] = {}
        for peer in SERVERS:
            port, pids = stack.enter_context(running(peer, log=options.log, pin=options.pin))
            servers[peer.name] = Server(Target(port, "/", HELLO), pids)
            servers[peer.name].target.wait()
        rounds = min(options.rounds, ROUNDS)
        for number in range(rounds):
            for name, server in list(servers.items()):
                try:
                    found = once(server, options, last=number == rounds - 1)
                except (OSError, WrongAnswer) as error:
                    rows[MEMORY, name] = Row(MEMORY, name, "KB", failed=str(error))
                    del servers[name]
                    continue
                for (figure, unit), value in found.items():
                    bars = (BAR,) if figure == MEMORY and name.startswith(OURS) else ()
                    rows.setdefault((figure, name), Row(figure, name, unit, bars=bars)).values.append(value)
                told = ", ".join(f"{figure} {value:.2f} {unit}" for (figure, unit), value in found.items())
                print(f"    round {number + 1}: {name}: {told}", flush=True)
    order = {figure: number for number, figure in enumerate(dict.fromkeys(figure for figure, _ in rows))}
    return sorted(rows.values(), key=lambda row: order[row.figure])


STUDY = Study(
    "idle",
    f"{CONNECTIONS:,} idle connections",
    measure,
    tuple((peer.name, peer.version) for peer in SERVERS),
)
