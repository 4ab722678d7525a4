"""docs/production.md and docs/upgrading.md as an operator follows them: their commands are run as they stand there.

That happens in a mount namespace in which /etc, /srv, /var/log and /run are the test's own, so paths and users are
those of the document; only the ports are others. systemd isn't PID 1 here: its unit is judged by systemd-analyze, and
what it starts is started as it says, with the capabilities and the notification socket that it would have.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyttpd.config.schema import SCHEMA

from support.leaks import descendants
from support.tree import METRICS_PORTS, READY_WITHIN, free_port, free_ports

TOP = Path(__file__).resolve().parents[2]
UNIT = TOP / "examples" / "systemd" / "pyttpd.service"
PRIVATE = ("/etc", "/srv", "/var/log")

pytestmark = [
    pytest.mark.root,
    pytest.mark.program("unshare", "nsenter", "setpriv", "logrotate", "systemd-analyze"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes users and namespaces"),
]


def blocks(name: str) -> list[str]:
    """Return the commands of a document that can be run here: its blocks of `sh`. The others take systemd."""
    text = (TOP / "docs" / name).read_text()
    found = re.findall(r"^( *)```sh\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def setting(name: str) -> list[str]:
    """Return what the unit says under `name`, in order."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


class Machine:
    """A mount namespace that looks like a machine which has only just got its clone in /srv/pyttpd."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.metrics_port = free_port(), free_ports(METRICS_PORTS)
        layers = [f"mount -t tmpfs -o mode=755 none {folder}", f"mkdir {folder}/lower"]
        for place in PRIVATE:
            name = place.strip("/").replace("/", "-")
            upper = f"{folder}/{name}"
            options = f"lowerdir={place},upperdir={upper},workdir={upper}-work"
            layers += [f"mkdir {upper} {upper}-work", f"mount -t overlay -o {options} none {place}"]
        layers += [
            "mount -t tmpfs -o mode=755 none /run",
            "rm -rf /srv/pyttpd* /etc/pyttpd",
            "mkdir /srv/pyttpd",
        ]
        layers += [f"ln -s {sys.prefix} /srv/pyttpd/.venv", f"ln -s {TOP}/examples /srv/pyttpd/examples"]
        script = "; ".join([*layers, "echo; exec sleep 600"])
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "bash", "-ec", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if not self._holder.stdout.readline():
            pytest.fail(self._holder.stderr.read().decode())
        self.tree: subprocess.Popen[bytes] | None = None

    @property
    def enter(self) -> list[str]:
        return ["nsenter", "--target", str(self._holder.pid), "--mount", "--wd=/"]

    def run(self, command: str) -> str:
        """Run a block of a document in a shell that stops at the first error; return what it prints."""
        for address, here in (("0.0.0.0", "127.0.0.1"), ("[::]", "[::1]")):
            command = command.replace(f'"{address}:80"', f'"{here}:{self.port}"')
        command = command.replace("[log]\n", f"[metrics]\nbase_port = {self.metrics_port}\n\n[log]\n")
        done = subprocess.run(
            [*self.enter, "bash", "-ec", command],
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def start(self) -> None:
        """Do what systemd does with the unit: see that ExecStartPre is well, start ExecStart, wait for READY=1."""
        for command in setting("ExecStartPre"):
            self.run(command)
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
            open(self.folder.with_suffix(".log"), "ab") as log,
        ):
            notified.bind(f"\0{self.folder}")
            notified.settimeout(READY_WITHIN)
            kept = " ".join(setting("CapabilityBoundingSet")).lower().replace("cap_", "").split()
            bounding = ",+".join(["-all", *kept])
            limits = ["setpriv", "--bounding-set", bounding, "--inh-caps", "-all", "--no-new-privs"]
            self.tree = subprocess.Popen(
                [*self.enter, *limits, *setting("ExecStart")[0].split()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "NOTIFY_SOCKET": f"@{self.folder}"},
            )
            try:
                assert notified.recv(100) == b"READY=1"
            except TimeoutError:
                pytest.fail(self.log())

    def stop(self) -> None:
        if self.tree is not None and self.tree.poll() is None:
            self.tree.send_signal(signal.SIGTERM)  # KillMode=mixed: to the runner alone
            assert self.tree.wait(int(setting("TimeoutStopSec")[0])) == 0, self.log()
            assert "] error: " not in self.log()

    def log(self) -> str:
        return self.folder.with_suffix(".log").read_text()

    def get(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Host": "blog.example"})
            response = connection.getresponse()
            response.read()
            return response.status

    def read(self, path: str) -> bytes:
        """Return what is in a file of the namespace, b"" if there is none."""
        try:
            data = Path(f"/proc/{self._holder.pid}/root{path}").read_bytes()
        except FileNotFoundError:
            return b""
        return gzip.decompress(data) if path.endswith(".gz") else data

    def close(self) -> None:
        if self.tree is not None and self.tree.poll() is None:
            for pid in {self.tree.pid, *descendants(self.tree.pid)}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.tree.wait()
        self._holder.kill()
        self._holder.communicate()


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    folder = Path(tempfile.mkdtemp(prefix="pyttpd-production-", dir="/var/tmp"))
    made = Machine(folder)
    try:
        yield made
    finally:
        made.close()
        folder.with_suffix(".log").unlink(missing_ok=True)
        shutil.rmtree(folder)


def test_the_documents_have_blocks_to_run() -> None:
    assert len(blocks("production.md")) == 4
    assert len(blocks("upgrading.md")) == 3


def test_alerts_are_about_metrics_that_exist() -> None:
    known = "".join(path.read_text() for path in (TOP / "services").glob("*/README.md"))
    text = (TOP / "docs" / "production.md").read_text()
    wanted = set(re.findall(r"pyttpd_[a-z_]+(?=[ {\[])", text))
    assert len(wanted) >= 4
    assert {name for name in wanted if f"`{name}" not in known} == set()
    for reason in re.findall(r'reason="([a-z-]+)"', text):
        assert f"`{reason}`" in known


def test_from_nothing_to_a_site(machine: Machine) -> None:
    configure, tenant, start, _ = blocks("production.md")
    machine.run(configure)
    said = machine.run(tenant)
    assert "/etc/pyttpd: valid: 2 listeners, 1 vhost, 2 host names" in said
    assert machine.run("id -u blog").strip() == "20001"
    said = machine.run(start)
    assert said == ""  # systemd-analyze verify has nothing to say
    machine.start()
    assert machine.get("/?first") == 200
    found = machine.run("ls -l /var/log/pyttpd")
    assert re.search(r"-rw-r----- 1 blog adm +\d+ .* blog\.access\.log", found)
    end = time.monotonic() + 10
    while b"/?first" not in machine.read("/var/log/pyttpd/blog.access.log"):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert "/?first" not in machine.log()
    status = f"/srv/pyttpd/.venv/bin/pyttpd status --metrics 127.0.0.1:{machine.metrics_port}"
    assert "blog" in machine.run(status)
    machine.stop()


def test_rotation_with_debian_s_logrotate_loses_no_line(machine: Machine) -> None:
    """Three rotations under load: each line once, in one of the files."""
    said = machine.run(blocks("production.md")[3])
    assert "error: " not in said, said
    machine.start()
    stop = threading.Event()
    sent: list[int] = []

    def ask() -> None:
        while not stop.is_set():
            assert machine.get(f"/?number={len(sent)}") == 200
            sent.append(len(sent))

    load = threading.Thread(target=ask)
    load.start()
    try:
        for number in range(1, 4):
            machine.run(f"logrotate --force --state {machine.folder}/state /etc/logrotate.d/pyttpd")
            end = time.monotonic() + 10
            while b"/?number=" not in machine.read("/var/log/pyttpd/blog.access.log"):
                assert time.monotonic() < end, machine.log()[-2000:]
                time.sleep(0.02)
            assert b"/?" in machine.read("/var/log/pyttpd/blog.access.log.1"), number
            assert machine.tree is not None
            machine.tree.send_signal(signal.SIGUSR1)  # what other servers' snippets do: no harm
    finally:
        stop.set()
        load.join()
    machine.get("/?last")
    end = time.monotonic() + 10
    while b"/?last" not in machine.read("/var/log/pyttpd/blog.access.log"):
        assert time.monotonic() < end
        time.sleep(0.02)
    names = ("blog.access.log.3.gz", "blog.access.log.2.gz", "blog.access.log.1", "blog.access.log")
    text = b"".join(machine.read(f"/var/log/pyttpd/{name}") for name in names).decode()
    found = [int(number) for number in re.findall(r"/\?number=(\d+) ", text)]
    assert len(sent) > 20
    assert sorted(found) == sent  # each once; two workers' lines may be a moment out of order
    assert re.search(r"-rw-r----- 1 blog adm .* blog\.access\.log\n", machine.run("ls -l /var/log/pyttpd"))
    machine.stop()


def test_an_upgrade_and_the_way_back(machine: Machine) -> None:
    link, check, switch = blocks("upgrading.md")
    machine.run(link)
    machine.run("cp -a /srv/pyttpd-0.1.0 /srv/pyttpd-0.2.0")
    assert "valid" in machine.run(check)
    machine.run(switch)
    machine.start()
    assert machine.get("/") == 200
    machine.run("ln -sfn pyttpd-0.1.0 /srv/pyttpd")
    machine.stop()
    assert "pyttpd" not in machine.run("ls -A /run")


def test_the_unit_is_in_step_with_the_rest() -> None:
    grace = next(key.default for key in SCHEMA.keys if key.name == "grace")
    assert isinstance(grace, float)
    assert int(setting("TimeoutStopSec")[0]) >= grace + 10
    assert setting("KillMode") == ["mixed"]
    assert setting("Type") == ["notify"]
    # A stopped process would not hear the usual SIGABRT.
    assert (int(setting("WatchdogSec")[0]), setting("WatchdogSignal")) == (30, ["SIGKILL"])
    assert setting("RestartPreventExitStatus") == ["2"]
    # what the locks themselves are set with must not be filtered away
    allowed = " ".join(setting("SystemCallFilter")).split()
    landlock = {f"landlock_{name}" for name in ("create_ruleset", "add_rule", "restrict_self")}
    assert landlock | {"seccomp", "unshare"} <= {*allowed}
    assert setting("RestrictNamespaces") == []
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=55", str(UNIT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-300:] + result.stderr
