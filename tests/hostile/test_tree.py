"""A hostile tenant in a plain tree: what it tries is refused, its neighbour doesn't notice, it goes on serving.

What it finds out is left in build/, a column each for the matrix in SECURITY.md (matrix.py says how).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from hostile import attempts
from hostile.attempts import ATTEMPTS
from hostile.stage import Outcomes
from support.tree import Tree

COLUMNS = Path(__file__).parents[2] / "build"
HOST = "evil.localhost"
TENANTS = """
[vhost.evil]
hosts = ["evil.localhost"]
uid = 20001
kind = "wsgi"
root = "evil"
application = "attempts:application"
pool = { max_workers = 1 }

[vhost.neighbour]
hosts = ["neighbour.localhost"]
uid = 20002
kind = "static"
root = "neighbour"
"""
FILES = {
    "evil/attempts.py": Path(attempts.__file__).read_text(encoding="utf-8"),
    "neighbour/index.html": "<!doctype html><title>neighbour</title>\n",
    "neighbour/secret": "the neighbour's",
}


@pytest.fixture
def target() -> Iterator[tuple[str, int]]:
    """Somebody on this machine's loopback who must not be reached: TCP is accepted, UDP echoed."""
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        address: tuple[str, int] = tcp.getsockname()
        udp.bind(address)

        def echo() -> None:
            while data := udp.recvfrom(64):
                if data[0] == b"end":
                    return
                udp.sendto(*data)

        thread = threading.Thread(target=echo)
        thread.start()
        yield address
        tcp.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has come
            tcp.accept()
        udp.sendto(b"end", address)
        thread.join()


def assail(request: Callable[..., bytes], plan: dict[str, object]) -> Outcomes:
    """Have the tenant behind `request(method, path, body)` try everything; return what it says came of it.

    An attempt that turns the connection round takes its answer along: the outcome is asked for afterwards.
    """
    body = json.dumps(plan).encode()
    request("POST", "/attempts", body)
    for attempt in ATTEMPTS.values():
        if attempt.own_connection:
            with contextlib.suppress(OSError, http.client.HTTPException):
                request("POST", f"/attempt?{quote(attempt.name)}", body)
    outcomes: Outcomes = json.loads(request("GET", "/outcome", b""))
    return outcomes


@pytest.mark.parametrize(
    "column",
    [
        pytest.param("root", marks=pytest.mark.root),
        pytest.param("root-database", marks=pytest.mark.root),
        "ordinary-user",
    ],
)
def test_a_hostile_tenant(plant: Callable[..., Tree], target: tuple[str, int], column: str) -> None:
    ordinary = column == "ordinary-user"
    tenants = TENANTS
    if column == "root-database":
        # The port that it is allowed is the target's; the address is another.
        tenants = TENANTS.replace("uid = 20001", f'uid = 20001\nallow = ["127.0.0.2:{target[1]}"]')
    tree = plant(tenants=tenants, files=FILES, hosts=(HOST, "neighbour.localhost"), ordinary=ordinary)
    run = tree.folder / "run"

    def request(method: str, path: str, body: bytes) -> bytes:
        return tree.request(method, HOST, path, body).body

    outcomes = assail(
        request,
        {
            "target": target,
            "sibling": tree.pids("vhost", "evil")[0],
            "stranger": tree.pids("umaster")[0],
            "files": [str(tree.folder / name) for name in ("neighbour/secret", "pyttpd.toml", "log")],
            "frozen": [str(tree.folder / "evil"), "/etc", "/usr"],
            "sockets": [f"{run}/{name}/sock" for name in ("init", "route")],
            "channels": [f"{run}/{name}" for name in ("init", "master", "route", "vhost")],
        },
    )
    # Unprivileged runs of the tests needn't be able to write there.
    with contextlib.suppress(OSError):
        COLUMNS.mkdir(exist_ok=True)
        (COLUMNS / f"hostile-plain-{column}.json").write_text(
            json.dumps(outcomes, indent=1), encoding="utf-8"
        )
    assert {name: each["detail"] for name, each in outcomes.items() if each["outcome"] == "SUCCEEDED"} == {}
    unknown = {"listening: connect", "listening: sendto MSG_FASTOPEN"}  # a worker has none
    tried = {name for name, each in outcomes.items() if each["outcome"] == "refused"}
    assert {each.name for each in ATTEMPTS.values() if each.network} - unknown <= tried
    assert b"neighbour" in tree.get("neighbour.localhost").body
    assert tree.get(HOST, "/outcome").status == 200
