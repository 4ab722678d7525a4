"""A rolling update: a second pod behind a balancer, the first one ended under load, and no request fails.

haproxy stands for the Service. As in a cluster, the balancer hears some time after the pod that this is to leave: in
between, new connections still come to it (`drain.delaySeconds` is for that).
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pod.conftest import render
from support.chart import Helm
from support.pod import Pod, Podman, in_network_of, playing

pytestmark = [
    pytest.mark.docker,
    pytest.mark.root,
    pytest.mark.program("podman", "nsenter", "unshare", "runc", "haproxy", "ip"),
    pytest.mark.timeout(600),
]

#: How long (s) the pod that leaves serves as ever, and when in this time the balancer hears of it.
DELAY, HEARD_AFTER = 6, 1.0
#: How long before the end of its process a listener has left umaster (s), at the most.
LEFT_BEFORE = 0.1
GRACE = 10
CLIENTS = 8
#: Point-to-point links between the balancer's namespace and each pod's, in a network that is for examples.
LINKS = (("192.0.2.1", "192.0.2.2"), ("192.0.2.5", "192.0.2.6"))
CONFIGURATION = """\
global
    stats socket {socket} level admin
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    option http-keep-alive
    # A client's connection is one to a pod, as through a Service; shared ones would mix hosts, and get 421.
    http-reuse never
frontend service
    bind 127.0.0.1:8000
    default_backend pods
backend pods
    server pod0 192.0.2.2:80
    server pod1 192.0.2.6:80 disabled
"""


@dataclass(slots=True)
class Load:
    """Clients that ask again and again, half of them on one connection each, half on a new one for each request."""

    balancer: int
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)

    def client(self, number: int) -> None:
        host, path = [("static.localhost", "/"), ("wsgi.localhost", "/slow?seconds=0.2")][number % 2]
        headers = {"Host": host} | ({"Connection": "close"} if number < CLIENTS // 2 else {})
        with in_network_of(self.balancer):
            connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=30)
            while not self.ending.is_set():
                try:
                    connection.request("GET", path, headers=headers)
                    answer = connection.getresponse()
                    answer.read()
                    if answer.status == 200:
                        self.answers[host] += 1
                    else:
                        self.failures.append(f"{host}: {answer.status}")
                except (OSError, http.client.HTTPException) as error:
                    self.failures.append(f"{host}: {error!r}")
                    connection.close()
            connection.close()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.client, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.ending.set()
            for thread in threads:
                thread.join()


@contextlib.contextmanager
def namespace() -> Iterator[int]:
    """A network namespace of the balancer's; yields the pid of who holds it."""
    script = "ip link set lo up && echo up && exec sleep infinity"
    command = ["unshare", "--net", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n"
        try:
            yield holder.pid
        finally:
            holder.kill()


def link(balancer: int, pod: int, number: int) -> None:
    """Join the two namespaces by a pair of interfaces with the addresses of LINKS."""
    here, there = LINKS[number]
    inside = ["nsenter", f"--net=/proc/{balancer}/ns/net", "ip"]
    subprocess.run([*inside, *f"link add v{number} type veth peer name eth0 netns {pod}".split()], check=True)
    subprocess.run([*inside, "address", "add", f"{here}/30", "dev", f"v{number}"], check=True)
    subprocess.run([*inside, "link", "set", f"v{number}", "up"], check=True)
    other = ["nsenter", f"--net=/proc/{pod}/ns/net", "ip"]
    subprocess.run([*other, "address", "add", f"{there}/30", "dev", "eth0"], check=True)
    subprocess.run([*other, "link", "set", "eth0", "up"], check=True)


@contextlib.contextmanager
def balancer(holder: int, folder: Path) -> Iterator[Path]:
    """haproxy in the namespace; yields its control socket."""
    control = folder / "control"
    (folder / "haproxy.cfg").write_text(CONFIGURATION.format(socket=control))
    command = ["nsenter", f"--net=/proc/{holder}/ns/net", "haproxy", "-f", str(folder / "haproxy.cfg")]
    with (
        (folder / "haproxy.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            deadline = time.monotonic() + 20
            while not control.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            yield control
        finally:
            process.kill()


def say(control: Path, command: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(control))
        sock.sendall(f"{command}\n".encode())
        answer = sock.recv(4096).strip()
        assert answer == b"", answer


def wait_until(what: str, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_the_end_of_a_pod_loses_no_request(helm: Helm, engine: Podman, tmp_path: Path) -> None:
    release = render(helm, drain={"delaySeconds": DELAY}, config={"grace": GRACE})
    with (
        namespace() as holder,
        playing(engine, release, "old", mortal=True) as old,
        playing(engine, release, "new", mortal=True) as new,
    ):
        for number, pod in enumerate((old, new)):
            link(holder, pod.pids["init"], number)
        load = Load(holder)
        with balancer(holder, tmp_path) as control, load.running():
            wait_until("the first pod serves", lambda: min(load.answers.values(), default=0) > 20)
            say(control, "set server pods/pod1 state ready")
            ended: dict[str, float] = {}
            leaving = threading.Thread(target=lambda: ended.update(old.end()))
            leaving.start()
            time.sleep(HEARD_AFTER)
            say(control, "set server pods/pod0 state maint")
            leaving.join()
            before = load.answers.total()
            wait_until("the second pod serves alone", lambda: load.answers.total() > before + 100)
        assert load.failures == [], (load.answers, old.logs()[-3000:])
        assert taken_by(new) > 0
    first, rest = ended["listener-http"], {k: v for k, v in ended.items() if not k.startswith("listener")}
    assert set(ended) == set(release.containers())
    assert first >= DELAY
    # They wait until it has left umaster, which is a moment before its process has ended.
    assert all(took >= first - LEFT_BEFORE for took in rest.values()), ended
    assert ended["init"] == max(ended.values())
    assert max(ended.values()) < release.pod["terminationGracePeriodSeconds"]


def taken_by(pod: Pod) -> float:
    return sum(
        value for (name, *_), value in pod.samples("umaster").items() if name == "pyttpd_umaster_taken_total"
    )
