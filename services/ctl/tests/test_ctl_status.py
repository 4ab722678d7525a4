"""status: against real HTTP servers on real ports, honest and hostile."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from pyttpd_ctl import main, processes, top
from pyttpd_ctl import scrape as scrape_module
from pyttpd_ctl import status as status_module
from pyttpd_ctl.output import make_table, show_table
from pyttpd_ctl.scrape import Outcome, Sample, Scrape, scrape
from pyttpd_ctl.status import Status, duration
from pyttpd_ctl.top import SORTS, Row, View, arrange, render, size, workers

#: What a server does with a connection whose request line's path is given.
Behaviour = Callable[[socket.socket, str], None]


class Server:
    """Listens on one port and treats each connection in a thread of its own, until closed."""

    def __init__(self, port: int, behaviour: Behaviour) -> None:
        self.paths: list[str] = []
        self._behaviour = behaviour
        self._socket = socket.create_server(("127.0.0.1", port))
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            request = connection.recv(8192)
            path = request.split(b" ")[1].decode()
            self.paths.append(path)
            self._behaviour(connection, path)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


def text(body: str, *, status: str = "200 OK") -> Behaviour:
    data = body.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    return lambda connection, _path: connection.sendall(head + data)


def about(role: str, name: str, uid: int, age: float) -> str:
    return (
        f'# TYPE pyttpd_{role}_info gauge\npyttpd_{role}_info{{name="{name}",uid="{uid}",version="0.1.0"}} 1.0\n'
        f"# TYPE pyttpd_{role}_start_time_seconds gauge\npyttpd_{role}_start_time_seconds {time.time() - age}\n"
        f"# TYPE pyttpd_{role}_channel_faults counter\n"
        f'pyttpd_{role}_channel_faults_total{{peer="x",reason="y"}} 1.0\n'
    )


INIT = """# TYPE pyttpd_init_accept_queue_depth gauge
pyttpd_init_accept_queue_depth{listener="http"} 3.0
pyttpd_init_accept_queue_limit{listener="http"} 128.0
pyttpd_init_accept_queue_limit{listener="http-metrics"} 128.0
pyttpd_init_accept_queue_limit{listener="second"} 128.0
pyttpd_init_accept_queue_limit{listener="metrics"} 128.0
pyttpd_init_hellos_total{result="answered"} 5.0
"""
MASTER = 'pyttpd_master_shares_total{peer="listener"} 7.0\n'
UMASTER = """pyttpd_umaster_workers{vhost="blog"} 2.0
pyttpd_umaster_workers{vhost="shop"} 1.0
pyttpd_umaster_workers{vhost="../evil"} 1.0
pyttpd_umaster_queue_depth{vhost="blog"} 4.0
pyttpd_umaster_queue_depth{vhost="shop"} 0.0
pyttpd_umaster_handovers_open{vhost="blog"} 1.0
pyttpd_umaster_dispatched_total{vhost="blog"} 100.0
pyttpd_umaster_dispatched_total{vhost="shop"} 11.0
pyttpd_umaster_refusals_total{vhost="blog",reason="full"} 2.0
"""
LISTENER = """pyttpd_listener_connections{state="peeking"} 2.0
pyttpd_listener_connections{state="offered"} 3.0
pyttpd_listener_routed_total 1234.0
pyttpd_listener_answers_total{status="421"} 6.0
"""
BLOG = """pyttpd_vhost_workers{vhost="blog",state="serving"} 2.0
pyttpd_vhost_connections{vhost="blog"} 9.0
pyttpd_vhost_requests_total{vhost="blog",code="200"} 1000000.0
pyttpd_vhost_requests_total{vhost="blog",code="500"} 3.0
pyttpd_vhost_errors_total{vhost="blog"} 3.0
"""


def tenants(blog: Behaviour, shop: Behaviour) -> Behaviour:
    def behave(connection: socket.socket, path: str) -> None:
        {"/metrics/blog": blog, "/metrics/shop": shop}[path](connection, path)

    return behave


@contextlib.contextmanager
def tree(**changes: Behaviour | None) -> Iterator[int]:
    """A tree's metrics ports with honest servers, but for the changes; yields the base port."""
    behaviours: dict[str, tuple[int, Behaviour | None]] = {
        "init": (0, text(about("init", "", 0, 100) + INIT)),
        "master": (1, text(about("master", "", 10001, 100) + MASTER)),
        "umaster": (2, text(about("umaster", "", 10002, 100) + UMASTER)),
        "http": (3, text(about("listener", "http", 10010, 90000) + LISTENER)),
        "second": (4, text(about("listener", "second", 10011, 5))),
        "metrics": (9, text(about("listener", "metrics", 10009, 100))),
        "tenants": (
            10,
            tenants(text(about("vhost", "blog", 20001, 3700) + BLOG), text(about("vhost", "shop", 20002, 1))),
        ),
    }
    for name, behaviour in changes.items():
        behaviours[name] = (behaviours[name][0], behaviour)
    for base in range(21000, 30000, 16):
        servers: list[Server] = []
        try:
            for offset, behaviour in behaviours.values():
                if behaviour is not None:
                    servers.append(Server(base + offset, behaviour))
            for offset in range(11):  # nor has anybody else one of those that are to be nobody's
                if offset not in [taken for taken, behaviour in behaviours.values() if behaviour is not None]:
                    socket.create_server(("127.0.0.1", base + offset)).close()
            yield base
            return
        except OSError:
            continue  # somebody has one of these ports
        finally:
            for server in servers:
                server.close()


def ask(base: int, *args: str) -> Result:
    return CliRunner().invoke(main.cli, ["status", "--metrics", f"127.0.0.1:{base}", *args])


def rows(result: Result) -> dict[str, list[str]]:
    """The tables' rows by the first two cells, or the first one (tenants)."""
    found = {}
    for line in result.stdout.splitlines():
        cells = line.split()
        if len(cells) > 3 and cells[0] != "role" and cells[0] != "name":
            key = (
                f"{cells[0]} {cells[1]}"
                if cells[0] in ("init", "master", "umaster", "listener")
                else cells[0]
            )
            found[key] = cells
    return found


def test_all_is_up() -> None:
    with tree() as base:
        result = ask(base)
    assert (result.exit_code, result.stderr) == (0, "")
    assert rows(result) == {
        "init init": ["init", "init", "yes", "0", "1m", "40s", "3", "5", "1"],
        "master master": ["master", "master", "yes", "10001", "1m", "40s", "-", "7", "1"],
        "umaster umaster": ["umaster", "umaster", "yes", "10002", "1m", "40s", "5", "111", "3"],
        "listener http": ["listener", "http", "yes", "10010", "1d", "1h", "5", "1,234", "7"],
        "listener second": ["listener", "second", "yes", "10011", "5s", "0", "0", "1"],
        "listener metrics": ["listener", "metrics", "yes", "10009", "1m", "40s", "0", "0", "1"],
        "blog": ["blog", "yes", "20001", "1h", "1m", "2", "9", "1,000,003", "4", "4", "-", "-"],
        "shop": ["shop", "yes", "20002", "1s", "-", "0", "0", "1", "0", "-", "-"],
    }


def test_as_json() -> None:
    with tree() as base:
        result = ask(base, "--json")
    value = json.loads(result.stdout)
    assert value["up"] is True
    blog = value["tenants"][0]
    assert 3690 < blog.pop("age") < 3720
    assert blog == {
        "name": "blog",
        "up": True,
        "why": "up",
        "uid": 20001,
        "workers": 2,
        "connections": 9,
        "requests": 1000003,
        "errors": 4,
        "queue": 4,
        "wait": None,
        "state": "serving",
        "mode": "",
        "size": None,
        "oldest": None,
        "draining": None,
        "draining_for": None,
        "failure": None,
        "mounts": [],
    }


def test_the_address_from_a_configuration(tmp_path: Any) -> None:
    with tree() as base:
        file = tmp_path / "a.toml"
        file.write_text(
            f'[metrics]\naddress = "0.0.0.0"\nbase_port = {base}\n[listen.http]\naddress = "127.0.0.1:80"\n'
        )
        result = CliRunner().invoke(main.cli, ["status", "--config", str(file)])
        assert result.exit_code == 0, result.output
    file.write_text("[")
    result = CliRunner().invoke(main.cli, ["status", "--config", str(file)])
    assert result.exit_code == 1
    assert "not valid" in result.stderr


def test_no_tree() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    result = CliRunner().invoke(main.cli, ["status", "--metrics", f"localhost:{min(port, 65000)}"])
    assert result.exit_code == 1
    assert result.stderr.endswith("does a tree run? --config, or --metrics, says where\n")


@pytest.mark.parametrize("role", ["init", "master", "umaster", "metrics"])
def test_a_role_that_is_down(role: str) -> None:
    with tree(**{role: None}) as base:
        result = ask(base)
    assert result.exit_code == 1
    key = f"listener {role}" if role == "metrics" else f"{role} {role}"
    assert rows(result)[key][2:] == ["no", "-", "-", "-", "-", "-", "nobody", "listens"]


def test_a_listener_that_is_down_and_its_socket_too() -> None:
    with tree(http=None) as base:
        result = ask(base)
    assert result.exit_code == 1
    assert rows(result)["listener http"][-2:] == ["nobody", "listens"]


def test_a_listener_that_hangs_while_init_keeps_its_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape_module, "TIMEOUT", 0.3)
    with tree(second=silent) as base:
        monkeypatch.setattr(status_module, "scrape", quick)
        result = ask(base)
    assert result.exit_code == 1
    assert rows(result)["listener second"][-4:] == ["no", "answer", "in", "time"]


def test_an_unknown_listener_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module, "scrape", quick)
    with tree(init=text(about("init", "", 0, 1)), http=silent) as base:
        result = ask(base)
    assert rows(result)["listener ?"][-4:] == ["no", "answer", "in", "time"]


def test_a_tenant_without_a_worker() -> None:
    with tree(tenants=tenants(text(BLOG), text("busy", status="503 Service Unavailable"))) as base:
        result = ask(base)
    assert result.exit_code == 1
    assert " ".join(rows(result)["shop"]).endswith("turned away by master, whose log says why")
    assert rows(result)["blog"][:4] == ["blog", "yes", "-", "-"]


@pytest.mark.parametrize(
    ("workers", "why"),
    [("0.0", "turned away by master, whose log says why"), ("1.0", "no answer in time")],
)
def test_a_tenant_that_does_not_answer(workers: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module, "scrape", quick)
    umaster = text(UMASTER.replace('workers{vhost="shop"} 1.0', f'workers{{vhost="shop"}} {workers}'))
    with tree(umaster=umaster, tenants=tenants(text(BLOG), silent)) as base:
        result = ask(base)
    assert " ".join(rows(result)["shop"]).endswith(why)


def test_a_tenant_whose_application_does_not_load() -> None:
    failing = BLOG + 'pyttpd_vhost_application_failed{vhost="blog"} 1.0\n'
    with tree(tenants=tenants(text(failing), text(BLOG.replace("blog", "shop")))) as base:
        result = ask(base)
    assert result.exit_code == 1
    assert rows(result)["blog"][:2] == ["blog", "no"]
    assert " ".join(rows(result)["blog"]).endswith("does not load: its log says why")


def quick(host: str, port: int, path: str, *, limit: int = 1 << 20) -> Scrape:
    return scrape(host, port, path, limit=limit, timeout=0.5)


def silent(connection: socket.socket, _path: str) -> None:
    connection.recv(1)


def endless(connection: socket.socket, _path: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"# a comment that never ends\n" * 1000)


def dripping(connection: socket.socket, _path: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"#")
        time.sleep(0.05)


def raw(data: bytes) -> Behaviour:
    return lambda connection, _path: connection.sendall(data)


OK = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize(
    ("behaviour", "outcome"),
    [
        (silent, Outcome.SILENT),
        (dripping, Outcome.SILENT),
        (endless, Outcome.BROKEN),
        (raw(b""), Outcome.BROKEN),
        (raw(b"SSH-2.0-OpenSSH\r\n"), Outcome.BROKEN),
        (raw(b"HTTP/1.1 200 OK\r\n"), Outcome.BROKEN),
        (raw(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 5000 + b"\r\n"), Outcome.BROKEN),
        (raw(b"HTTP/1.1 404 Not Found\r\n\r\n"), Outcome.ERROR),
        (raw(b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\n\r\n"), Outcome.ERROR),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), Outcome.BROKEN),
        (raw(OK + b"\xff"), Outcome.BROKEN),
        (raw(OK + b"pyttpd_x{"), Outcome.BROKEN),
        (raw(OK + b'pyttpd_x{a="b} one\n'), Outcome.BROKEN),
        (raw(OK + b"pyttpd_x 1\n"), Outcome.UP),
    ],
    ids=range(14),
)
def test_what_a_target_may_do(behaviour: Behaviour, outcome: Outcome) -> None:
    server = Server(0, behaviour)
    start = time.monotonic()
    try:
        result = scrape("127.0.0.1", server.port, "/metrics", limit=1 << 20, timeout=0.5)
    finally:
        server.close()
    assert result.outcome is outcome
    assert time.monotonic() - start < 2


def test_hostile_numbers_and_labels() -> None:
    evil = (
        about("vhost", "\\u001b]0;x", 20001, 1).replace("\\u001b", "\x1b").replace('uid="20001"', 'uid="0x1"')
        + 'pyttpd_vhost_requests_total{vhost="a\x1b[31m"} NaN\npyttpd_vhost_requests_total 1e300\n'
        + "pyttpd_vhost_connections +Inf\npyttpd_vhost_errors_total -5\n"
    )
    with tree(tenants=tenants(text(evil), text(evil))) as base:
        result = ask(base)
        as_json = ask(base, "--json")
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    blog = rows(result)["blog"]
    assert blog[:3] == ["blog", "yes", "-"]
    assert max(len(line) for line in result.stdout.splitlines()) < 200
    assert json.loads(as_json.stdout)["tenants"][0]["uid"] is None


def test_a_listener_s_name_is_shown_without_control_characters() -> None:
    with tree(http=text(about("listener", "ht\x1b[31mtp[/]", 10010, 1))) as base:
        result = ask(base)
    assert "ht[31mtp[/]" in result.stdout
    assert "\x1b" not in result.stdout


def test_only_names_are_asked_for() -> None:
    asked: list[str] = []

    def note(connection: socket.socket, path: str) -> None:
        asked.append(path)
        text("")(connection, path)

    with tree(tenants=note) as base:
        ask(base)
    assert sorted(asked) == ["/metrics/blog", "/metrics/shop"]


def test_samples() -> None:
    samples = {"x": (Sample({"a": "1"}, 2.0), Sample({"a": "1"}, 3.0), Sample({"b": "2"}, 4.0))}
    found = Scrape(Outcome.UP, samples)
    assert found.total("x") == 9.0
    assert found.total("y") is None
    assert found.by_label("x", "a") == {"1": 5.0}
    assert found.label("x", "a") == "1"
    assert found.label("y", "a") is None
    assert found.up


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (59.9, "59s"), (60, "1m 0s"), (3661, "1h 1m"), (90000, "1d 1h"), (1e300, "10000d 0h")],
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


# ---- pools ----

ILL = (
    BLOG
    + r"""# pyttpd pool {"mode": "static", "size": 2, "failing": true, "prototype": "none"}
# pyttpd failure {"reason": "ImportError: no \u001b[31mred", "traceback": ["  File app.py, line 3", 7], "retry_in": 2.5}
"""
)
ASLEEP = """pyttpd_vhost_workers{vhost="shop",state="serving"} 0.0
pyttpd_vhost_pool_size{vhost="shop"} 0.0
# pyttpd pool {"mode": "ondemand", "size": 0, "failing": false, "prototype": "none"}
"""


def test_why_an_application_does_not_run() -> None:
    served = tenants(
        text(about("vhost", "blog", 20001, 3700) + ILL), text(about("vhost", "shop", 20002, 1) + ASLEEP)
    )
    umaster = UMASTER + 'pyttpd_umaster_queue_age_seconds{vhost="blog"} 1.25\n'
    with tree(tenants=served, umaster=text(about("umaster", "", 10002, 100) + umaster)) as base:
        result = ask(base)
        value = json.loads(ask(base, "--json").stdout)
    assert result.exit_code == 1
    assert "does not run: ImportError: no [31mred" in result.stdout
    assert "\x1b" not in result.stdout
    assert "  File app.py, line 3" in result.stdout and "tried again in 2.5s" in result.stdout
    assert rows(result)["shop"][-1] == "asleep"
    assert "1.2s" in rows(result)["blog"]
    blog, shop = value["tenants"]
    assert (blog["up"], blog["state"], blog["failure"]["traceback"][0]) == (
        False,
        "failing",
        "  File app.py, line 3",
    )
    assert (shop["up"], shop["state"], shop["mode"], shop["size"]) == (True, "asleep", "ondemand", 0)


@pytest.mark.parametrize(
    "line",
    [
        "# pyttpd pool []",
        "# pyttpd pool {",
        '# pyttpd pool {"failing": "yes"}',
        '# pyttpd failure {"reason": [1, 2], "traceback": "no", "retry_in": "soon"}',
        '# pyttpd pool {"failing": true}\n# pyttpd failure {"retry_in": 1e999, "traceback": {"a": 1}}',
        "# pyttpd " + "x" * 50 + " {}",
        "# pyttpd pool " + "{" * 5000,
        "\n".join(['# pyttpd worker {"number": 1}'] * 5000),
        "\n".join(
            [
                f"# pyttpd {chr(97 + number // 26 % 26)}{chr(97 + number % 26)} {{}}"
                for number in range(50_000)
            ]
        ),
    ],
)
def test_notes_that_make_no_sense(line: str) -> None:
    served = tenants(
        text(about("vhost", "blog", 20001, 3700) + BLOG + line + "\n"), text(about("vhost", "shop", 20002, 1))
    )
    with tree(tenants=served) as base:
        result = ask(base, "--json")
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert json.loads(result.stdout)["tenants"][0]["name"] == "blog"


def test_no_blanks_at_the_ends_of_lines_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("T", [("one", False), ("two", False)], [["a", "long"], ["b", "-"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["T", ""]
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("width", [80, 120])
def test_headings_are_not_folded_where_blanks_can_be_given_up(width: int) -> None:
    headings = [
        "name",
        "up",
        "uid",
        "age",
        "workers",
        "connections",
        "requests",
        "errors",
        "queue",
        "wait",
        "oldest",
    ]
    cells = ["static", "yes", "20001", "11s", "2", "0", "1", "0", "0", "0.0s", "11s", ""]
    columns = [(heading, heading not in ("name", "up")) for heading in headings]
    console = Console(width=width)
    with console.capture() as captured:
        console.print(make_table("Tenants", [*columns, ("", False)], [cells]))
    _, _, heading, _, row, *_ = captured.get().splitlines()
    assert heading.split() == headings
    assert row.split() == cells[:-1]
    assert ("queue   wait" in heading) is (width == 120)


def test_a_terminal_s_width_is_used() -> None:
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 25, 40, 0, 0))
        code = "from pyttpd_ctl.output import show_table; show_table('T', [('one', False)], [['a' * 50], ['yes']])"
        environment = {"TERM": "xterm", "PATH": "/usr/bin:/bin"}
        subprocess.run([sys.executable, "-c", code], stdout=theirs, check=True, env=environment, timeout=30)
        shown = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "a" * 30 in shown
    assert "a" * 41 not in shown
    assert "\x1b[32myes" in shown


# ---- top ----


def worker_line(**said: object) -> str:
    return f"# pyttpd worker {json.dumps(said)}\n"


SEVEN = worker_line(
    number=7,
    pid=71,
    state="serving",
    due="",
    age=12.0,
    requests=500,
    connections=3,
    threads=4,
    busy_threads=2,
    memory=20 << 20,
    cpu=1.5,
    host="blog.example",
    path="/seven",
)
EIGHT = worker_line(
    number=8,
    pid=81,
    state="serving",
    due="age",
    age=99.0,
    requests=2,
    connections=0,
    threads=1,
    busy_threads=0,
    memory=1 << 20,
    cpu=9.5,
    host="blog.example",
    path="/\x1b[2Jeight",
)
WORKERS = (
    '# pyttpd pool {"mode": "dynamic", "size": 2, "failing": false, "prototype": "ready"}\n' + SEVEN + EIGHT
)


def worker_row(tenant: str, number: int, **values: float) -> Row:
    return Row(tenant, number, 1, "serving", 0.0, 0, 0, 1, 0, 0, 0.0, "", **values)  # type: ignore[arg-type]


def screen(view: View, sort: str = "c", height: int = 40, *, reverse: bool = False) -> str:
    console = Console(width=160, record=True, file=open(os.devnull, "w"), force_terminal=False)  # noqa: SIM115
    with contextlib.closing(console.file):
        console.print(render(view, sort, height=height, reverse=reverse))
        return console.export_text()


def test_what_tenants_say_is_checked() -> None:
    wild = {
        "number": "x",
        "pid": None,
        "state": "\x1b[1m",
        "age": float("inf"),
        "requests": -1,
        "host": 5,
        "path": "\n",
    }
    (found,) = workers("blog", Scrape(Outcome.UP, notes={"worker": (wild,)}))
    assert (found.number, found.pid, found.age, found.at) == (0, 0, 0.0, "5")
    assert "\x1b" not in found.state


def test_rates_are_differences_and_never_negative() -> None:
    before = worker_row("blog", 1)
    after = top._with_rates(Row("blog", 1, 1, "serving", 2.0, 100, 0, 1, 0, 0, 1.0, ""), before, 2.0)
    assert (after.rate, after.cpu) == (50.0, 0.5)
    assert top._with_rates(before, after, 2.0).rate == 0.0
    assert top._with_rates(before, None, 2.0) == before


def test_the_order() -> None:
    rows = [worker_row("b", 1, rate=5.0), worker_row("a", 2, rate=9.0), worker_row("a", 1, rate=5.0)]
    assert [(each.tenant, each.number) for each in arrange(rows, "r")] == [("a", 2), ("a", 1), ("b", 1)]
    assert [(each.tenant, each.number) for each in arrange(rows, "t")] == [("a", 1), ("a", 2), ("b", 1)]
    assert arrange(rows, "r", reverse=True)[-1].number == 2
    for key in SORTS:
        assert len(arrange(rows, key)) == 3


def test_no_more_than_the_terminal_has_lines() -> None:
    view = View(Status((), ()), [worker_row("blog", number) for number in range(500)])
    shown = screen(view, height=24)
    assert len(shown.splitlines()) <= 24
    assert "484 more" in shown
    assert "q: quit" in shown


@pytest.mark.parametrize(("value", "shown"), [(0, "0"), (2048, "2K"), (20971520, "20M"), (2**50, "1048576G")])
def test_size(value: float, shown: str) -> None:
    assert size(value) == shown


def test_once_is_for_a_pipe() -> None:
    served = tenants(
        text(about("vhost", "blog", 20001, 3700) + BLOG + WORKERS), text(about("vhost", "shop", 20002, 1))
    )
    with tree(tenants=served) as base:
        result = CliRunner().invoke(
            main.cli, ["top", "--once", "--metrics", f"127.0.0.1:{base}", "--sort", "m"]
        )
    assert result.exit_code == 0
    assert result.stdout.index("/seven") < result.stdout.index("[2Jeight")
    assert "serving (age)" in result.stdout and "20M" in result.stdout and "2/4" in result.stdout


def test_a_pipe_without_once_is_told() -> None:
    result = CliRunner().invoke(main.cli, ["top", "--metrics", "127.0.0.1:9100"])
    assert result.exit_code == 2
    assert "takes a terminal" in result.output


class Terminal:
    """`pyttpd top` under a pty."""

    def __init__(self, base: int) -> None:
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 30, 160, 0, 0))
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        code = "from pyttpd_ctl.main import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "top", "--metrics", f"127.0.0.1:{base}", "--interval", "0.2"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={"TERM": "xterm", "PATH": "/usr/bin:/bin"},
        )
        self.seen = ""

    def expect(self, pattern: str, within: float = 20.0) -> None:
        """Read until `pattern` has been shown since the last time."""
        deadline = time.monotonic() + within
        while not (found := re.search(pattern, self.seen, re.DOTALL)):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.ours], [], [], left)[0]:
                pytest.fail(f"{pattern!r} not within {within} s: {self.seen[-2000:]!r}")
            self.seen += os.read(self.ours, 65536).decode("utf-8", "replace")
        self.seen = self.seen[found.end() :]

    def press(self, key: str) -> None:
        os.write(self.ours, key.encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    served = tenants(
        text(about("vhost", "blog", 20001, 3700) + BLOG + WORKERS), text(about("vhost", "shop", 20002, 1))
    )
    with tree(tenants=served) as base:
        one = Terminal(base)
        try:
            yield one
        finally:
            one.close()


def test_it_is_refreshed_and_sorted_by_keys_and_q_quits(terminal: Terminal) -> None:
    terminal.expect("Workers by cpu")
    terminal.press("m")
    terminal.expect("Workers by memory.*/seven.*eight")
    terminal.press("R")
    terminal.expect(r"Workers by memory \(reversed\).*eight.*/seven")
    terminal.press("z")  # nothing
    terminal.press("a")
    terminal.expect("Workers by age.*eight.*/seven")
    terminal.expect("Workers by age")  # by itself, again and again
    assert termios.tcgetattr(terminal.theirs) != terminal.before
    terminal.press("q")
    assert terminal.process.wait(20) == 0
    assert termios.tcgetattr(terminal.theirs) == terminal.before
    terminal.expect(r"\x1b\[\?1049l")  # the screen from before


# ---- application processes ----


def note(word: str, **said: object) -> str:
    return f"# pyttpd {word} {json.dumps(said)}\n"


PROCESSES = note(
    "mount",
    mount="/php",
    kind="fastcgi",
    mode="dynamic",
    size=3,
    serving=2,
    active=1,
    failing=False,
    reason="",
    retry_in=0.0,
) + note(
    "process",
    mount="/php",
    kind="fastcgi",
    number=7,
    pid=4321,
    state="serving",
    due="memory",
    age=61.0,
    requests=55,
    memory=3 << 20,
    cpu=2.5,
)
FAILS = note(
    "mount",
    mount="/a\x1b[2J",
    kind="scgi",
    mode="static",
    size=2,
    serving=0,
    active=4,
    failing=True,
    reason="/no/such: No such file or directory\n",
    retry_in=4.2,
)


def test_processes_of_a_mount_are_shown() -> None:
    said = text(about("vhost", "blog", 20001, 3700) + BLOG + PROCESSES)
    with tree(tenants=tenants(said, text(about("vhost", "shop", 20002, 1)))) as base:
        shown = ask(base).stdout
        as_json = json.loads(ask(base, "--json").stdout)
    (row,) = [line for line in shown.splitlines() if "/php" in line]
    assert row.split() == ["blog", "/php", "fastcgi", "yes", "2", "of", "3", "1"]
    (found,) = [tenant for tenant in as_json["tenants"] if tenant["name"] == "blog"]
    assert found["mounts"][0]["serving"] == 2


def test_a_mount_whose_processes_fail_is_not_well() -> None:
    said = text(about("vhost", "blog", 20001, 3700) + BLOG + FAILS)
    with tree(tenants=tenants(said, text(about("vhost", "shop", 20002, 1)))) as base:
        result = ask(base)
    assert result.exit_code == 1
    assert "\x1b" not in result.stdout
    (row,) = [line for line in result.stdout.splitlines() if "scgi" in line]
    assert "no such" in row.lower()
    assert "tried again in 4.2s" in row


def test_processes_are_in_top() -> None:
    answer = Scrape(Outcome.UP, notes={"process": (json.loads(PROCESSES.splitlines()[1].split(" ", 3)[3]),)})
    (found,) = top.processes("blog", answer)
    assert (found.pid, found.state, found.requests, found.memory) == (4321, "serving (memory)", 55, 3 << 20)
    later = top._with_rates(found, found, 1.0)
    assert later.rate == 0.0
    shown = screen(View(Status((), ()), [found, worker_row("blog", 7)]))
    (row,) = [line for line in shown.splitlines() if "fastcgi at /php" in line]
    assert row.split()[:3] == ["blog", "p7", "4321"]
    assert found.key != worker_row("blog", 7).key


def test_what_a_tenant_says_of_processes_is_checked() -> None:
    wild = {"mount": 5, "kind": "\x1b", "number": [], "pid": "x", "state": None, "age": 1e400, "size": None}
    (found,) = top.processes("blog", Scrape(Outcome.UP, notes={"process": (wild,)}))
    assert (found.number, found.pid, found.age) == (0, 0, 0.0)
    (mount,) = processes.mounts(Scrape(Outcome.UP, notes={"mount": (wild,)}))
    assert (mount.size, mount.up) == (0, True)
    assert "\x1b" not in mount.kind + found.at


def test_the_generation_and_who_does_not_serve_by_it_yet(capsys: pytest.CaptureFixture[str]) -> None:
    waiting = "".join(
        f'pyttpd_master_waiting_seconds{{role="vhost",name="v{number}",reason="{reason}"}} {age}\n'
        for number, (reason, age) in enumerate(
            [("", 5.0), ("ImportError: no\\u001b[31m", 65.0), *[("", 1.0)] * 30]
        )
    )
    master = MASTER + "pyttpd_master_generation 7.0\n"
    with tree(master=text(about("master", "master", 10001, 60) + master + waiting)) as port:
        found = status_module.status("127.0.0.1", port)
    assert found.generation == 7
    assert [each.name for each in found.waiting[:2]] == ["v1", "v0"]
    status_module.show(found)
    shown = capsys.readouterr().out
    assert "Configuration: generation 7, not yet in force in 32 parts:\n  vhost v1: ImportError: no" in shown
    assert "  vhost v0: has not said so yet, for 5s\n" in shown
    assert "... and 12 more" in shown
    assert "\x1b" not in shown
    with tree(master=text(about("master", "master", 10001, 60) + master)) as port:
        status_module.show(status_module.status("127.0.0.1", port))
    assert "Configuration: generation 7, in force everywhere\n" in capsys.readouterr().out


def test_what_drains_and_for_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    leaving = 'pyttpd_vhost_workers{vhost="blog",state="leaving"} 1.0\n'
    since = 'pyttpd_vhost_leaving_seconds{vhost="blog"} 12.4\n'
    blog = text(about("vhost", "blog", 20001, 60) + BLOG + leaving + since)
    with tree(tenants=tenants(blog, text(about("vhost", "shop", 20002, 60)))) as port:
        found = status_module.status("127.0.0.1", port)
    assert [(row.name, row.draining, row.draining_for) for row in found.tenants][:1] == [("blog", 1, 12.4)]
    status_module.show(found)
    assert "Draining\n  blog: 1 of its workers, for 12s\n" in capsys.readouterr().out
