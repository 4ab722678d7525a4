"""A tenant's logs in a whole tree: what stands where, and that who takes over a worker forges nobody else's."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.tree import Tree, start

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="each tenant has a uid of its own"),
]

UID = 20003
COMBINED = re.compile(
    r'127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000\] "([^"]*)" (\d{3}) (\d+) "([^"]*)" "([^"]*)"'
)

#: It prints what looks like others' lines, writes into the log's socket what the worker's own code would not, and
#: tries to get at the files.
EVIL = r"""
import json, os, sys

def application(environ, start_response):
    said = {}
    if environ["PATH_INFO"] == "/evil":
        print('static 192.0.2.66 - - [29/Nov/2026:09:50:00 +0000] "GET /forged HTTP/1.1" 200 1 "-" "-"')
        print('vhost.static[1] error: forged', file=sys.stderr)
        os.write(1, b'\x1b[2Jforged\n')
        frame = sys._getframe()
        while "exchange" not in frame.f_locals:
            frame = frame.f_back
        sock = frame.f_locals["exchange"].site.access._sock
        for record in (
            b'static 192.0.2.66 - - [29/Nov/2026:09:50:00 +0000] "GET /forged HTTP/1.1" 200 1 "-" "-"\n',
            b'192.0.2.66 - - [29/Nov/2026:09:50:00 +0000] "GET /forged" 200 1 "-" "-"\nvhost.static[1] error: forged\n',
            b'\x1b[2J\n',
        ):
            sock.send(record)
        for name in os.environ["LOGS"].split():
            for what, action in (
                ("write", lambda: open(name, "a")), ("read", lambda: open(name)), ("unlink", lambda: os.unlink(name)),
                ("rename", lambda: os.rename(name, name + ".mine")), ("link", lambda: os.link(name, "/tmp/mine")),
                ("stat", lambda: os.truncate(name, 0)),
            ):
                try:
                    action()
                except OSError as error:
                    said[f"{what} {name}"] = error.strerror
                else:
                    said[f"{what} {name}"] = "done"
    body = json.dumps(said).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
"""


LOUD = r"""
def application(environ, start_response):
    if environ["PATH_INFO"] == "/fails":
        raise RuntimeError("fails on purpose")
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""


@pytest.fixture(scope="module")
def logs() -> Iterator[Path]:
    """The operator's folder of logs, root's, with a file of the tenant's for each."""
    folder = Path(tempfile.mkdtemp(prefix="pyttpd-logs-", dir="/var/tmp"))
    folder.chmod(0o711)
    for name in ("access.log", "error.log"):
        (folder / name).touch(0o640)
        os.chown(folder / name, UID, UID)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def tree(logs: Path) -> Iterator[Tree]:
    made = start(
        tenants=f"""
            [vhost.static]
            hosts = ["static.localhost"]
            uid = 20001
            kind = "static"
            root = "site"
            [vhost.wsgi]
            hosts = ["wsgi.localhost"]
            uid = 20002
            kind = "wsgi"
            root = "application"
            application = "app:application"
            access_log = "json"
            [vhost.evil]
            hosts = ["evil.localhost"]
            uid = {UID}
            kind = "wsgi"
            root = "evil"
            application = "app:application"
            env = {{ LOGS = "{logs}/access.log {logs}/error.log" }}
            access_log_file = "{logs}/access.log"
            error_log_file = "{logs}/error.log"
            [vhost.quiet]
            hosts = ["quiet.localhost"]
            uid = 20004
            kind = "static"
            root = "site"
            access_log = "off"
            """,
        hosts=("static.localhost", "wsgi.localhost", "evil.localhost", "quiet.localhost"),
        files={"evil/app.py": EVIL},
    )
    yield made
    made.expect("not an entry of the access log")
    try:
        made.check_and_end()
    finally:
        if made.process.poll() is None:
            made.kill()
        shutil.rmtree(made.folder, ignore_errors=True)


def wait_for(path: Path, text: str) -> str:
    """Wait until `text` stands in the file; return all of it."""
    end = time.monotonic() + 10
    while text not in (found := path.read_text()):
        assert time.monotonic() < end, found[-2000:]
        time.sleep(0.02)
    return found


def test_combined_on_a_shared_output_has_the_tenant_s_name(tree: Tree) -> None:
    assert tree.get("static.localhost", "/index.html?one").status == 200
    assert tree.get("static.localhost", "/nothing").status == 404
    text = wait_for(tree.folder / "log", "/nothing")
    lines = [line.removeprefix("static ") for line in text.splitlines() if line.startswith("static ")]
    found = [match.groups() for line in lines if (match := COMBINED.fullmatch(line))]
    assert len(found) == len(lines)
    assert ("GET /index.html?one HTTP/1.1", "200", "37", "-", "-") in found
    assert any(entry[0] == "GET /nothing HTTP/1.1" and entry[1] == "404" for entry in found)


def test_json(tree: Tree) -> None:
    assert tree.get("wsgi.localhost", "/json?a=%22").status == 200
    text = wait_for(tree.folder / "log", "/json")
    entries = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    entry = next(entry for entry in entries if entry["target"] == "/json?a=%22")
    assert (entry["vhost"], entry["host"], entry["status"]) == ("wsgi", "wsgi.localhost", 200)
    assert entry["worker"] >= 1
    assert 0 < entry["duration"] < 10


def test_what_the_listener_refuses_is_in_its_log(tree: Tree) -> None:
    assert tree.get("nobody.localhost", "/whose").status == 421
    text = wait_for(tree.folder / "log", "host=nobody.localhost")
    assert re.search(
        r"listener\.http\[\d+\] info: request refused status=421 client=127\.0\.0\.1 host=nobody", text
    )
    assert "/whose" not in text


def test_off(tree: Tree) -> None:
    assert tree.get("quiet.localhost", "/index.html?off").status == 200
    assert tree.get("static.localhost", "/index.html?after-off").status == 200
    assert "?off" not in wait_for(tree.folder / "log", "after-off")


def test_a_tenant_that_takes_over_its_worker_forges_nobody_else_s_line(tree: Tree, logs: Path) -> None:
    answer = tree.get("evil.localhost", "/evil")
    said = json.loads(answer.body)
    assert len(said) == 12
    assert "done" not in said.values(), said
    wait_for(logs / "access.log", "GET /evil HTTP/1.1")
    # what it printed is in its own log, under its name, and can't move a cursor
    printed = wait_for(logs / "error.log", r"output \x1b[2Jforged")
    for line in printed.splitlines():
        assert re.match(r"\S+Z vhost\.evil\[\d+\] ", line) or line.startswith("    | "), line
    assert "output static 192.0.2.66 - - [" in printed
    # what it sent as entries is nowhere
    access = (logs / "access.log").read_text()
    assert all(COMBINED.fullmatch(line) for line in access.splitlines())
    shared = wait_for(tree.folder / "log", "not an entry of the access log")
    assert "forged" not in access + shared
    assert "\x1b" not in access + shared + printed
    assert shared.count("vhost.evil") >= 1
    samples = tree.samples("vhost", "evil")
    lost = {
        log: samples["pyttpd_vhost_log_lines_lost_total", ("log", log), ("vhost", "evil")]
        for log in ("access", "error")
    }
    assert lost == {"access": 4, "error": 0}  # what it sent and was not written; of what it printed, nothing
    assert "GET /evil" not in shared


def test_files_are_the_tenant_s_and_rotated_without_a_signal(tree: Tree, logs: Path) -> None:
    for name in ("access.log", "error.log"):
        assert (logs / name).stat().st_uid == UID
    sent = 0

    def ask(count: int) -> None:
        nonlocal sent
        for _ in range(count):
            assert tree.get("evil.localhost", f"/rotation-{sent}").status == 200
            sent += 1

    ask(20)
    # as logrotate with "create": another name, then a new file with the old one's owner and mode
    (logs / "access.log").rename(logs / "access.log.1")
    ask(20)
    (logs / "access.log").touch(0o640)
    os.chown(logs / "access.log", UID, UID)
    tree.wait_for(
        lambda: (
            tree.get("evil.localhost", "/after").status == 200 and bool((logs / "access.log").read_bytes())
        )
    )
    ask(20)

    def found() -> list[int]:
        text = (logs / "access.log.1").read_text() + (logs / "access.log").read_text()
        return sorted(int(number) for number in re.findall(r"/rotation-(\d+) ", text))

    # Each worker hands its lines over when it likes.
    tree.wait_for(lambda: len(found()) >= sent)
    assert found() == list(range(sent))
    assert "log file is opened anew" in (tree.folder / "log").read_text()


def test_json_all_over(plant: Callable[..., Tree]) -> None:
    """Every line of every process: roles, keepers, tenants' output with tracebacks, and access logs."""
    tree = plant(
        extra='[log]\nformat = "json"',
        tenants=f"""
            [vhost.loud]
            hosts = ["loud.localhost"]
            uid = {UID}
            kind = "wsgi"
            root = "loud"
            application = "app:application"
            access_log = "json"
            log_level = "warning"
            """,
        hosts=("loud.localhost",),
        files={"loud/app.py": LOUD},
    )
    tree.expect("fails on purpose", "application failed")
    assert tree.get("loud.localhost", "/fails").status == 500
    tree.wait_for(lambda: '"event": "ready"' in tree.log())
    processes = tree.pids("umaster")
    (role,) = [pid for pid in processes if parent(pid) in processes]
    os.kill(role, signal.SIGKILL)
    tree.wait_for(lambda: "role died and is started again" in tree.log())
    tree.wait_for(lambda: tree.get("loud.localhost", "/").status == 200)
    wait_for(tree.folder / "log", '"target":"/fails"')
    # the last line may be half written
    entries = [json.loads(line) for line in tree.log().rpartition("\n")[0].splitlines()]
    events = {(entry["role"], entry["event"]) for entry in entries if "event" in entry}
    assert {("umaster", "role died and is started again"), ("init", "ready"), ("vhost", "output")} <= events
    printed = [entry["line"] for entry in entries if entry.get("event") == "output"]
    assert any(line.endswith("RuntimeError: fails on purpose") for line in printed)
    assert ("vhost", "application loaded") not in events  # below the tenant's own level
    assert any(entry.get("status") == 500 for entry in entries)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
