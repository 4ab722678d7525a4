"""The compose tree in use: pages as a person fetches them, and each container's rights as the kernel has them."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyttpd.roles import ROLES, Channel, Role

from support.compose import Deployment
from support.images import TOP
from support.tour import TOURS

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(600)]

UIDS = {
    "net": 0,
    "init": 0,
    "master": 10001,
    "umaster": 10002,
    "listener-http": 10010,
    "listener-metrics": 10009,
    "vhost-static": 20001,
    "vhost-wsgi": 20002,
    "vhost-asgi": 20003,
    "vhost-cgi": 20004,
    "vhost-fastcgi": 20005,
    "vhost-scgi": 20006,
    "vhost-handoff": 20007,
}
CAP_NET_BIND_SERVICE = 1 << 10
DOWNLOAD_BYTES = 10 * 1024 * 1024
#: Below the body_limit (10 MiB), and more than any buffer on the way.
UPLOAD_BYTES = 5 * 1024 * 1024


# ---- pages ---------------------------------------------------------------------------------------------------------


def test_both_tenants_answer(tree: Deployment) -> None:
    for host in ("static.localhost", "wsgi.localhost"):
        done = tree.curl(f"http://{host}/", "--fail")
        assert done.returncode == 0, done.stderr
        assert b"<html" in done.stdout.lower()


@pytest.mark.parametrize("kind", TOURS)
def test_a_tenant_is_clicked_through(tree: Deployment, kind: str) -> None:
    TOURS[kind](tree)


def test_a_container_s_standard_output_is_its_access_log_and_nothing_else(tree: Deployment) -> None:
    assert tree.curl("http://static.localhost/?logged", "--fail").returncode == 0
    container = tree.containers()["vhost-static"]["Id"]
    tree.wait_for(lambda: "/?logged" in tree.docker("logs", container))
    lines = tree.docker("logs", container).splitlines()  # without what it wrote to standard error
    form = r'[0-9a-f.:]+ - - \[[^]]{26}\] "[^"]*" \d{3} \d+ "[^"]*" "[^"]*"'
    assert [line for line in lines if not re.fullmatch(form, line)] == []


def test_an_unknown_host_gets_421(tree: Deployment) -> None:
    done = tree.curl("http://nobody.localhost/", "-o", os.devnull, "-w", "%{http_code}")
    assert done.stdout == b"421"


def test_a_tenant_answers_for_the_other_one_no_more_than_for_a_stranger(tree: Deployment) -> None:
    """On one kept connection: the second request is for somebody else, and is not answered by whoever has it."""
    with tree.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: static.localhost\r\n\r\n")
        first = client.recv(65536)
        assert first.startswith(b"HTTP/1.1 200 ")
        length = int(first.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(first.partition(b"\r\n\r\n")[2]) < length:
            first += client.recv(65536)
        client.sendall(b"GET / HTTP/1.1\r\nHost: wsgi.localhost\r\n\r\n")
        second = b""
        while data := client.recv(65536):
            second += data
    assert second.startswith(b"HTTP/1.1 421 ")
    assert b"connection: close" in second.lower()


def test_the_download_arrives_whole(tree: Deployment, tmp_path: Path) -> None:
    """The file is generated when the image is built, the same everywhere: so it can be made again to compare."""
    subprocess.run([sys.executable, TOP / "examples/static/generate.py", tmp_path], check=True)
    (made,) = (
        path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size >= DOWNLOAD_BYTES
    )
    got = tmp_path / "got"
    done = tree.curl(f"http://static.localhost/{made.relative_to(tmp_path)}", "--fail", "-o", str(got))
    assert done.returncode == 0, done.stderr
    assert got.read_bytes() == made.read_bytes()


def test_a_form_comes_back(tree: Deployment) -> None:
    done = tree.curl("http://wsgi.localhost/form", "--fail", "-d", "name=Ada&message=a%20%3Cb%3E")
    assert b"<output>Ada: a &lt;b&gt;</output>" in done.stdout


def test_an_upload_arrives_whole(tree: Deployment, tmp_path: Path) -> None:
    content = os.urandom(UPLOAD_BYTES)
    (tmp_path / "file").write_bytes(content)
    done = tree.curl(
        "http://wsgi.localhost/upload", "--fail", "-F", f"file=@{tmp_path}/file;filename=some.bin"
    )
    assert hashlib.sha256(content).hexdigest().encode() in done.stdout
    assert f"size: {UPLOAD_BYTES}".encode() in done.stdout


def test_a_streamed_answer_arrives_while_it_is_made(tree: Deployment) -> None:
    with tree.connect() as client:
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: wsgi.localhost\r\nConnection: close\r\n\r\n")
        arrivals, text = [], b""
        while data := client.recv(65536):
            text += data
            arrivals.append(time.monotonic())
    assert b"line 1 of 10" in text
    assert b"line 10 of 10" in text
    assert arrivals[-1] - arrivals[0] > 1.0, "all at once"


def test_a_slow_answer_holds_up_no_neighbour(tree: Deployment) -> None:
    with tree.connect() as client:
        client.sendall(b"GET /slow?seconds=2 HTTP/1.1\r\nHost: wsgi.localhost\r\nConnection: close\r\n\r\n")
        started = time.monotonic()
        for _ in range(20):
            assert tree.get("static.localhost").status == 200
        assert time.monotonic() - started < 1.5
        assert client.recv(12) == b"HTTP/1.1 200"


@pytest.mark.program("wrk")
@pytest.mark.parametrize("host", ["static.localhost", "wsgi.localhost"])
def test_two_seconds_of_load_lose_nothing(tree: Deployment, host: str) -> None:
    url = f"http://127.0.0.1:{tree.port}/"
    command = ["wrk", "-t1", "-c16", "-d2s", "-H", f"Host: {host}", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert "Requests/sec:" in done.stdout
    assert "Socket errors" not in done.stdout, done.stdout
    assert "Non-2xx" not in done.stdout, done.stdout


# ---- rights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", UIDS)
def test_every_process_has_its_uid_and_no_rights(tree: Deployment, service: str) -> None:
    processes = tree.processes(service)
    assert processes
    # Only init's keeper, which starts init again, may bind low ports, and only while it has to.
    allowed = CAP_NET_BIND_SERVICE if service == "init" else 0
    for process in processes:
        assert process.ids("Uid") == process.ids("Gid") == {UIDS[service]}, process.command()
        assert set(map(int, process.status["Groups"].split())) <= {UIDS[service]}
        for which in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert not process.capabilities(which) & ~allowed, f"{which} of {process.command()}"
        assert process.status["NoNewPrivs"] == "1"
        assert process.status["Seccomp"] == "2"


@pytest.mark.parametrize("service", UIDS)
def test_what_serves_is_confined_beyond_the_engines_filter(tree: Deployment, service: str) -> None:
    """The engine's seccomp filter is one; whatever speaks to a peer or runs a tenant's code has put its own on top.

    A role's PID 1 is its keeper, which speaks to nobody; the holder is its own.
    """
    processes = tree.processes(service)
    serving = processes if service == "net" else processes[1:]
    assert serving
    for process in serving:
        assert int(process.status["Seccomp_filters"]) > 1, process.command()


@pytest.mark.parametrize("service", UIDS)
def test_the_network_is_the_holders_alone(tree: Deployment, service: str) -> None:
    (holder,) = tree.processes("net")
    (own,) = {process.namespace("net") for process in tree.processes(service)}
    if service in ("net", "init"):
        assert own == holder.namespace("net")
    else:
        assert own not in (holder.namespace("net"), os.readlink("/proc/self/ns/net"))
        for process in tree.processes(service):
            assert process.interfaces() == {"lo"}


@pytest.mark.parametrize("kind", ["pid", "mnt", "ipc", "uts"])
def test_containers_share_nothing_else(tree: Deployment, kind: str) -> None:
    namespaces = {service: tree.processes(service)[0].namespace(kind) for service in UIDS}
    assert len(set(namespaces.values())) == len(UIDS), namespaces


@pytest.mark.parametrize("service", [name for name in UIDS if name != "net"])
def test_a_channel_directory_is_writable_in_its_binders_container_alone(
    tree: Deployment, service: str
) -> None:
    """Tried as root of this machine through the container's own mounts: their flags hold for root as well."""
    row = ROLES[Role(service.partition("-")[0])]
    root = Path(f"/proc/{tree.processes(service)[0].pid}/root/run/pyttpd")
    assert {path.name for path in root.iterdir()} == {
        channel.value for channel in (*row.binds, *row.connects)
    }
    for channel in Channel:
        folder = root / channel.value
        if channel in row.connects:
            assert (folder / "sock").is_socket()
            with pytest.raises(OSError, match="Read-only file system"):
                (folder / "other").touch()
            with pytest.raises(OSError, match="Read-only file system"):
                (folder / "sock").unlink()
            with pytest.raises(OSError, match="Read-only file system"):
                (folder / "sock").rename(folder / "other")
        elif channel in row.binds:
            assert [path.name for path in folder.iterdir()] == ["sock"]


@pytest.mark.parametrize("service", UIDS)
def test_nothing_can_be_written_but_what_was_given(tree: Deployment, service: str) -> None:
    row = ROLES[Role("init" if service == "net" else service.partition("-")[0])]
    expected = {"/run/health"}
    if service != "net":
        expected |= {f"/run/pyttpd/{channel.value}" for channel in row.binds}
    if service.startswith("vhost-"):
        expected.add("/tmp")
    lines = Path(f"/proc/{tree.processes(service)[0].pid}/mountinfo").read_text().splitlines()
    writable = {line.split()[4] for line in lines if "rw" in line.split()[5].split(",")}
    # The kernel's and the engine's own; what is below /proc is masked by it where it matters.
    writable = {path for path in writable if not path.startswith(("/proc", "/dev", "/sys"))}
    assert writable == expected


def test_no_descriptor_of_a_tenant_leads_to_the_outside(tree: Deployment) -> None:
    """An idle tenant holds no TCP socket but the metrics connections that are being answered: there are none now."""
    for service in ("vhost-static", "vhost-wsgi"):
        for process in tree.processes(service):
            tables = {kind: f"/proc/{process.pid}/net/{kind}" for kind in ("tcp", "tcp6", "udp", "udp6")}
            for kind, table in tables.items():
                assert len(Path(table).read_text().splitlines()) <= 1, f"{service} has a {kind} socket"


# ---- its end -------------------------------------------------------------------------------------------------------


def test_every_container_is_healthy_and_none_was_started_again(tree: Deployment) -> None:
    for service, container in tree.containers().items():
        assert container["State"]["Health"]["Status"] == "healthy", service
        assert container["RestartCount"] == 0, service
