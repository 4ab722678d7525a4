"""The kind handoff: connections that become a program's, unread or with what was read, and clients whose don't."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyttpd.config.kinds import HandoffOptions

from pyttpd_vhost.access import HANDED_OVER
from pyttpd_vhost.execution.places import Place
from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.kinds.gateway.kind import redirect
from pyttpd_vhost.kinds.handoff import HandoffKind
from pyttpd_vhost.site import Site

from .conftest import HOST, Client, Serve, Server, descriptors
from .test_handoff_channels import PATIENCE, Program, Script, busy, greet, greeted, said, taking
from .test_handoff_frames import TOP, reference

GET = f"GET /a?b HTTP/1.1\r\nHost: {HOST}\r\nX-A:  b \r\n\r\n".encode()


class Accesses:
    """An access log that keeps what it is told."""

    timed = False
    lines = ()

    def __init__(self) -> None:
        self.added: list[tuple[str, str, int, int]] = []

    def add(self, client: str, request: Any, code: int, sent: int, _: float) -> None:
        self.added.append((client, request.target.decode(), code, sent))

    def add_refused(self, client: str, head: bytes, code: int, sent: int) -> None:
        self.added.append((client, head.decode("latin-1"), code, sent))

    def flush(self) -> None: ...

    def finish(self) -> int:
        return 0


class Handoff:
    def __init__(
        self, folder: Path, serve: Serve, script: Script, *, whole: bool, share: Any = None, **options: Any
    ) -> None:
        self.program = Program(folder, script)
        self.access = Accesses()

        def kind(site: Site) -> HandoffKind:
            site.access = self.access  # type: ignore[assignment]
            prefix = "" if whole else "/chat"
            made = HandoffOptions(socket=self.program.path, **options)
            place = Place(0, self.program.path, kind=socket.SOCK_SEQPACKET)
            return HandoffKind(made, site, place, prefix=prefix, whole=whole)

        self.server: Server = serve(kind=kind, share=share)

    @property
    def reasons(self) -> list[object]:
        log: Any = self.server.site.log
        return [fields["reason"] for _, event, fields in log.lines if event == "application failed"]


Make = Callable[..., Handoff]


@pytest.fixture
def handoff(tmp_path: Path, serve: Serve) -> Iterator[Make]:
    with contextlib.ExitStack() as stack:

        def make(script: Script, *, whole: bool = True, **options: Any) -> Handoff:
            made = Handoff(tmp_path, serve, script, whole=whole, **options)
            stack.callback(made.program.close)
            stack.callback(made.server.site.kind.close)  # type: ignore[attr-defined]
            stack.callback(made.server.stop)
            return made

        yield make


def read_head(sock: socket.socket, data: bytes = b"") -> bytes:
    sock.settimeout(PATIENCE)
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        assert piece
        data += piece
    return data


class Noting:
    """A program that takes each connection, notes what it was told, and answers with what it has read."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []

    def __call__(self, sock: socket.socket) -> None:
        sock.recv(512)
        sock.send(said(reference.WELCOME, struct.pack("!H", 8) + b"\0\0"))
        while True:
            packet, fds, _, _ = socket.recv_fds(sock, 70000, 1)
            if not packet or packet[1] == reference.GOODBYE:
                return
            self.packets.append(packet)
            with socket.socket(fileno=fds[0]) as client:
                sock.send(said(reference.ACCEPTED, id_=struct.unpack_from("!I", packet, 4)[0]))
                sock.send(said(reference.CREDIT, b"\0\x01"))
                _, at = reference._text(packet, 11)
                _, at = reference._text(packet, at)
                _, at = reference._text(packet, at)
                head = read_head(client, packet[at:])
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(head) + head)
                client.shutdown(socket.SHUT_WR)
                client.recv(1)


def settled() -> int:
    """How many descriptors there are, once that has been so for a while."""
    count, since = descriptors(), time.monotonic()
    while time.monotonic() - since < 0.2:
        time.sleep(0.01)
        now = descriptors()
        if now != count:
            count, since = now, time.monotonic()
    return count


def test_unread(handoff: Make) -> None:
    noting = Noting()
    made = handoff(noting)
    before = 0
    for _ in range(3):
        with made.server.connect() as sock:
            sock.sendall(GET)
            assert Client(sock).answer().body == GET
            address, port = sock.getsockname()
            packet = noting.packets[-1]
            assert packet[8] == reference.WHOLE
            assert struct.unpack_from("!H", packet, 9) == (port,)
            assert reference._text(packet, 11) == (address, 11 + 2 + len(address))
            assert packet.endswith(b"\0\x06" + HOST.encode() + b"\0\0")
        made.server.wait_closed()
        before = before or descriptors()  # the channel stays
    assert descriptors(before) <= before  # fewer: what tests before have left to the collector
    assert made.access.added == [("127.0.0.1", "/a?b", HANDED_OVER, 0)] * 3
    assert made.server.site.stats.responses == [0, 3, 0, 0, 0, 0]


@pytest.mark.parametrize("whole", [True, False], ids=["unread", "read"])
def test_behind_a_trusted_proxy(handoff: Make, whole: bool) -> None:
    """The program is told whose connection it is, and reads the proxy's own words as well."""
    noting = Noting()
    made = handoff(noting, whole=whole, share={"trusted_proxies": ("127.0.0.0/8",)})
    head = GET[:-2] + b"X-Forwarded-For: 192.0.2.9\r\nX-Forwarded-Proto: https\r\n\r\n"
    with made.server.connect() as sock:
        sock.sendall(head)
        assert b"X-Forwarded-For: 192.0.2.9\r\n" in Client(sock).answer().body
    flags = reference.SECURE | (reference.WHOLE if whole else 0)
    assert noting.packets[0][8] == flags
    assert reference._text(noting.packets[0], 11)[0] == "192.0.2.9"


def test_a_client_that_leaves_before_it_is_looked_at(handoff: Make) -> None:
    """Whether it resets its connection or ends it in order: no program hears of it."""
    noting = Noting()
    made = handoff(noting)
    with made.server.connect() as sock:
        sock.sendall(GET[:10])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with made.server.connect() as sock:
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(PATIENCE)
        assert sock.recv(1) == b""
    with made.server.connect() as sock:
        sock.sendall(GET)
        assert Client(sock).answer().body == GET
    assert len(noting.packets) == 1


def test_with_what_was_read(handoff: Make) -> None:
    """Beside other mounts the head had to be read: it comes in the form that we have understood."""
    noting = Noting()
    made = handoff(noting, whole=False)
    with made.server.connect() as sock:
        sock.sendall(GET + b"more")
        assert Client(sock).answer().body == GET.replace(b"  b ", b" b") + b"more"
    (packet,) = noting.packets
    assert packet[8] == 0
    assert b"\0\x05/chatGET /a?b HTTP/1.1\r\n" in packet
    assert packet.endswith(b"\r\n\r\nmore")


@pytest.mark.parametrize("whole", [True, False])
def test_a_head_in_pieces_and_a_body(handoff: Make, whole: bool) -> None:
    made = handoff(Noting(), whole=whole)
    head = f"POST /a HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\nX-Long: {'x' * 20000}\r\n\r\n".encode()
    with made.server.connect() as sock:
        for at in range(0, len(head), 4001):
            sock.sendall(head[at : at + 4001])
        sock.sendall(b"hello")
        assert Client(sock).answer().body in (head, head + b"hello")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"hello\r\n\r\n", 400),
    ],
)
def test_what_no_program_gets_to_see(handoff: Make, request_: bytes, status: int) -> None:
    noting = Noting()
    made = handoff(noting)
    with made.server.connect() as sock:
        sock.sendall(request_)
        assert Client(sock).answer().status == status
    assert noting.packets == []


def dies(sock: socket.socket, _: socket.socket, __: int) -> None:
    sock.shutdown(socket.SHUT_RDWR)


def garbage(sock: socket.socket, _: socket.socket, __: int) -> None:
    sock.send(b"HTTP/1.1 200 OK\r\n\r\n")


BUSY = taking(busy)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("script", "status", "reason"),
    [
        pytest.param(BUSY, 503, "full", id="busy"),
        pytest.param(taking(dies, times=1), 502, "died", id="dies"),
        pytest.param(taking(garbage, times=1), 502, "malformed", id="garbage"),
        pytest.param(greeted(), 504, "timeout", id="silent"),
        pytest.param(greeted(0), 503, "full", id="no-credit"),
    ],
)
def test_bad_programs(handoff: Make, script: Script, status: int, reason: str, whole: bool) -> None:
    patience = 0.2 if reason in ("full", "timeout") and script is not BUSY else PATIENCE
    made = handoff(script, whole=whole, accept_timeout=patience, max_channels=1 + (script is BUSY))
    greet(made.server.site.kind._channels)  # type: ignore[attr-defined]
    with made.server.connect() as sock:
        sock.sendall(GET)
        answer = Client(sock).answer()
        assert (answer.status, answer["Connection"]) == (status, "close")
        assert sock.recv(1) == b""
    assert made.reasons == [reason]
    assert made.access.added[0][2] == status
    stats = made.server.site.stats
    assert (stats.errors, sum(stats.faults.values()), stats.responses[5]) == (1, 1, 1)


def test_nobody_there(handoff: Make) -> None:
    made = handoff(greeted())
    nowhere = HandoffKind(HandoffOptions(socket="/none"), made.server.site, None)
    made.server.site.kind = nowhere
    with made.server.connect() as sock:
        sock.sendall(GET)
        assert Client(sock).answer().status == 503
    assert made.reasons == ["unreachable"]


@pytest.mark.parametrize("whole", [True, False])
def test_what_a_program_has_begun_is_not_answered_twice(handoff: Make, whole: bool) -> None:
    def after(sock: socket.socket, client: socket.socket, _: int) -> None:
        client.setblocking(True)
        client.sendall(b"HTTP/1.1 200 OK\r\n")
        client.close()
        sock.shutdown(socket.SHUT_RDWR)

    made = handoff(taking(after, times=1), whole=whole)
    with made.server.connect() as sock:
        sock.sendall(GET)
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(65536):
                data += piece
        assert data in (b"HTTP/1.1 200 OK\r\n", b"")
    assert made.reasons == ["died"]
    assert made.server.site.stats.gone == 1


def test_no_local_redirect_leads_to_a_program(handoff: Make) -> None:
    """The redirected request's own body may still be on the way: it would be the program's next request."""
    noting = Noting()
    made = handoff(noting, whole=False)
    kind = made.server.site.kind

    class Redirects:
        def handle(self, request: Request, exchange: Exchange) -> None:
            kind.handle(redirect(request, "/chat/x"), exchange)

        def close(self) -> None:
            kind.close()  # type: ignore[attr-defined]

    made.server.site.kind = Redirects()
    with made.server.connect() as sock:
        sock.sendall(GET)
        assert Client(sock).answer().status == 502
    assert made.reasons == ["malformed"]
    assert noting.packets == []


def test_processes_that_fail_keep_nobody_waiting(handoff: Make) -> None:
    made = handoff(greeted(0))

    class Failing(Place):
        fails = True

    made.server.site.kind._place = Failing(0, "/none")  # type: ignore[attr-defined]
    with made.server.connect() as sock:
        sock.sendall(GET)
        assert Client(sock).answer().status == 503
    assert made.reasons == ["unreachable"]


# ---- other libraries, by the reference client ----


@contextlib.contextmanager
def serving(
    serve: Serve, folder: Path, run: Callable[[socket.socket, threading.Event], None]
) -> Iterator[Server]:
    """Serve by what `run` does with the listening socket, until the event."""
    path = str(folder / "reference")
    listener = reference.listener(path)
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(listener, stop))
    thread.start()

    place = Place(0, path, kind=socket.SOCK_SEQPACKET)
    server = serve(kind=lambda site: HandoffKind(HandoffOptions(socket=path), site, place))
    try:
        yield server
    finally:
        stop.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_the_example_serves_with_the_standard_librarys_server(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("examples_handoff_app", TOP / "examples/handoff/app.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    def run(listener: socket.socket, stop: threading.Event) -> None:
        reference.serve_threads(example.Handler, listener, stop=stop.is_set)

    with serving(serve, tmp_path, run) as server:
        for _ in range(3):
            with server.connect() as sock:
                client = Client(sock)
                for path, status in (("/", 200), ("/none", 404)):
                    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
                    answer = client.answer()
                    assert answer.status == status
                    assert (b"from 127.0.0.1" in answer.body) is (path == "/")
        with server.connect() as sock:
            sock.sendall(f"GET /clock HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            data = b""
            while data.count(b"data: ") < 2:
                piece = sock.recv(65536)
                assert piece
                data += piece
    assert capsys.readouterr().out.count('"GET / HTTP/1.1" 200') == 3


def test_uvicorns_protocol_as_it_is(serve: Serve, tmp_path: Path) -> None:
    """A real server's class, made for connections that asyncio has accepted."""
    from uvicorn.config import Config
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.server import ServerState

    async def application(scope: Any, _: Any, send: Any) -> None:
        body = f"{scope['path']} for {scope['client'][0]}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    def run(listener: socket.socket, stop: threading.Event) -> None:
        async def main() -> None:
            config = Config(application, log_config=None, lifespan="off")
            config.load()
            state = ServerState()
            ended = asyncio.Event()

            async def wait() -> None:
                await asyncio.to_thread(stop.wait)
                ended.set()

            async def closing() -> None:
                for connection in list(state.connections):
                    connection.shutdown()

            waiting = asyncio.create_task(wait())
            await reference.serve_asyncio(
                lambda: H11Protocol(config, state, {}), listener, stop=ended, closing=closing
            )
            await waiting

        asyncio.run(main())

    with serving(serve, tmp_path, run) as server, server.connect() as sock, server.connect() as idle:
        for each in (sock, idle):
            client = Client(each)
            for path in ("/one", "/two"):
                each.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
                assert client.answer().body == f"{path} for 127.0.0.1".encode()
        server.site.kind.close()  # type: ignore[attr-defined]


class Echo(asyncio.Protocol):
    """Says how many bytes it has got so far, until it is told to stop."""

    def __init__(self) -> None:
        self.data = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        if self.data.endswith(b"\r\n\r\n"):
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self.data) + self.data
            )
            self.data = b""


def test_an_asyncio_protocol(serve: Serve, tmp_path: Path) -> None:
    closed: list[bool] = []

    def run(listener: socket.socket, stop: threading.Event) -> None:
        async def main() -> None:
            ended = asyncio.Event()

            async def wait() -> None:
                await asyncio.to_thread(stop.wait)
                ended.set()

            async def closing() -> None:
                closed.append(True)

            waiting = asyncio.create_task(wait())
            await reference.serve_asyncio(Echo, listener, stop=ended, closing=closing)
            await waiting

        asyncio.run(main())

    with serving(serve, tmp_path, run) as server:
        for _ in range(3):
            with server.connect() as sock:
                client = Client(sock)
                for _ in range(2):
                    sock.sendall(GET)
                    assert client.answer().body == GET
        server.site.kind.close()  # type: ignore[attr-defined]
    assert closed == [True]
