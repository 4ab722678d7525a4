"""The kind asgi over real sockets: what applications may do, and what clients may do to them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyttpd.config.shares import HttpSettings, PoolSettings

from pyttpd_vhost.kinds.asgi.conversation import Conversation
from pyttpd_vhost.kinds.asgi.cycle import Cycle
from pyttpd_vhost.kinds.asgi.eventloop import A_FEW
from pyttpd_vhost.kinds.asgi.line import Line

from .beside import Asgi, BesideServer, serve_asgi
from .conftest import HOST, Client, ListLog

Serve = Callable[..., BesideServer]
GET = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


@pytest.fixture
def serve() -> Iterator[Serve]:
    with contextlib.ExitStack() as stack:

        def start(application: Asgi, **options: Any) -> BesideServer:
            server = serve_asgi(application, **options)
            stack.callback(server.stop)
            return server

        yield start


def ask(server: BesideServer, raw: bytes = GET) -> Client:
    client = Client(server.connect())
    client.sock.sendall(raw)
    return client


def post(body: bytes, *fields: str, path: str = "/") -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {HOST}", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def answering(body: bytes = b"hello", headers: Any = (), status: Any = 200) -> Asgi:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


async def until(event: threading.Event) -> None:
    """Wait for what happens in the test's thread."""
    while not event.is_set():  # noqa: ASYNC110 - it is no event of the loop's
        await asyncio.sleep(0.01)


def log_of(server: BesideServer) -> ListLog:
    log = server.site.log
    assert isinstance(log, ListLog)
    return log


# ---- scopes -------------------------------------------------------------------------------------------------------


def scope_of(server: BesideServer, seen: list[dict[str, Any]], raw: bytes) -> dict[str, Any]:
    client = ask(server, raw)
    assert client.answer().status == 200
    client.sock.close()
    return seen[-1]


@pytest.fixture
def seen() -> list[dict[str, Any]]:
    return []


def keeping(seen: list[dict[str, Any]]) -> Asgi:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        seen.append({**scope, "headers": list(scope["headers"]), "state": dict(scope["state"])})
        scope["headers"].append((b"x-mine", b"1"))
        scope["state"]["mine"] = 1
        scope["path"] = "/changed"
        await answering()(scope, receive, send)

    return app


def test_the_scope_is_the_specifications(serve: Serve, seen: list[dict[str, Any]]) -> None:
    server = serve(keeping(seen))
    raw = f"GET /a%20b/%C3%A4?x=%20 HTTP/1.1\r\nHOST: {HOST}\r\nX-A: 1\r\nx-a: 2\r\n\r\n".encode()
    for _ in range(
        4
    ):  # the third and fourth come from memory, and have nothing of what the application did to others
        with server.connect() as sock:
            sock.sendall(raw)
            assert Client(sock).answer().status == 200
            scope = seen[-1]
            assert scope["client"] == sock.getsockname()
            assert scope["server"] == sock.getpeername()
        assert {
            key: scope[key] for key in scope if key not in ("client", "server", "asgi", "extensions")
        } == {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/a b/ä",
            "raw_path": b"/a%20b/%C3%A4",
            "query_string": b"x=%20",
            "root_path": "",
            "headers": [(b"host", HOST.encode()), (b"x-a", b"1"), (b"x-a", b"2")],
            "state": {},
        }
        assert scope["asgi"]["version"] == "3.0"


@pytest.mark.parametrize(
    "field",
    [
        "X_Forwarded_For: 1.2.3.4",
        "Proxy: http://evil",
        "X-Forwarded-For: 1.2.3.4",
        "Forwarded: for=1.2.3.4",
        "A_b: c",
    ],
)
def test_headers_that_could_pass_for_others_are_not_there(
    serve: Serve, seen: list[dict[str, Any]], field: str
) -> None:
    server = serve(keeping(seen))
    scope = scope_of(server, seen, f"GET / HTTP/1.1\r\nHost: {HOST}\r\n{field}\r\n\r\n".encode())
    assert scope["headers"] == [(b"host", HOST.encode())]
    assert scope["client"][0] == "127.0.0.1"


def test_a_trusted_proxy_is_believed(serve: Serve, seen: list[dict[str, Any]]) -> None:
    server = serve(keeping(seen), share={"trusted_proxies": ("127.0.0.1/32",)})
    fields = "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: x.wild.test:444"
    raw = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n\r\n".encode()
    for _ in range(2):
        scope = scope_of(server, seen, raw)
        assert (scope["client"], scope["scheme"]) == (("192.0.2.7", 0), "https")
        headers = dict(scope["headers"])
        assert headers[b"host"] == b"x.wild.test:444"
        assert headers[b"x-forwarded-for"] == b"192.0.2.7"
    client = ask(server, raw.replace(b"x.wild.test:444", b"evil.example"))
    assert client.answer().status == 421
    client.sock.close()


def test_another_host_on_a_kept_connection_gets_421(serve: Serve) -> None:
    server = serve(answering())
    client = ask(server)
    assert client.answer().status == 200
    client.sock.sendall(GET.replace(HOST.encode(), b"other.example"))
    assert client.answer().status == 421
    assert client.at_end()
    client.sock.close()


# ---- what applications answer -------------------------------------------------------------------------------------

BAD_HEADERS = [
    [(b"x", b"a\r\nset-cookie: b")],
    [(b"x", b"a\nb")],
    [(b"x\r\ny", b"a")],
    [(b"x y", b"a")],
    [(b"", b"a")],
    [(b"x", b"a\0b")],
    [(b"transfer-encoding", b"chunked")],
    [(b"upgrade", b"x")],
    [(b"content-length", b"+5")],
    [(b"content-length", b"5_0")],
    [(b"content-length", b"5"), (b"content-length", b"5")],
    [("x", "y")],
    [(b"x",)],
    [b"xy", 7],
    7,
]


@pytest.mark.parametrize("headers", BAD_HEADERS, ids=repr)
def test_a_bad_header_is_a_500_and_nothing_of_it_is_sent(serve: Serve, headers: Any) -> None:
    server = serve(answering(headers=headers))
    client = ask(server)
    answer = client.answer()
    assert (answer.status, answer.body) == (500, b"500 Internal Server Error\n")
    assert "set-cookie" not in dict(answer.headers)
    client.sock.sendall(GET)
    assert client.answer().status == 500  # the connection is good for more
    client.sock.close()
    assert "application failed" in log_of(server).events()
    assert server.aside.site.stats.errors == 2


@pytest.mark.parametrize("status", [0, 99, 100, 101, 199, 600, 1000, -200, "x", None])
def test_a_bad_status_is_a_500(serve: Serve, status: Any) -> None:
    client = ask(serve(answering(status=status)))
    assert client.answer().status == 500
    client.sock.close()


def test_hop_by_hop_headers_are_the_servers(serve: Serve) -> None:
    server = serve(answering(headers=[(b"connection", b"close"), (b"keep-alive", b"timeout=5")]))
    client = ask(server)
    answer = client.answer()
    assert answer.status == 200
    assert not {"connection", "keep-alive"} & {name.lower() for name, _ in answer.headers}
    client.sock.sendall(GET)
    assert client.answer().status == 200
    client.sock.close()


def messages(*sent: Any) -> Asgi:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        for message in sent:
            if message == "raise":
                raise ValueError("broken on purpose")
            await send(message)

    return app


START = {"type": "http.response.start", "status": 200, "headers": []}
PIECE = {"type": "http.response.body", "body": b"piece", "more_body": True}
LAST = {"type": "http.response.body", "body": b""}

#: What is sent, and the status; None: the body is cut.
WRONG = {
    "nothing": ((), 500),
    "raises": (("raise",), 500),
    "raises behind a head": ((START, "raise"), 500),
    "no head": ((LAST,), 500),
    "a head and no more": ((START,), 500),
    "two heads": ((START, START), 500),
    "raises in the body": ((START, PIECE, "raise"), None),
    "no end": ((START, PIECE), None),
    "a head in the body": ((START, PIECE, START), None),
    "text": ((START, {**LAST, "body": "text"}), 500),
    "not a message": (({"type": "x"},), 500),
    "no type": (({},), 500),
    "trailers that nobody announced": ((START, PIECE, {"type": "http.response.trailers"}), None),
    "a websocket's": (({"type": "websocket.accept"},), 500),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_an_application_does_wrong_harms_nobody_else(serve: Serve, case: str) -> None:
    sent, status = WRONG[case]
    server = serve(messages(*sent))
    client = ask(server)
    if status is None:
        data = b""
        while more := client.sock.recv(65536):
            data += more
        assert data.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"5\r\npiece\r\n" in data
        assert not data.endswith(b"0\r\n\r\n")
    else:
        assert client.answer().status == status
    client.sock.close()
    assert log_of(server).events().count("application failed") == 1


def test_what_comes_behind_the_answer_reaches_nobody(serve: Serve) -> None:
    server = serve(messages(START, LAST, PIECE))
    client = ask(server, GET + GET)
    assert [client.answer().body for _ in range(2)] == [b"", b""]
    client.sock.close()
    server.wait_for(lambda: log_of(server).events().count("application failed") == 2)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
def test_what_is_meant_to_end_a_process_ends_a_request(serve: Serve, error: BaseException) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/":
            raise error
        await answering()(scope, receive, send)

    server = serve(app)
    client = ask(server)
    assert client.answer().status == 500
    client.sock.sendall(GET.replace(b" / ", b" /x "))
    assert client.answer().status == 200
    client.sock.close()


def test_a_task_that_wants_to_end_the_process_ends_itself(serve: Serve) -> None:
    async def rogue() -> None:
        sys.exit(3)

    tasks = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/":
            tasks.append(asyncio.create_task(rogue()))
        if scope["path"] == "/stop":
            asyncio.get_running_loop().stop()
        await answering()(scope, receive, send)

    server = serve(app)
    for path in (b" / ", b" /stop ", b" /x "):
        client = ask(server, GET.replace(b" / ", path))
        assert client.answer().status == 200
        client.sock.close()
    assert "a task of the application's wanted to end the process" in log_of(server).events()
    del tasks[:]


# ---- bodies -------------------------------------------------------------------------------------------------------


async def length(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the body's length."""
    assert scope["type"] == "http"
    count = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("gone")
        count += len(message["body"])
        if not message["more_body"]:
            break
    await answering(b"%d" % count)(scope, receive, send)


def test_bodies_of_all_sizes(serve: Serve) -> None:
    server = serve(length, share={"http": HttpSettings(body_limit=1 << 22)})
    client = Client(server.connect())
    for size in (1, 1000, 16384, 16385, 65536, 65537, 1 << 20, 3 << 20):
        client.sock.sendall(post(b"x" * size))
        assert client.answer().body == b"%d" % size
    client.sock.close()


@pytest.mark.parametrize("at_once", [True, False])
def test_a_body_behind_a_request_that_is_being_answered(serve: Serve, at_once: bool) -> None:
    """More of it comes between the answer to the one and the start of the other."""
    server = serve(length)
    body = bytes(1_000_000)
    for _ in range(10):
        with server.connect() as sock:
            client = Client(sock)
            sender = threading.Thread(
                target=lambda parts, sock=sock: [sock.sendall(part) for part in parts],
                args=([GET + post(body) + GET] if at_once else [GET, post(body), GET],),
            )
            sender.start()
            assert [client.answer().body for _ in range(3)] == [b"0", b"1000000", b"0"]
            sender.join()


def test_a_body_waits_for_who_reads_it(serve: Serve) -> None:
    """A client can't fill our memory with what the application doesn't take."""
    go = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await until(go)
        await length(scope, receive, send)

    server = serve(app, share={"http": HttpSettings(body_limit=1 << 26)})
    client = Client(server.connect())
    size = 1 << 25
    raw = post(b"x" * size)
    sender = threading.Thread(target=client.sock.sendall, args=(raw,))
    sender.start()
    server.wait_for(lambda: server.aside._lines)
    (line,) = server.aside._lines
    server.wait_for(lambda: line.talk.read_paused)  # type: ignore[attr-defined]
    assert len(line.talk._cycle.body) < 1 << 18  # type: ignore[attr-defined]
    assert sender.is_alive()
    go.set()
    assert client.answer().body == b"%d" % size
    sender.join(10)
    client.sock.close()


def test_an_answer_waits_for_who_reads_it(serve: Serve) -> None:
    sent = [0]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({**START, "headers": [(b"content-length", b"%d" % (512 << 16))]})
        for _ in range(512):
            await send({**PIECE, "body": b"x" * 65536})
            sent[0] += 1
        await send(LAST)

    server = serve(app)
    client = ask(server)
    server.wait_for(lambda: server.aside._lines)
    (line,) = server.aside._lines
    server.wait_for(lambda: line._write_paused)
    assert line.stream.size < 1 << 18
    assert sent[0] < 512
    left = 512 << 16
    while left > 0:  # the head's bytes come besides
        left -= len(client.sock.recv(1 << 16))
    client.sock.close()


def test_100_continue_comes_when_the_application_reads(serve: Serve) -> None:
    server = serve(length)
    client = Client(server.connect())
    client.sock.sendall(post(b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 5"))
    assert client.answer().status == 100
    client.sock.sendall(b"12345")
    assert client.answer().body == b"5"
    client.sock.close()


def test_an_application_that_does_not_read_refuses_an_upload(serve: Serve) -> None:
    server = serve(answering())
    client = Client(server.connect())
    client.sock.sendall(post(b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 500000"))
    answer = client.answer()
    assert (answer.status, answer["Connection"]) == (200, "close")
    client.sock.close()


def test_slow_bodies_get_408(serve: Serve) -> None:
    server = serve(length, share={"http": HttpSettings(read_timeout=0.5, body_buffer=0)})
    client = Client(server.connect())
    client.sock.sendall(post(b"x" * 10)[:-1])
    answer = client.answer()
    assert (answer.status, answer["Connection"]) == (408, "close")
    client.sock.close()


@pytest.mark.parametrize("head", [True, False])
def test_a_body_without_end_that_nobody_sees_stops_nobody_else(serve: Serve, head: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        if scope["path"] == "/other":
            await answering()(scope, receive, send)
            return
        await send({**START, "headers": [] if head else [(b"content-length", b"5")]})
        while True:
            await send(PIECE)

    server = serve(app, share={"pool": PoolSettings(slow_request=0.0, request_timeout=0.5)})
    client = ask(server, GET.replace(b"GET", b"HEAD") if head else GET)
    assert client.answer("HEAD" if head else "GET").status == 200
    other = ask(server, GET.replace(b" / ", b" /other "))
    assert other.answer().body == b"hello"
    server.wait_for(lambda: "request timed out" in log_of(server).events())
    for each in (client, other):
        each.sock.close()


def test_a_quick_client_of_an_endless_answer_leaves_others_their_turn(serve: Serve) -> None:
    over = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        if scope["path"] == "/other":
            await answering()(scope, receive, send)
            return
        await send(START)
        while not over.is_set():
            await send({**PIECE, "body": b"x" * 1000})
        await send(LAST)

    def read(sock: socket.socket) -> None:
        while sock.recv(1 << 20):
            pass

    server = serve(app)
    client = ask(server, GET[:-2] + b"Connection: close\r\n\r\n")
    reader = threading.Thread(target=read, args=(client.sock,))
    reader.start()
    other = ask(server, GET.replace(b" / ", b" /other "))
    assert other.answer().body == b"hello"
    over.set()
    reader.join(10)
    for each in (client, other):
        each.sock.close()


def test_who_takes_nothing_is_given_up(serve: Serve) -> None:
    ended = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        try:
            await send(START)
            while True:
                await send({**PIECE, "body": b"x" * 65536})
        except OSError:
            ended.set()
            raise

    server = serve(app, share={"http": HttpSettings(write_timeout=0.5)})
    client = ask(server)
    assert ended.wait(10)
    client.sock.close()
    server.wait_closed()
    assert "application failed" not in log_of(server).events()  # it is the client's fault


# ---- clients that leave -------------------------------------------------------------------------------------------


@pytest.fixture
def uncollected() -> Iterator[Callable[..., int]]:
    """Count the new instances of classes that are in memory, while no garbage collector comes."""
    gc.collect()
    others = gc.get_objects()  # what earlier tests' applications have let hang among them
    known = set(map(id, others))

    def count(*classes: type) -> int:
        return sum(type(each) in classes and id(each) not in known for each in gc.get_objects())

    gc.disable()
    yield count
    gc.enable()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(
    "phase", ["before", "in the body", "while it waits", "while it is answered", "behind it"]
)
def test_a_client_that_leaves_in_any_phase_leaves_nothing(
    serve: Serve, uncollected: Callable[..., int], how: str, phase: str
) -> None:
    told: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        if scope["path"] == "/quick":
            await answering()(scope, receive, send)
            return
        if scope["path"] == "/stream":
            await send(START)
            with contextlib.suppress(OSError):
                while True:
                    await send(PIECE)
                    await asyncio.sleep(0.001)
            told.append("gone")
            return
        while (message := await receive())["type"] != "http.disconnect":
            told.append("body" if message["body"] else "")
        told.append("gone")

    server = serve(app)
    raw = {
        "before": b"GET / HT",
        "in the body": post(b"12345")[:-2],
        "while it waits": GET,
        "while it is answered": GET.replace(b" / ", b" /stream "),
        "behind it": GET.replace(b" / ", b" /quick "),
    }[phase]
    if phase == "in the body":
        raw = post(b"x" * 70000)[:-2]
    client = ask(server, raw)
    if phase == "behind it":
        assert client.answer().status == 200
    if phase in ("in the body", "while it waits"):
        server.wait_for(lambda: told)
    if phase == "while it is answered":
        client.sock.recv(10)
    if how == "reset":
        reset(client.sock)
    else:
        client.sock.close()
    server.wait_closed()
    if phase not in ("before", "behind it"):
        server.wait_for(lambda: "gone" in told)
    server.wait_for(lambda: not server.aside.busy)
    if phase != "in the body":  # an exception refers to the frames that it came through, and they to it
        server.wait_for(lambda: not uncollected(Line, Conversation, Cycle))
    assert "application failed" not in log_of(server).events()


def test_idle_ones_keep_nothing_of_their_requests_and_go_back_whole(
    serve: Serve, uncollected: Callable[..., int]
) -> None:
    """However many there are: more than are given back at a time."""
    server = serve(length)
    clients = [ask(server, post(b"x" * 100_000)) for _ in range(2 * A_FEW + 1)]
    for client in clients:
        assert client.answer().body == b"100000"
    server.wait_for(lambda: not uncollected(Cycle))
    server.wait_for(lambda: not server.aside._lines)
    server.wait_for(lambda: not uncollected(Line, Conversation))
    for client in clients:
        client.sock.sendall(GET)
    for client in clients:
        assert client.answer().body == b"0"
        client.sock.close()


def test_a_client_that_says_all_and_shuts_its_side_is_answered(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        await send(START)
        await send(PIECE)
        await send(LAST)

    server = serve(app)
    client = ask(server)
    client.close()
    assert client.answer().body == b"piece"
    assert client.at_end()
    client.sock.close()


# ---- time ---------------------------------------------------------------------------------------------------------


def test_a_request_that_never_ends_gets_504_and_its_task_is_cancelled(serve: Serve) -> None:
    ended = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    server = serve(app, share={"pool": PoolSettings(slow_request=0.3, request_timeout=0.8)})
    for _ in range(2):
        client = ask(server)
        answer = client.answer()
        assert (answer.status, answer["Connection"]) == (504, "close")
        assert ended.wait(10)
        client.sock.close()
        ended.clear()
    events = log_of(server).events()
    assert events.count("slow request") == 2
    assert events.count("request timed out") == 2
    assert "application failed" not in events
    (traceback, *_) = [
        fields["traceback"] for _, event, fields in log_of(server).lines if event == "slow request"
    ]
    assert "in test_a_request_that_never_ends_gets_504_and_its_task_is_cancelled.<locals>.app" in str(
        traceback
    )


def test_a_stream_that_says_something_now_and_then_may_last(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send(START)
        for _ in range(8):
            await send(PIECE)
            await asyncio.sleep(0.2)
        await send(LAST)

    server = serve(app, share={"pool": PoolSettings(slow_request=0.3, request_timeout=0.8)})
    client = ask(server)
    assert client.answer().body == b"piece" * 8
    client.sock.close()


def test_a_loop_that_stands_still_is_seen_from_outside(serve: Serve) -> None:
    go = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        go.wait(10)
        await answering()(scope, receive, send)

    server = serve(app)
    client = ask(server)
    now = time.monotonic
    server.wait_for(lambda: [server.aside.look(now()), server.aside.full][1])
    assert server.aside.stuck_for(now()) > 0
    go.set()
    assert client.answer().status == 200
    server.wait_for(lambda: [server.aside.look(now()), not server.aside.full][1])
    client.sock.close()


# ---- room ---------------------------------------------------------------------------------------------------------


def test_no_more_than_max_concurrency_at_a_time_and_the_others_wait(serve: Serve) -> None:
    running, most, go = [0], [0], threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        running[0] += 1
        most[0] = max(most[0], running[0])
        await until(go)
        running[0] -= 1
        await answering()(scope, receive, send)

    server = serve(app, max_concurrency=3)
    clients = [ask(server) for _ in range(8)]
    server.wait_for(lambda: server.aside.look(time.monotonic()).waiting == 5)
    server.wait_for(lambda: server.aside.full)
    assert server.aside.excess(8) > 0
    clients.pop().sock.close()
    go.set()
    for client in clients:
        assert client.answer().status == 200
        client.sock.close()
    assert most[0] == 3
    server.wait_closed()
    server.wait_for(lambda: not server.aside.full)
    assert server.credits > 0


def test_who_finds_no_room_in_time_gets_503(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyttpd_vhost.kinds.asgi.conversation.ROOM_TIMEOUT", 0.3)
    go = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await until(go)
        await answering()(scope, receive, send)

    server = serve(app, max_concurrency=1)
    first, second = ask(server), Client(server.connect())
    server.wait_for(lambda: server.aside.full)
    second.sock.sendall(GET)
    answer = second.answer()
    assert (answer.status, answer["Connection"]) == (503, "close")
    go.set()
    assert first.answer().status == 200
    first.sock.close()
    second.sock.close()


# ---- lifespan -----------------------------------------------------------------------------------------------------


def test_lifespan_state_and_shutdown(serve: Serve) -> None:
    told: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            scope["state"]["name"] = "of the lifespan"
            while (message := await receive())["type"] != "lifespan.shutdown":
                told.append(message["type"])
                await send({"type": "lifespan.startup.complete"})
            told.append("lifespan.shutdown")
            await send({"type": "lifespan.shutdown.complete"})
            return
        await answering(scope["state"]["name"].encode())(scope, receive, send)

    server = serve(app)
    client = ask(server)
    assert client.answer().body == b"of the lifespan"
    client.sock.close()
    server.shut_down()
    assert told == ["lifespan.startup", "lifespan.shutdown"]


async def failing(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "lifespan.startup.failed", "message": "no database"})


async def raising(scope: Any, receive: Any, send: Any) -> None:
    raise ValueError("broken on purpose")


async def lengthy(scope: Any, receive: Any, send: Any) -> None:
    """As Starlette does it."""
    message = 'Traceback (most recent call last):\n  File "x.py", line 1\nOSError: no database\n'
    await send({"type": "lifespan.startup.failed", "message": message})


@pytest.mark.parametrize(
    ("app", "lifespan", "reason"),
    [
        (failing, "auto", "no database"),
        (failing, "on", "no database"),
        (lengthy, "auto", "OSError: no database"),
        (raising, "on", "ValueError: broken on purpose"),
        (raising, "auto", None),
        (failing, "off", None),
    ],
)
def test_a_startup_that_fails(serve: Serve, app: Asgi, lifespan: str, reason: str | None) -> None:
    server = serve(app, lifespan=lifespan)
    if reason is None:
        assert server.startup_error is None
    else:
        assert str(server.startup_error) == reason
        assert ("Traceback" in "".join(getattr(server.startup_error, "__notes__", ()))) is (
            app is not failing
        )


def test_a_startup_that_takes_too_long_fails(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyttpd_vhost.kinds.asgi.eventloop.STARTUP_TIMEOUT", 0.2)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(3600)

    assert "lifespan.startup takes more than" in str(serve(app).startup_error)


# ---- retirement ---------------------------------------------------------------------------------------------------


def test_leaving_gives_idle_ones_back_and_finishes_what_goes_on(serve: Serve) -> None:
    go = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        if scope["path"] == "/slow":
            await until(go)
        await answering()(scope, receive, send)

    server = serve(app)
    idle, busy = ask(server), ask(server, GET.replace(b" / ", b" /slow "))
    assert idle.answer().status == 200
    server.wait_for(lambda: len(server.aside._lines) == 2)
    server.aside.leave()
    server.site.retiring = server.aside.site.retiring = True
    server.wait_for(lambda: len(server.aside._lines) == 1)
    go.set()
    assert busy.answer().status == 200
    idle.sock.close()
    busy.sock.close()
    server.shut_down()


def test_what_has_no_end_is_cut_within_grace(serve: Serve) -> None:
    cancelled = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send(START)
        try:
            while True:
                await send(PIECE)
                await asyncio.sleep(0.05)
        finally:
            cancelled.set()

    server = serve(app, share={"grace": 1.0})
    client = ask(server)
    client.sock.recv(100)
    server.shut_down()
    assert cancelled.is_set()
    client.sock.close()


def test_what_can_not_be_cancelled_does_not_keep_the_application_from_its_shutdown(serve: Serve) -> None:
    told: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            told.append(message["type"])
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send(START)
        await send(PIECE)
        while not told:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    server = serve(app, share={"grace": 0.8})
    client = ask(server)
    client.sock.recv(100)
    server.shut_down()
    assert told == ["lifespan.shutdown"]
    client.sock.close()


def test_a_websocket_that_comes_while_the_worker_leaves_is_for_another_one(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"  # and nothing else
        await answering()(scope, receive, send)

    server = serve(app)
    server.aside.leaving = True
    handshake = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n"
    client = ask(server, handshake)
    answer = client.answer()
    assert (answer.status, answer["Connection"]) == (503, "close")
    client.sock.close()


# ---- what others pay ----------------------------------------------------------------------------------------------


def test_a_vhost_of_another_kind_imports_nothing_of_it() -> None:
    program = """
import sys
from pyttpd_vhost import prototype, site, worker
from pyttpd_vhost.kinds import static, wsgi
sys.exit(any(name in sys.modules for name in ("asyncio", "uvicorn", "websockets")))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
