"""ASGI in a whole tree: FastAPI and Starlette as they are, beside WSGI and files; retirement; what goes wrong."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from support.applications import blocks, environment
from support.tree import ANSWER_WITHIN, Tree

Plant = Callable[..., Tree]
HOST = "live.localhost"

FASTAPI = """
import asyncio, contextlib, hashlib, os
from fastapi import BackgroundTasks, Cookie, FastAPI, Request, UploadFile, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

@contextlib.asynccontextmanager
async def lifespan(app):
    yield {"greeting": "from the lifespan"}
    print("lifespan is over", flush=True)

app = FastAPI(lifespan=lifespan)

class Item(BaseModel):
    name: str
    price: float

@app.get("/state")
async def state(request: Request):
    return {"greeting": request.state.greeting, "client": request.client.host, "url": str(request.url)}

@app.get("/sync")
def sync():
    return {"in": "a thread"}

@app.post("/item")
async def item(item: Item):
    return {"sum": item.price * 2, "name": item.name}

@app.post("/upload")
async def upload(file: UploadFile):
    content = await file.read()
    return {"name": file.filename, "sha256": hashlib.sha256(content).hexdigest()}

@app.get("/events")
async def events():
    async def produce():
        for number in range(3):
            yield f"data: {number}\\n\\n"
            await asyncio.sleep(0.05)
    return StreamingResponse(produce(), media_type="text/event-stream")

@app.get("/background")
async def background(tasks: BackgroundTasks):
    tasks.add_task(print, "said in the background", flush=True)
    return {}

@app.get("/boom")
async def boom():
    raise RuntimeError("boom in an endpoint")

@app.websocket("/chat/{room}")
async def chat(websocket: WebSocket, room: str, name: str = Cookie("nobody")):
    await websocket.accept()
    await websocket.send_json({"room": room, "name": name, "pid": os.getpid()})
    async for text in websocket.iter_text():
        await websocket.send_text(text.upper())
"""
STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Mount, Route

async def where(request):
    return JSONResponse({"path": request.scope["path"], "root_path": request.scope["root_path"],
                         "link": str(request.url_for("where", name="x")), "name": request.path_params["name"]})

async def file(request):
    return FileResponse(__file__)

app = Starlette(routes=[Route("/where/{name}", where, name="where"), Route("/file", file)])
"""
WSGI = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"wsgi {environ['SCRIPT_NAME']} {environ['PATH_INFO']}".encode()]
"""
TENANT = f"""
[vhost.live]
hosts = ["{HOST}"]
uid = 20001
root = "application"
virtualenv = "%s"
[[vhost.live.mount]]
path = "/"
kind = "asgi"
application = "fast:app"
[[vhost.live.mount]]
path = "/star"
kind = "asgi"
application = "star:app"
[[vhost.live.mount]]
path = "/old"
kind = "wsgi"
application = "old:application"
[[vhost.live.mount]]
path = "/files"
kind = "static"
root = "application/files"
"""
FILES = {
    "application/fast.py": FASTAPI,
    "application/star.py": STARLETTE,
    "application/old.py": WSGI,
    "application/files/a.txt": "a file\n",
}


@contextlib.contextmanager
def dialled(tree: Tree, path: str, **more: Any) -> Iterator[ClientConnection]:
    with connect(f"ws://{HOST}{path}", sock=tree.connect(), ping_interval=None, **more) as websocket:
        yield websocket


def ask(connection: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
    connection.request("GET", path, headers={"Host": HOST})
    response = connection.getresponse()
    return response.status, response.read()


@pytest.mark.root
@pytest.mark.program("setpriv")
def test_frameworks_and_three_kinds_in_one_vhost(plant: Plant) -> None:
    tree = plant(tenants=TENANT % environment(), hosts=(HOST,), files=FILES)

    def get(path: str) -> Any:
        answer = tree.get(HOST, path)
        assert answer.status == 200, (path, answer)
        return json.loads(answer.body)

    assert get("/state") == {
        "greeting": "from the lifespan",
        "client": "127.0.0.1",
        "url": f"http://{HOST}/state",
    }
    assert get("/sync") == {"in": "a thread"}
    headers = {"Content-Type": "application/json"}
    answer = tree.request("POST", HOST, "/item", json.dumps({"name": "tea", "price": 1.5}).encode(), headers)
    assert json.loads(answer.body) == {"sum": 3.0, "name": "tea"}
    assert tree.request("POST", HOST, "/item", b'{"name": 1}', headers).status == 422
    assert tree.get(HOST, "/docs").status == 200

    content = os.urandom(3_000_000)
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n--b--\r\n"
    )
    answer = tree.request("POST", HOST, "/upload", body, {"Content-Type": "multipart/form-data; boundary=b"})
    assert json.loads(answer.body) == {"name": "a.bin", "sha256": hashlib.sha256(content).hexdigest()}

    answer = tree.get(HOST, "/events")
    assert (answer.headers["content-type"], answer.body) == (
        "text/event-stream; charset=utf-8",
        b"data: 0\n\ndata: 1\n\ndata: 2\n\n",
    )
    assert get("/background") == {}
    tree.wait_for(lambda: "said in the background" in tree.log())

    with dialled(tree, "/chat/tea?x=1", additional_headers={"Cookie": "name=Alice"}) as websocket:
        hello = json.loads(websocket.recv(10))
        assert (hello["room"], hello["name"]) == ("tea", "Alice")
        for text in ("hello", "ä" * 1000):
            websocket.send(text)
            assert websocket.recv(10) == text.upper()

    # Starlette's links begin with the mount
    assert get("/star/where/it%20is") == {
        "path": "/star/where/it is",
        "root_path": "/star",
        "link": f"http://{HOST}/star/where/x",
        "name": "it is",
    }
    assert tree.get(HOST, "/star/file").body == STARLETTE.encode()
    assert tree.get(HOST, "/star/nothing").status == 404

    # one connection, all kinds, to and fro
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", tree.port, timeout=ANSWER_WITHIN)
    ) as kept:
        kept.connect()
        sock = kept.sock
        for _ in range(3):
            assert ask(kept, "/sync") == (200, b'{"in":"a thread"}')
            assert ask(kept, "/old/x") == (200, b"wsgi /old /x")
            assert ask(kept, "/star/where/y")[0] == 200
            assert ask(kept, "/files/a.txt") == (200, b"a file\n")
            assert ask(kept, "/nowhere") == (404, b'{"detail":"Not Found"}')
        assert kept.sock is sock

    assert tree.get(HOST, "/boom").status == 500
    tree.wait_for(lambda: "RuntimeError: boom in an endpoint" in tree.log())
    tree.expect("output", "RuntimeError")
    for code in ("1xx", "5xx"):
        key = ("pyttpd_vhost_requests_total", ("code", code), ("vhost", "live"))
        tree.wait_for(lambda key=key: tree.samples("vhost", "live")[key] == 1)  # type: ignore[misc]


@pytest.mark.root
@pytest.mark.program("setpriv")
def test_the_document(plant: Plant) -> None:
    (configuration,) = blocks("configuration", "asgi.md")
    (code,) = blocks("application", "asgi.md")
    text = configuration.replace("/srv/chat/.venv", str(environment())).replace("/srv/chat", "application")
    tree = plant(tenants=text, hosts=("chat.example",), files={"application/chat.py": code})
    assert json.loads(tree.get("chat.example").body) == {"hello": "world"}
    with connect("ws://chat.example/echo", sock=tree.connect(), ping_interval=None) as websocket:
        websocket.send("echo")
        assert websocket.recv(10) == "echo"


PLAIN = """
import asyncio, os, time

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] == "lifespan.startup":
            if os.path.exists("broken"):
                await send({"type": "lifespan.startup.failed", "message": "no database today"})
                return
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": str(os.getpid())})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    if scope["path"] == "/block":
        time.sleep(60)
    body = str(os.getpid()).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""
PLAIN_TENANT = f"""
[vhost.live]
hosts = ["{HOST}"]
uid = 20001
kind = "asgi"
root = "application"
application = "app:app"
[vhost.live.pool]
"""


def test_workers_that_retire_close_websockets_with_1012_and_nobody_else_notices(plant: Plant) -> None:
    tree = plant(
        tenants=PLAIN_TENANT + "max_workers = 2\nmax_requests = 300\n",
        hosts=(HOST,),
        files={"application/app.py": PLAIN},
    )
    over = threading.Event()
    faults: list[str] = []
    pids: set[bytes] = set()

    def client() -> None:
        kept = http.client.HTTPConnection("127.0.0.1", tree.port, timeout=ANSWER_WITHIN)
        try:
            while not over.is_set():
                status, body = ask(kept, "/")
                if status != 200:
                    faults.append(f"{status} {body!r}")
                pids.add(body)
        except Exception as fault:
            faults.append(repr(fault))
        finally:
            kept.close()

    clients = [threading.Thread(target=client) for _ in range(4)]
    for each in clients:
        each.start()
    try:
        codes = []
        for _ in range(4):
            with dialled(tree, "/") as websocket:
                assert str(websocket.recv(10)).isdigit()
                with pytest.raises(ConnectionClosed) as closed:
                    websocket.recv(60)
                assert closed.value.rcvd is not None
                codes.append(closed.value.rcvd.code)
        assert codes == [1012] * 4
    finally:
        over.set()
        for each in clients:
            each.join(ANSWER_WITHIN)
    assert not faults
    assert len(pids) > 3


def test_a_loop_that_hangs_is_found_and_its_worker_replaced(plant: Plant) -> None:
    tree = plant(
        tenants=PLAIN_TENANT + "max_workers = 1\nslow_request = 0.5\nrequest_timeout = 2\n",
        hosts=(HOST,),
        files={"application/app.py": PLAIN},
    )
    first = tree.get(HOST).body
    # who says so within its first moments isn't believed (supervisor.py)
    began = time.monotonic()
    tree.wait_for(lambda: time.monotonic() - began > 2)
    assert tree.get(HOST, "/block").status == 504
    tree.wait_for(lambda: tree.get(HOST).body not in (first, b"503 Service Unavailable\n"))
    log = tree.log()
    assert "the event loop stands still" in log
    assert re.search(r'app\.py", line [0-9]+, in app', log)
    assert "worker leaves" in log
    tree.expect("event loop stands still", "worker leaves")


def test_an_application_that_does_not_start_is_told_of_like_one_that_does_not_load(plant: Plant) -> None:
    good = PLAIN_TENANT.replace("vhost.live", "vhost.good").replace(HOST, "good.localhost")
    tree = plant(
        tenants=PLAIN_TENANT + good.replace("20001", "20002").replace('"application"', '"good"'),
        hosts=("good.localhost",),
        files={"application/app.py": PLAIN, "application/broken": "", "good/app.py": PLAIN},
    )
    tree.wait_for(lambda: tree.get(HOST).status == 503)
    tree.wait_for(lambda: "no database today" in tree.log())
    assert tree.samples("vhost", "live")["pyttpd_vhost_application_failed", ("vhost", "live")] == 1
    tree.expect("no database today", "application does not load", "worker ended", "StartupError")


def test_a_client_that_is_gone_is_gone(plant: Plant) -> None:
    """Half a handshake, half a frame, a reset: nothing of them stays."""
    tree = plant(tenants=PLAIN_TENANT, hosts=(HOST,), files={"application/app.py": PLAIN})
    handshake = (
        f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
    for raw in (handshake[:-3], handshake, handshake + b"\x81", handshake + b"\x81\xfe\xff\xff1234"):
        for how in (socket.SHUT_WR, None):
            with tree.connect() as sock:
                sock.sendall(raw)
                if how is not None:
                    sock.shutdown(how)
                    with contextlib.suppress(ConnectionResetError):
                        while sock.recv(65536):
                            pass
    assert tree.get(HOST).status == 200
    tree.wait_for(lambda: tree.samples("vhost", "live")["pyttpd_vhost_connections", ("vhost", "live")] == 0)
