"""`pyttpd reload` on a whole tree: what changes, what doesn't, and what clients notice of it, which is nothing."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Callable

import pytest

from support.leaks import state
from support.tree import APPLICATION, Tree, free_port, reload

Plant = Callable[..., Tree]
BOTH = pytest.mark.parametrize(
    "ordinary",
    [pytest.param(False, id="as-root", marks=pytest.mark.root), pytest.param(True, id="ordinary-user")],
)


def change(tree: Tree, old: str, new: str) -> None:
    file = tree.folder / "pyttpd.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def pids(tree: Tree) -> dict[str, list[int]]:
    return {name: tree.pids("vhost", name) for name in ("static", "wsgi")}


@BOTH
def test_only_what_has_changed_is_touched(plant: Plant, ordinary: bool) -> None:
    tree = plant(ordinary=ordinary)
    before = pids(tree)
    assert reload(tree) == (0, tree_says(1))
    change(tree, 'hosts = ["wsgi.localhost"]', 'hosts = ["wsgi.localhost", "new.localhost"]')
    status, text = reload(tree, "--dry-run")
    assert (status, tree.get("new.localhost").status) == (0, 421)
    assert "~ [vhost.wsgi]: new workers\n    hosts: wsgi.localhost -> wsgi.localhost, new.localhost\n" in text
    status, text = reload(tree)
    assert status == 0, text
    assert "generation 2 is in force" in text
    assert tree.get("new.localhost", "/x").body == b"/x"
    tree.wait_for(lambda: len(set(pids(tree)["wsgi"]) & set(before["wsgi"])) == 1)  # the keeper
    assert pids(tree)["static"] == before["static"]
    assert tree.samples("master")["pyttpd_master_generation",] == 2
    assert not [key for key in tree.samples("master") if key[0] == "pyttpd_master_waiting_seconds"]


def tree_says(generation: int) -> str:
    return f"nothing has changed: generation {generation} is in force\nreading the configuration\n"


@BOTH
def test_a_bad_configuration_changes_nothing_and_all_errors_are_told(plant: Plant, ordinary: bool) -> None:
    tree = plant(ordinary=ordinary)
    tree.expect("reload refused")
    good = (tree.folder / "pyttpd.toml").read_text()
    change(tree, "uid = 20001", "uid = 20002\nrooot = 3")
    for arguments in ((), ("--dry-run",)):
        status, text = reload(tree, *arguments)
        assert status == 1
        assert "uid" in text and "rooot" in text
        assert text.splitlines()[-1] == "nothing has changed" or "nothing has changed" in text
    (tree.folder / "pyttpd.toml").write_text(good)
    assert reload(tree) == (0, tree_says(1))


@BOTH
def test_a_listener_moves_while_clients_wait_in_its_queue(plant: Plant, ordinary: bool) -> None:
    tree = plant(ordinary=ordinary)
    old, new = tree.port, free_port()
    taken = socket.create_server(("127.0.0.1", 0))
    tree.expect("reload refused")
    with taken:
        change(tree, f"127.0.0.1:{old}", f"127.0.0.1:{taken.getsockname()[1]}")
        status, text = reload(tree)
        assert (status, "Address already in use" in text) == (1, True)
        assert tree.get("static.localhost").status == 200
        change(tree, f"127.0.0.1:{taken.getsockname()[1]}", f"127.0.0.1:{new}")
    with tree.connect() as waits:  # and says nothing yet
        status, text = reload(tree)
        assert (status, "a new port" in text) == (0, True), text
        tree.port = new
        tree.wait_for(lambda: tree.get("static.localhost").status == 200)
        waits.sendall(b"GET / HTTP/1.1\r\nHost: static.localhost\r\nConnection: close\r\n\r\n")
        assert waits.recv(4096).startswith(b"HTTP/1.1 200")

    def is_closed() -> bool:
        with socket.socket() as client:
            client.settimeout(10)
            return client.connect_ex(("127.0.0.1", old)) == errno.ECONNREFUSED

    tree.wait_for(is_closed)


MORE = """
[listen.more]
address = "127.0.0.1:{port}"
[vhost.more]
hosts = ["more.localhost"]
uid = 20003
kind = "wsgi"
root = "application"
application = "app:application"
"""


@BOTH
def test_parts_come_and_go(plant: Plant, ordinary: bool) -> None:
    """A tenant and a listener that are new are started, and end when their tables are gone; twice, to see what is
    left.
    """
    tree = plant(ordinary=ordinary)
    before = pids(tree)
    config = tree.folder / "pyttpd.toml"
    without, first = config.read_text(), tree.port
    for _ in range(2):
        port = free_port()
        config.write_text(without + MORE.format(port=port))
        status, text = reload(tree)
        assert status == 0, text
        assert "+ [vhost.more]: its processes are started" in text
        assert "+ [listen.more]: its process is started; a new port" in text
        for tree.port in (first, port):
            assert tree.get("more.localhost", "/x").body == b"/x"
            assert tree.get("wsgi.localhost", "/y").body == b"/y"
        role = tree.pids("umaster")[-1]
        os.kill(role, signal.SIGKILL)  # who comes after it knows the new ones as well
        tree.expect("died")
        tree.wait_for(lambda: tree.get("more.localhost", "/x").body == b"/x")
        tree.port = first
        config.write_text(without)
        status, text = reload(tree)
        assert status == 0, text
        tree.wait_for(lambda: not tree.pids("vhost", "more") and not tree.pids("listener", "more"))
        assert tree.get("more.localhost").status == 421
        assert not list((tree.folder / "run/health").glob("*more*"))
    assert pids(tree) == before


@BOTH
def test_a_tenant_that_moves_gets_new_processes_before_the_old_ones_end(plant: Plant, ordinary: bool) -> None:
    """Its root, and as root also its uid: what a process can't be given later."""
    tree = plant(
        ordinary=ordinary, files={"elsewhere/app.py": APPLICATION.replace('environ["PATH_INFO"]', '"new"')}
    )
    before = pids(tree)
    change(tree, 'root = "application"', 'root = "elsewhere"')
    change(tree, "uid = 20002", "uid = 20005")
    status, text = reload(tree)
    assert status == 0, text
    assert "all its processes are started anew" in text
    tree.wait_for(lambda: not set(pids(tree)["wsgi"]) & set(before["wsgi"]))
    assert tree.get("wsgi.localhost").body == b"new"
    assert pids(tree)["static"] == before["static"]
    assert reload(tree) == (0, tree_says(2))


@pytest.mark.root
def test_a_vhosts_code_anew(plant: Plant) -> None:
    tree = plant()
    tree.expect("application", "given up")
    before = pids(tree)
    application = tree.folder / "application/app.py"
    application.write_text("raise RuntimeError('not this time')\n")
    status, text = reload(tree, "wsgi")
    assert status == 1
    assert "not this time" in text
    assert "what served before goes on" in text
    assert tree.get("wsgi.localhost", "/x").body == b"/x"
    application.write_text(APPLICATION.replace('environ["PATH_INFO"]', '"new"'))
    status, text = reload(tree, "wsgi")
    assert (status, "serves with new processes" in text) == (0, True), text
    assert tree.get("wsgi.localhost").body == b"new"
    assert pids(tree)["static"] == before["static"]
    assert reload(tree, "nobody")[0] == 1
    assert reload(tree, "No Name")[0] == 2


@pytest.mark.root
def test_only_the_successor_says_that_it_serves(plant: Plant) -> None:
    """While it still loads its application, its predecessor has the new share as well, and serves by the old."""
    tree = plant()
    tree.expect("application", "given up")
    application = tree.folder / "application/app.py"
    # Longer than a supervisor goes without looking how it stands.
    application.write_text("import time\ntime.sleep(3)\nraise RuntimeError('not this time')\n")
    change(tree, "uid = 20002", "uid = 20002\npool = { max_requests = 1_000_000 }")
    status, text = reload(tree)
    assert status == 1, text
    assert "vhost wsgi: RuntimeError: not this time; what served before goes on" in text
    assert tree.get("wsgi.localhost", "/x").body == b"/x"
    application.write_text(APPLICATION)
    status, text = reload(tree, "wsgi")
    assert (status, "serves with new processes" in text) == (0, True), text


@pytest.mark.root
def test_master_is_killed_and_a_signal_reloads(plant: Plant) -> None:
    """What is in force is what master's keeper holds, whatever is in the files by then."""
    tree = plant()
    tree.expect("died")
    change(tree, "[vhost.static]", "[vhost.renamed]")
    keeper, role = sorted(tree.pids("master"), key=lambda pid: os.getpgid(pid) != pid)
    os.kill(role, signal.SIGKILL)
    tree.wait_for(lambda: tree.pids("master") != [keeper, role] and len(tree.pids("master")) == 2)
    tree.wait_for(lambda: tree.samples("master")["pyttpd_master_generation",] == 1)
    assert tree.get("static.localhost").status == 200


#: Answers with the version of its code, and which of its processes that is.
VERSIONED = """
import os
VERSION = {version}
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{{VERSION}} {{os.environ.get('COLOUR', '-')}}".encode()]
"""
WSGI = 'kind = "wsgi"'
GET = b"GET / HTTP/1.1\r\nHost: wsgi.localhost\r\nConnection: close\r\n\r\n"


def answer(tree: Tree) -> bytes:
    with tree.connect() as client:
        client.sendall(GET)
        text = b""
        while data := client.recv(65_536):
            text += data
    head, _, body = text.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), text[:200]
    return body


def ask_on(tree: Tree, until: threading.Event, seen: list[bytes]) -> None:
    while not until.is_set():
        seen.append(answer(tree))


@BOTH
def test_who_asks_after_a_reload_was_told_to_be_done_meets_new_code_only(
    plant: Plant, ordinary: bool
) -> None:
    """Of one vhost, and of the configuration, while others ask without a pause; many of both, one after the other."""
    tree = plant(ordinary=ordinary, files={"application/app.py": VERSIONED.format(version=0)})
    config = tree.folder / "pyttpd.toml"
    first = config.read_text()
    done, seen = threading.Event(), list[bytes]()
    clients = [threading.Thread(target=ask_on, args=(tree, done, seen)) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        for version in range(1, 5):
            (tree.folder / "application/app.py").write_text(VERSIONED.format(version=version))
            status, text = reload(tree, "wsgi")
            assert status == 0, text
            colour = f"colour{version - 1}" if version > 1 else "-"
            assert {answer(tree) for _ in range(25)} == {f"{version} {colour}".encode()}
            config.write_text(first.replace(WSGI, f'{WSGI}\nenv = {{ COLOUR = "colour{version}" }}'))
            status, text = reload(tree)
            assert status == 0, text
            assert {answer(tree) for _ in range(25)} == {f"{version} colour{version}".encode()}
    finally:
        done.set()
        for client in clients:
            client.join()
    assert len(seen) > 100


@BOTH
def test_a_reload_right_after_master_was_replaced_tells_the_truth(plant: Plant, ordinary: bool) -> None:
    """Everybody is only coming back to it: what it calls in force is."""
    tree = plant(ordinary=ordinary, files={"application/app.py": VERSIONED.format(version=0)})
    tree.expect("died", "reload refused")
    config = tree.folder / "pyttpd.toml"
    first = config.read_text()
    for number in range(1, 6):
        config.write_text(first.replace(WSGI, f'{WSGI}\nenv = {{ COLOUR = "colour{number}" }}'))
        _, role = sorted(tree.pids("master"), key=lambda pid: os.getpgid(pid) != pid)
        os.kill(role, signal.SIGKILL)
        tree.wait_for(lambda role=role: state(role) in "XZ")  # type: ignore[misc]
        status, text = 3, ""
        while status == 3:
            status, text = reload(tree)
        assert status == 0, text
        assert f"generation {number + 1} is in force" in text
        assert {answer(tree) for _ in range(25)} == {f"0 colour{number}".encode()}
