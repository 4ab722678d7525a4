"""The client programs of the chaos test: `python -I clients.py KIND PORT SEED HOST...`, until standard input ends.

Each is a process with a few connections of its own way of asking. Every byte of every answer is checked: what is asked
for is made from a seed that stands in the target, so that client and application compute it independently. Nothing is
tried again silently: whatever isn't the right answer is one line of JSON on standard output (`Failure`), and so is the
summary at the end (`Summary`).

    keepalive    one connection, request after request
    single       a connection per request
    slow         reads an answer of a megabyte in small pieces, with pauses
    upload       sends a body in pieces, with pauses, with a length or chunked; the answer is its digest
    pipeline     eight requests at once; the answers have to come in order
    idle         a connection that sleeps between its requests

How a request can go wrong (`What`):

    refused      nobody listens, or the queue is full
    reset        the connection was reset
    closed       the connection ended before the answer was whole
    closed-idle  a connection that had been idle was closed, cleanly, before any byte of the answer: the one end that a
                 client has to reckon with at any time (RFC 9112, 9.3.1), and looks for before it asks
    timeout      no answer within TIMEOUT
    wrong        a byte that isn't right, or something that isn't HTTP
    5xx          the server's own word that it has failed (and 4xx: of these requests none is wrong)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

KINDS = ("keepalive", "single", "slow", "upload", "pipeline", "idle")
#: Connections of each program at a time.
CONNECTIONS = 3
#: An answer takes so long (s) at most: what is stopped has to be noticed, killed and started again within it.
TIMEOUT = 60.0
#: Between two requests of a connection (s), so that a machine that does other things can follow.
PAUSE = 0.02
SLOW_SIZE = 1 << 20
SLOW_PIECE = 32_768
SLOW_PAUSE = 0.02
UPLOAD_SIZE = 300_000
UPLOAD_PIECE = 30_000
UPLOAD_PAUSE = 0.05
PIPELINED = 8
#: Connections of an idle client sleep up to so long (s).
IDLE = 3.0
#: What is asked for: these sizes, each of these seeds. Static files have to be there beforehand.
SIZES = (0, 1, 100, 5_000, 20_000)
SEEDS = range(8)
LARGEST_HEAD = 20_000


def pattern(seed: int, size: int) -> bytes:
    """Return the `size` bytes that belong to `seed`. The application has the same function."""
    return random.Random(seed).randbytes(size)


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that wasn't answered rightly. Times are CLOCK_MONOTONIC: `at`; `opened`, its connection's; `alive`,
    when the last one of its connection that was answered rightly was asked (0: none was).
    """

    kind: str
    host: str
    what: str
    port: int
    opened: float
    at: float
    alive: float
    served: int
    detail: str


@dataclass(slots=True)
class Summary:
    """What a program has done: requests answered rightly, connections opened, the longest wait for an answer (s)."""

    kind: str
    answered: int = 0
    connections: int = 0
    longest: float = 0.0


class Wrong(Exception):
    """What came isn't the answer."""


class Ended(Exception):
    """The connection ended before the answer was whole; `clean`: no byte of it had come."""

    def __init__(self, *, clean: bool) -> None:
        super().__init__("end of connection")
        self.clean = clean


class Connection:
    """A connection to the server, and what has been read of it beyond the last answer."""

    def __init__(self, port: int) -> None:
        self.opened = time.monotonic()
        self.sock = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        self.port = int(self.sock.getsockname()[1])
        self.served = 0
        self.asked = self.alive = 0.0
        self._data = b""
        self._began = False

    def ask(self, data: bytes) -> None:
        """Send a request's beginning, unless the other end is to be seen already."""
        self._began = False
        if self.served and not self._data and select.select([self.sock], [], [], 0)[0]:
            self._more()
        self.asked = time.monotonic()
        self.send(data)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _more(self, most: int = 65_536) -> None:
        data = self.sock.recv(most)
        if not data:
            raise Ended(clean=not self._began and not self._data)
        self._data += data

    def answer(self, expected: bytes, *, piece: int = 65_536, pause: float = 0.0) -> bool:
        """Read one answer, whose body has to be `expected`; say whether another request may follow."""
        self._began = False
        while b"\r\n\r\n" not in self._data:
            if len(self._data) > LARGEST_HEAD:
                raise Wrong("a head without an end")
            self._more()
        self._began = True
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        words = lines[0].split(b" ", 2)
        if len(words) < 2 or words[0] != b"HTTP/1.1":
            raise Wrong(f"no status line: {lines[0][:60]!r}")
        if words[1] != b"200":
            raise Status(words[1].decode("latin-1"))
        fields = {}
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            fields[name.lower()] = value.strip()
        if fields.get(b"content-length") != b"%d" % len(expected):
            raise Wrong(f"content-length {fields.get(b'content-length')!r}, {len(expected)} expected")
        got = 0
        while got < len(expected):
            if not self._data:
                self._more(piece)
                time.sleep(pause)
            part, self._data = self._data[: len(expected) - got], self._data[len(expected) - got :]
            if part != expected[got : got + len(part)]:
                raise Wrong(f"another byte than expected after {got}")
            got += len(part)
        self.served += 1
        self.alive = self.asked
        return fields.get(b"connection", b"").lower() != b"close"

    def nothing_more(self) -> None:
        """What nobody has asked for is wrong too."""
        if self._data:
            raise Wrong(f"{len(self._data)} bytes that nobody asked for")

    def close(self) -> None:
        self.sock.close()


class Status(Exception):
    """An answer with another status than 200."""


class Client:
    """One connection at a time, in one way of asking."""

    def __init__(self, program: Program, number: int) -> None:
        self._program = program
        self._random = random.Random(f"{program.seed}/{program.kind}/{number}")
        self._connection: Connection | None = None
        self._host = self._kept = program.hosts[0]

    def run(self) -> None:
        turn: Callable[[], None] = getattr(self, f"_{self._program.kind}")
        while not self._program.stop.is_set():
            self._host = self._random.choice(self._program.hosts)
            began = time.monotonic()
            try:
                turn()
            except (OSError, Wrong, Ended, Status) as error:
                self._failed(error)
                self._close()
                time.sleep(PAUSE)
            else:
                self._program.answered(time.monotonic() - began)
            time.sleep(PAUSE)
        self._close()

    def _failed(self, error: Exception) -> None:
        connection = self._connection
        match error:
            case Ended(clean=True) if connection is not None and connection.served:
                what = "closed-idle"
            case Ended():
                what = "closed"
            case Status():
                what = "5xx" if str(error).startswith("5") else "wrong"
            case Wrong():
                what = "wrong"
            case TimeoutError():
                what = "timeout"
            case ConnectionRefusedError():
                what = "refused"
            case _:
                what = "reset"
        self._program.say(
            Failure(
                self._program.kind,
                self._host,
                what,
                0 if connection is None else connection.port,
                time.monotonic() if connection is None else connection.opened,
                time.monotonic(),
                0.0 if connection is None else connection.alive,
                0 if connection is None else connection.served,
                f"{type(error).__name__} {error}"[:120],
            )
        )

    def _open(self) -> Connection:
        if self._connection is None:
            self._connection = Connection(self._program.port)
            self._program.opened()
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _request(self, size: int, *, close: bool = False) -> tuple[bytes, bytes]:
        """Return a request for `size` bytes, and these."""
        seed = self._random.choice(SEEDS)
        end = "Connection: close\r\n" if close else ""
        return (
            f"GET /pattern/{seed}/{size} HTTP/1.1\r\nHost: {self._host}\r\n{end}\r\n".encode(),
            pattern(seed, size),
        )

    def _get(self, size: int, *, close: bool = False, piece: int = 65_536, pause: float = 0.0) -> None:
        request, expected = self._request(size, close=close)
        connection = self._open()
        connection.ask(request)
        again = connection.answer(expected, piece=piece, pause=pause)
        connection.nothing_more()
        if not again or close:
            self._close()

    def _stay(self) -> None:
        """A connection is its host's until it ends, so that no request is for another tenant than the last."""
        if self._connection is not None:
            self._host = self._kept
        self._kept = self._host

    # ---- the ways of asking ----

    def _keepalive(self) -> None:
        self._stay()
        self._get(self._random.choice(SIZES))

    def _single(self) -> None:
        self._get(self._random.choice(SIZES), close=True)

    def _slow(self) -> None:
        self._stay()
        self._get(SLOW_SIZE, piece=SLOW_PIECE, pause=SLOW_PAUSE)

    def _upload(self) -> None:
        self._stay()
        chunked = self._random.random() < 0.5
        body = pattern(self._random.getrandbits(32), UPLOAD_SIZE)
        how = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
        connection = self._open()
        connection.ask(f"POST /digest HTTP/1.1\r\nHost: {self._host}\r\n{how}\r\n\r\n".encode())
        for start in range(0, len(body), UPLOAD_PIECE):
            part = body[start : start + UPLOAD_PIECE]
            connection.send(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
            time.sleep(UPLOAD_PAUSE)
        if chunked:
            connection.send(b"0\r\n\r\n")
        again = connection.answer(hashlib.sha256(body).hexdigest().encode())
        connection.nothing_more()
        if not again:
            self._close()

    def _pipeline(self) -> None:
        self._stay()
        pairs = [self._request(self._random.choice(SIZES)) for _ in range(PIPELINED)]
        connection = self._open()
        connection.ask(b"".join(request for request, _ in pairs))
        for number, (_, expected) in enumerate(pairs):
            if not connection.answer(expected):
                # It may be the last at any time: what follows is unanswered, and asked anew (RFC 9112, 9.3.2).
                connection.nothing_more()
                self._close()
                if number + 1 < PIPELINED:
                    return
                break
        else:
            connection.nothing_more()

    def _idle(self) -> None:
        self._stay()
        if self._connection is not None:
            time.sleep(self._random.uniform(0.2, IDLE))
        self._get(self._random.choice(SIZES))


class Program:
    """The process: CONNECTIONS clients in threads of their own."""

    def __init__(self, kind: str, port: int, seed: str, hosts: list[str]) -> None:
        self.kind = kind
        self.port = port
        self.seed = seed
        self.hosts = hosts
        self.stop = threading.Event()
        self._summary = Summary(kind)
        self._lock = threading.Lock()

    def opened(self) -> None:
        with self._lock:
            self._summary.connections += 1

    def answered(self, seconds: float) -> None:
        with self._lock:
            self._summary.answered += 1
            self._summary.longest = max(self._summary.longest, seconds)

    def say(self, what: Failure | Summary) -> None:
        with self._lock:
            print(json.dumps(dataclasses.asdict(what)), flush=True)

    def run(self) -> None:
        threads = [
            threading.Thread(target=Client(self, number).run, name=f"{self.kind} {number}")
            for number in range(CONNECTIONS)
        ]
        for thread in threads:
            thread.start()
        while os.read(0, 64):
            select.select([0], [], [])
        self.stop.set()
        for thread in threads:
            thread.join()
        self.say(self._summary)


if __name__ == "__main__":
    Program(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]).run()
