"""WebSockets of ASGI applications, with the library websockets' own client at the other end, and with raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from pyttpd.config.shares import HttpSettings, PoolSettings, TenantLogs

from pyttpd_vhost.access import ACCESS_LOGS

from .beside import Asgi, BesideServer, serve_asgi
from .conftest import HOST, Client
from .test_asgi import Serve, answering, log_of, until

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
HANDSHAKE = (
    f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
).encode()


@pytest.fixture
def serve() -> Iterator[Serve]:
    with contextlib.ExitStack() as stack:

        def start(application: Asgi, **options: Any) -> BesideServer:
            server = serve_asgi(application, **options)
            stack.callback(server.stop)
            return server

        yield start


def dial(server: BesideServer, path: str = "/", **more: Any) -> ClientConnection:
    made: ClientConnection = connect(f"ws://{HOST}{path}", sock=server.connect(), ping_interval=None, **more)
    return made


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Send back what comes; HTTP is answered."""
    if scope["type"] == "http":
        await answering()(scope, receive, send)
        return
    assert scope["type"] == "websocket"
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        if message.get("text") == "close":
            await send({"type": "websocket.close", "code": 4321, "reason": "as asked"})
            return
        message["type"] = "websocket.send"
        await send(message)


class Told:
    """An application that keeps what it was told."""

    def __init__(self, headers: Any = (), **accept: Any) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []
        self._accept = {"type": "websocket.accept", "headers": headers, **accept}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        self.scopes.append(scope)
        await receive()
        await send(self._accept)
        while True:
            self.messages.append(await receive())
            if self.messages[-1]["type"] == "websocket.disconnect":
                return


def test_echo(serve: Serve) -> None:
    with dial(serve(echo)) as websocket:
        for message in ("text", "ä€", b"bytes", "", b"", "x" * 100_000, os.urandom(1 << 19)):
            websocket.send(message)
            assert websocket.recv(10) == message
        pong = websocket.ping()
        assert pong.wait(10)


def test_what_came_behind_the_handshake_is_not_lost(serve: Serve) -> None:
    server = serve(echo)
    with server.connect() as sock:
        sock.sendall(HANDSHAKE + frame(1, b"early"))
        data = b""
        while b"early" not in data:
            data += sock.recv(65536)
        assert data.startswith(b"HTTP/1.1 101 ")


def test_a_websocket_on_a_connection_that_has_served_requests(serve: Serve) -> None:
    client = Client(serve(echo).connect())
    client.sock.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    assert client.answer().status == 200
    client.sock.sendall(HANDSHAKE)
    assert client.answer("HEAD").status == 101
    client.sock.close()


def test_the_scope(serve: Serve) -> None:
    told = Told(subprotocol="b", headers=[(b"x-a", b"1")])
    server = serve(told, share={"trusted_proxies": ("127.0.0.1/32",)})
    headers = {"X-Forwarded-For": "192.0.2.9", "X-Forwarded-Proto": "https", "X_Y": "z", "Origin": "http://x"}
    with dial(server, "/a%20b?c=d", additional_headers=headers, subprotocols=["a", "b"]) as websocket:
        assert websocket.subprotocol == "b"
        assert websocket.response is not None
        assert websocket.response.headers["x-a"] == "1"
    (scope,) = told.scopes
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a b", b"/a%20b", b"c=d")
    assert (scope["client"], scope["scheme"]) == (("192.0.2.9", 0), "wss")
    assert scope["subprotocols"] == ["a", "b"]
    names = [name for name, _ in scope["headers"]]
    assert b"origin" in names  # whom to believe is the application's business
    assert b"x_y" not in names


def test_closing_by_either_side(serve: Serve) -> None:
    told = Told()
    server = serve(told)
    with dial(server) as websocket:
        websocket.close(4000, "enough")
    server.wait_for(lambda: told.messages)
    assert told.messages == [{"type": "websocket.disconnect", "code": 4000, "reason": "enough"}]
    server = serve(echo)
    with dial(server) as websocket:
        websocket.send("close")
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(10)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4321, "as asked")
    server.wait_closed()


def refusing(*messages: Any) -> Asgi:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await receive()
        for message in messages:
            if message == "raise":
                raise ValueError("broken on purpose")
            await send(message)

    return app


DENIAL = {"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-why", b"because")]}


@pytest.mark.parametrize(
    ("messages", "status"),
    [
        (({"type": "websocket.close"},), 403),
        ((DENIAL, {"type": "websocket.http.response.body", "body": b"no"}), 401),
        (("raise",), 500),
        ((), 500),
        (({**DENIAL, "status": 101},), 500),
        (({"type": "websocket.accept", "headers": [(b"x", b"a\r\nset-cookie: b")]},), 500),
        (({"type": "websocket.accept", "subprotocol": "a\r\nset-cookie: b"},), 500),
        (({**DENIAL, "headers": [(b"x", b"a\r\nset-cookie: b")]},), 500),
        (({**DENIAL, "headers": [(b"transfer-encoding", b"chunked")]},), 500),
        (({"type": "http.response.start", "status": 200},), 500),
    ],
)
def test_an_application_that_does_not_accept(serve: Serve, messages: Any, status: int) -> None:
    server = serve(refusing(*messages))
    with pytest.raises(InvalidStatus) as refused, dial(server):
        pass
    assert refused.value.response.status_code == status
    assert "set-cookie" not in refused.value.response.headers
    server.wait_closed()
    server.wait_for(lambda: not server.aside.busy)
    assert sum(server.aside.site.stats.responses) == 1
    assert server.aside.site.stats.responses[status // 100] == 1


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ((b"Version: 13", b"Version: 8"), 400),
        ((KEY.encode(), b"short"), 400),
        ((b"Sec-WebSocket-Key", b"X-Key"), 400),
        ((b"Host: ", b"Host: other.example\r\nX: "), 421),
        ((b"Sec-WebSocket-Version", b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\nX"), 400),
    ],
)
def test_a_handshake_that_is_none(serve: Serve, change: tuple[bytes, bytes], status: int) -> None:
    client = Client(serve(echo).connect())
    client.sock.sendall(HANDSHAKE.replace(*change))
    assert client.answer().status == status
    assert client.at_end()
    client.sock.close()


@pytest.mark.parametrize(
    "change",
    [
        (b"Upgrade: WebSocket", b"Upgrade: h2c"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"keep-alive, Upgrade", b"keep-alive"),
    ],
)
def test_what_asks_for_no_websocket_is_a_request(serve: Serve, change: tuple[bytes, bytes]) -> None:
    client = Client(serve(echo).connect())
    client.sock.sendall(HANDSHAKE.replace(*change))
    assert client.answer().body == b"hello"
    client.sock.close()


def test_without_websockets_a_handshake_is_a_request(serve: Serve) -> None:
    client = Client(serve(echo, websockets=False).connect())
    client.sock.sendall(HANDSHAKE)
    assert client.answer().body == b"hello"
    client.sock.close()


def frame(opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True, reserved: int = 0) -> bytes:
    size = len(payload)
    first = (0x80 if fin else 0) | reserved << 4 | opcode
    mask = b"\1\2\3\4" if masked else b""
    length = (
        bytes([size])
        if size < 126
        else b"\x7e" + struct.pack("!H", size)
        if size < 65536
        else b"\x7f" + struct.pack("!Q", size)
    )
    length = bytes([length[0] | (0x80 if masked else 0)]) + length[1:]
    body = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if masked else payload
    return bytes([first]) + length + mask + body


def close_code(sock: socket.socket) -> int | None:
    """Read to the end; return the code of the close frame, None if there was none."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := sock.recv(65536):
            data += more
    data = data.partition(b"\r\n\r\n")[2]
    while data:
        size = data[1] & 127
        if data[0] == 0x88:
            return struct.unpack_from("!H", data, 2)[0] if size >= 2 else 1005
        data = data[2 + size :]
    return None


GARBAGE = {
    "not masked": (frame(1, b"x", masked=False), 1002),
    "reserved bits": (frame(1, b"x", reserved=5), 1002),
    "unknown opcode": (frame(3, b"x"), 1002),
    "unknown control frame": (frame(11, b"x"), 1002),
    "no text": (frame(1, b"\xff\xfe"), 1007),
    "goes on with nothing": (frame(0, b"x"), 1002),
    "text within text": (frame(1, b"x", fin=False) + frame(1, b"y"), 1002),
    "a ping in pieces": (frame(9, b"x", fin=False), 1002),
    "a long ping": (frame(9, b"x" * 126), 1002),
    "larger than allowed": (frame(2, b"x" * 70000), 1009),
    "larger than allowed, in pieces": (frame(2, b"x" * 40000, fin=False) + frame(0, b"x" * 40000), 1009),
    "larger than anything": (b"\x82\xff" + b"\x7f" + b"\xff" * 7 + b"\1\2\3\4", 1009),
    "a bad close code": (frame(8, struct.pack("!H", 999)), 1002),
    "half a close code": (frame(8, b"\3"), 1002),
}


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_ends_a_websocket_and_nothing_else(serve: Serve, case: str) -> None:
    raw, code = GARBAGE[case]
    server = serve(echo, websocket_max_size=65536)
    with dial(server) as other:
        with server.connect() as sock:
            sock.sendall(HANDSHAKE + raw)
            assert close_code(sock) == code
        other.send("still here")
        assert other.recv(10) == "still here"
    server.wait_closed()
    assert "application failed" not in log_of(server).events()


def test_random_frames_leave_nothing(serve: Serve) -> None:
    rng = random.Random(6)
    server = serve(echo, websocket_max_size=65536)
    for _ in range(60):
        with server.connect() as sock:
            raw = HANDSHAKE + b"".join(
                (
                    rng.randbytes(rng.randrange(1, 200)),
                    frame(rng.randrange(16), rng.randbytes(rng.randrange(200)), fin=rng.random() < 0.7),
                    frame(1, b"hello"),
                )[rng.randrange(3)]
                for _ in range(rng.randrange(1, 12))
            )
            with contextlib.suppress(OSError):
                sock.sendall(raw[: rng.randrange(len(HANDSHAKE), len(raw) + 1)])
                sock.shutdown(socket.SHUT_WR)
                close_code(sock)
    server.wait_closed()
    server.wait_for(lambda: not server.aside.busy)
    with dial(server) as websocket:
        websocket.send("x")
        assert websocket.recv(10) == "x"


def test_a_compressed_bomb_is_as_large_as_what_it_becomes(serve: Serve) -> None:
    server = serve(echo, websocket_max_size=65536)
    with dial(server) as websocket:
        assert "permessage-deflate" in websocket.response.headers["Sec-WebSocket-Extensions"]  # type: ignore[union-attr]
        websocket.send(b"\0" * 50_000_000)
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


def test_who_pings_and_reads_nothing_is_read_no_more(serve: Serve) -> None:
    server = serve(echo, share={"http": HttpSettings(write_timeout=1.0)})
    with server.connect() as sock:
        sock.sendall(HANDSHAKE)
        server.wait_for(lambda: server.aside._lines)
        (line,) = server.aside._lines
        ping = frame(9, b"x" * 125) * 512
        sock.settimeout(0.2)
        with contextlib.suppress(OSError):
            for _ in range(1000):  # 64 MB, if somebody takes them
                sock.sendall(ping)
        assert line.stream.size < 1 << 20
        server.wait_for(lambda: line.ended)


def test_who_reads_nothing_holds_up_its_application_and_is_given_up(serve: Serve) -> None:
    sent = [0]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await send({"type": "websocket.accept"})
        while True:
            await send({"type": "websocket.send", "bytes": b"x" * 65536})
            sent[0] += 1

    server = serve(app, share={"http": HttpSettings(write_timeout=1.0)})
    with server.connect() as sock:
        sock.sendall(HANDSHAKE)
        server.wait_closed()
    assert sent[0] < 1000
    assert "application failed" not in log_of(server).events()


def test_who_answers_no_ping_is_given_up(serve: Serve) -> None:
    told = Told()
    server = serve(told, websocket_ping=0.3)
    with server.connect() as sock:
        sock.sendall(HANDSHAKE)
        assert close_code(sock) == 1011
    server.wait_for(lambda: told.messages)


def test_one_on_which_nothing_is_said_is_closed(serve: Serve) -> None:
    server = serve(echo, websocket_idle=0.5)
    with dial(server) as websocket:
        websocket.send("x")
        assert websocket.recv(10) == "x"
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000


def test_an_application_that_never_accepts_is_given_up(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await asyncio.sleep(3600)

    server = serve(app, share={"pool": PoolSettings(slow_request=0.0, request_timeout=0.5)})
    with pytest.raises(InvalidStatus) as refused, dial(server):
        pass
    assert refused.value.response.status_code == 500
    server.wait_for(lambda: not server.aside.busy)
    assert "request timed out" in log_of(server).events()


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_leaves_without_a_word(serve: Serve, how: str) -> None:
    told = Told()
    server = serve(told)
    sock = server.connect()
    sock.sendall(HANDSHAKE)
    sock.recv(10)
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    server.wait_for(lambda: told.messages)
    server.wait_closed()
    assert told.messages[0]["type"] == "websocket.disconnect"


def test_retirement_closes_with_1012_and_nobody_else_notices(serve: Serve) -> None:
    with contextlib.ExitStack() as stack:
        retire(serve, stack)


def retire(serve: Serve, stack: contextlib.ExitStack) -> None:
    go = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await told(scope, receive, send)
            return
        await echo(scope, receive, send)
        await until(go)  # it goes on behind its answer

    told = Told()
    server = serve(app)
    sockets = [stack.enter_context(dial(server)) for _ in range(5)]
    client = Client(server.connect())
    client.sock.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    assert client.answer().status == 200
    server.wait_for(lambda: len(told.scopes) == 5)
    server.aside.leave()
    for websocket in sockets:
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        websocket.close()
    server.wait_for(lambda: [message["code"] for message in told.messages] == [1012] * 5)
    assert server.aside.busy  # the background task
    go.set()
    client.sock.close()
    server.shut_down()


def test_it_is_one_line_of_the_access_log(serve: Serve) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        server = serve_asgi(echo, share={"logs": TenantLogs(access_log="combined")})
        server.aside.site.access = server.site.access = ACCESS_LOGS["combined"]("test", theirs)
        try:
            with dial(server, "/chat") as websocket:
                websocket.send("x")
                websocket.recv(10)
            server.wait_closed()
            ours.settimeout(10)
            line = ours.recv(4096).decode()
        finally:
            server.stop()
        assert ' "GET /chat HTTP/1.1" 101 ' in line
        assert line.count("\n") == 1
