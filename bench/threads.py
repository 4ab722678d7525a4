"""What threads cost a worker that doesn't need them, and what they give one that does.

    .venv-bench/bin/python bench/threads.py [--rounds 5] [--seconds 3] [--other FOLDER]

Real workers (`pyttpd_vhost.worker`) whose connections come from a played umaster. First "Hello, world!" by wrk with 32
connections that are kept, servers and client on a core each: a worker with one thread beside one that may have 64, in
turns. `--other`: a third one, from another checkout of this repository, with what it has.
Then 64 requests at once that sleep 100 ms each, to a worker with one thread, with 64 threads, and again with 64 that
are there already.
"""

from __future__ import annotations

import argparse
import os
import runpy
import select
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from suite.clients import Target, wrk
from suite.machine import SERVER_CORE, children, running_time

HERE = Path(__file__).resolve().parent
CONNECTIONS = 32
HELLO = {"127.0.0.1": b"Hello, world!"}


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with 13 bytes; /sleep a tenth of a second later."""
    if environ["PATH_INFO"] == "/sleep":
        time.sleep(0.1)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [b"Hello, world!"]


def serve(listener: socket.socket, threads: int) -> None:
    """Be a worker and the umaster that gives it what `listener` accepts, until killed."""
    from dataclasses import replace

    from pyttpd import fdpass
    from pyttpd.config.shares import PoolSettings
    from pyttpd.log import Log
    from pyttpd.wire import messages as m

    from pyttpd_vhost.kinds.wsgi import WsgiKind
    from pyttpd_vhost.scoreboard import Scoreboard
    from pyttpd_vhost.site import Site
    from pyttpd_vhost.worker import Worker

    make_site = runpy.run_path(str(HERE / "standalone.py"))["make_site"]
    ours, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        os.sched_setaffinity(0, {int(SERVER_CORE)})
        log = Log("vhost", "bench")
        site: Site = make_site("wsgi", "hello:app", HERE, Path())
        if threads > 1:
            site.share = replace(site.share, pool=PoolSettings(max_threads=threads))
        site.kind = WsgiKind(app, site)
        Worker(site, control, Scoreboard(1), 0, 1, log).run()
        os._exit(0)
    control.close()
    fdpass.send_fd(ours, m.encode(m.Attach(m.VERSION)), far.fileno())
    far.close()
    credit = next_id = 0
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(ours, select.POLLIN)
    accepting = False
    while True:
        if accepting != (credit > 0):
            accepting = not accepting
            (poll.register(listener, select.POLLIN) if accepting else poll.unregister(listener))
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                sock, (host, port) = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                next_id += 1
                credit -= 1
                fdpass.send_fd(
                    channel, m.encode(m.Dispatch(next_id, m.Client(host, port), "127.0.0.1")), sock.fileno()
                )
                sock.close()
                break  # credit may be gone
            frame, passed = fdpass.recv_fd(channel if fd == channel.fileno() else ours, m.MAX_FRAME)
            if not frame:
                return
            message = m.decode(frame)
            if isinstance(message, m.Credit):
                credit += message.more
            elif isinstance(message, m.Pass):
                assert passed is not None
                os.close(passed)
                fdpass.send(channel, m.encode(m.Refuse(message.id, 503)))


def start(threads: int, checkout: Path) -> tuple[int, int]:
    """Start a worker with the code of `checkout`; return its port and process group."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listener.getsockname()[1]
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.set_inheritable(listener.fileno(), True)
        path = f"{checkout / 'src'}:{checkout / 'services/vhost/src'}"
        environment = dict(os.environ, PYTHONPATH=path)
        os.execve(
            sys.executable,
            [sys.executable, __file__, "--serve", str(listener.fileno()), "--threads", str(threads)],
            environment,
        )
    listener.close()
    return port, pid


def ask(port: int, path: str) -> socket.socket:
    """Send a request; the answer is to be read by `read`."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    return sock


def read(sock: socket.socket) -> None:
    """Read an answer with this application's body."""
    data = b""
    while b"Hello, world!" not in data:
        more = sock.recv(65536)
        assert more, data
        data += more


def measure(port: int, group: int, seconds: float) -> tuple[float, float]:
    """Return requests per second, and what each costs the worker, the only child of `group`'s leader, in processor
    time (us).
    """
    target, worker = Target(port, "/", HELLO), children()[group]
    target.check()
    before = running_time(worker)
    load = wrk(target, seconds, CONNECTIONS, close=False)
    if load.errors:
        raise SystemExit(f"{load.errors} wrong answers")
    return load.rate, (running_time(worker) - before) / load.requests * 1e6


def sleepers(port: int) -> float:
    """Return how long (s) 64 requests at once take."""
    socks = [ask(port, "/") for _ in range(64)]
    for sock in socks:
        read(sock)
    began = time.monotonic()
    for sock in socks:
        sock.sendall(b"GET /sleep HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    for sock in socks:
        read(sock)
    took = time.monotonic() - began
    for sock in socks:
        sock.close()
    return took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(socket.socket(fileno=options.serve), options.threads)
        return
    top = HERE.parent
    servers = {"one thread": start(1, top), "up to 64": start(64, top)}
    if options.other:
        servers["other"] = start(1, options.other.resolve())
    try:
        for port, _ in servers.values():
            with ask(port, "/") as sock:
                read(sock)
        rates: dict[str, list[float]] = {name: [] for name in servers}
        costs: dict[str, list[float]] = {name: [] for name in servers}
        for number in range(options.rounds):
            for name, (port, group) in servers.items():
                rate, cost = measure(port, group, options.seconds)
                rates[name].append(rate)
                costs[name].append(cost)
            parts = [f"{name} {rates[name][-1]:.0f}/s {costs[name][-1]:.2f} us" for name in servers]
            print(f"round {number + 1}:", "; ".join(parts))
        for title, results in (("requests/s", rates), ("us of processor time a request", costs)):
            medians = {name: statistics.median(values) for name, values in results.items()}
            print(f"median {title}:", *(f"{name} {value:.2f}" for name, value in medians.items()))
            print(f"  up to 64 / one thread: {medians['up to 64'] / medians['one thread']:.3f}")
            if options.other:
                print(f"  one thread / other: {medians['one thread'] / medians['other']:.3f}")
        for name in ("one thread", "up to 64", "up to 64"):
            print(f"64 requests that sleep 100 ms, {name}: {sleepers(servers[name][0]):.3f} s")
    finally:
        for _, pid in servers.values():
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
