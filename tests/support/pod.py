"""The rendered pod, run for real: by podman, as the kubelet would run it.

What podman 4.3 doesn't do as a kubelet does is done here, each for itself:

- *emptyDir in memory*: podman would make directories of the machine's disk, with owners of its choice. Here each is a
  tmpfs that belongs to root with mode 0777 and has the size that the manifest says, which is what the kubelet makes.
- *a native sidecar* (an init container that goes on): played as an ordinary container, started first and ended last.
- *sysctls*: set in the pod's network namespace before a container starts.
- *probes and hooks*: `probe` and `end` run the commands of the manifest within the containers.
- *ports*: the pod has a network namespace with nothing but its loopback; clients of a test enter it.

podman makes a control group of the pod for every controller that it finds a folder of; on a machine where some of them
aren't mounted it would fail. So it runs in a mount namespace that has only those that are.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import leaks
from support.chart import Object, Release
from support.compose import ANSWER_WITHIN, Deployment, Process
from support.images import build

TAG = "test"
RUNTIME = shutil.which("runc") or "/usr/sbin/runc"
IMAGES = ("init", "master", "umaster", "listener", "vhost", "vhost-static", "vhost-wsgi")
#: podman loads seven images, or starts ten containers, while the machine is busy with other tests (s).
PODMAN_WITHIN = 120.0
#: For a new pod to be ready (s).
READY_WITHIN = 60.0
#: What a Kubernetes node has and this machine's limits allow.
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=8192:8192"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
"""
#: Binds the controllers that are mounted below a new /sys/fs/cgroup, in a mount namespace of our own.
HOLD = """
set -e
mount --make-rprivate /
new=$(mktemp -d)
mount -t tmpfs -o mode=755 tmpfs "$new"
if awk '$2 == "/sys/fs/cgroup" && $3 == "cgroup2" {found = 1} END {exit !found}' /proc/mounts; then
    umount "$new"
else
    awk '$3 == "cgroup" {print $2}' /proc/mounts | while read -r mounted; do
        mkdir "$new/$(basename "$mounted")"
        mount --bind "$mounted" "$new/$(basename "$mounted")"
    done
    mount --rbind "$new" /sys/fs/cgroup
fi
echo held
exec sleep infinity
"""
#: Keys of a container that are done here, or that podman doesn't know.
NOT_PLAYED = ("restartPolicy", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "ports")
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def in_network_of(pid: int) -> Iterator[None]:
    """Let this thread make its sockets in the network namespace of `pid`."""

    def enter(namespace: int) -> None:
        if _libc.setns(namespace, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")

    with open("/proc/thread-self/ns/net", "rb") as ours, open(f"/proc/{pid}/ns/net", "rb") as theirs:
        enter(theirs.fileno())
        try:
            yield
        finally:
            enter(ours.fileno())


@dataclass(slots=True)
class Podman:
    """podman with a store of its own, in a mount namespace of its own."""

    folder: Path
    holder: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        (self.folder / "containers.conf").write_text(CONTAINERS_CONF)
        leaks.engines.add(str(self.folder))
        self.holder = subprocess.Popen(
            ["unshare", "--mount", "bash", "-c", HOLD], stdout=subprocess.PIPE, text=True
        )
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == "held\n"

    def inside(self, *command: str) -> list[str]:
        return ["nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", *command]

    def __call__(self, *arguments: str, check: bool = True, stdin: Any = None) -> str:
        """Run podman and return what it printed to standard output."""
        command = self.inside(
            *("podman", "--runtime", RUNTIME, "--root", f"{self.folder}/store"),
            *("--runroot", f"{self.folder}/run", "--tmpdir", f"{self.folder}/tmp", *arguments),
        )
        environment = os.environ | {"CONTAINERS_CONF": f"{self.folder}/containers.conf"}
        done = subprocess.run(
            command, env=environment, stdin=stdin, capture_output=True, text=True, timeout=PODMAN_WITHIN
        )
        if check and done.returncode:
            pytest.fail(f"podman {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
        return done.stdout + (done.stderr if "logs" in arguments else "")

    def load(self) -> None:
        """Take the images over from Docker, which has built them."""
        build(TAG)
        names = [f"pyttpd-{name}:{TAG}" for name in IMAGES]
        with subprocess.Popen(["docker", "save", *names], stdout=subprocess.PIPE) as saved:
            self("load", stdin=saved.stdout)
        assert saved.returncode == 0

    def close(self) -> None:
        """End everything that was started, and take the store away."""
        self("pod", "rm", "--force", "--all", "--time", "0", check=False)
        deadline = time.monotonic() + PODMAN_WITHIN
        while left := [pid for pid in leaks.everybody() if leaks.of_an_engine(pid)]:
            assert time.monotonic() < deadline, [leaks.arguments(pid) for pid in left]
            time.sleep(0.1)
        leaks.engines.discard(str(self.folder))
        self.holder.kill()
        self.holder.wait()
        assert self.holder.stdout is not None
        self.holder.stdout.close()
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def podman() -> Iterator[Podman]:
    """podman with all images."""
    found = Podman(Path(tempfile.mkdtemp(prefix="pyttpd-podman-", dir="/var/tmp")))
    try:
        found.load()
        yield found
    finally:
        found.close()


@dataclass(slots=True)
class Pod(Deployment):
    """One running pod of a release. Its containers have the names of compose's services."""

    engine: Podman = field(kw_only=True)
    release: Release = field(kw_only=True)
    mortal: bool = field(default=False, kw_only=True)
    pids: dict[str, int] = field(default_factory=dict)

    # ---- starting and ending it --------------------------------------------------------------------------------------

    def _manifest(self) -> str:
        spec: Object = json.loads(json.dumps(self.release.pod))
        spec["containers"] = [*spec.pop("initContainers"), *spec["containers"]]
        spec["restartPolicy"] = "Never" if self.mortal else "Always"
        for container in spec["containers"]:
            container["image"] = f"localhost/{container['image']}"
            for key in NOT_PLAYED:
                container.pop(key, None)
        for volume in spec["volumes"]:
            if memory := volume.pop("emptyDir", None):
                assert memory["medium"] == "Memory"
                size = memory["sizeLimit"].replace("Ki", "k").replace("Mi", "m")
                path = f"{self.engine.folder}/{self.project}/{volume['name']}"
                options = f"mode=0777,uid=0,gid=0,size={size},nosuid,nodev"
                subprocess.run(
                    self.engine.inside(
                        "sh", "-ec", f"mkdir -p {path}; mount -t tmpfs -o {options} tmpfs {path}"
                    ),
                    check=True,
                )
                volume["hostPath"] = {"path": path, "type": "Directory"}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.project, "labels": {}},
            "spec": spec,
        }
        return yaml.safe_dump_all([*self.release.of("ConfigMap"), pod], sort_keys=False)

    def up(self) -> None:
        """Start it, and wait until every startup probe says that it has started."""
        manifest = self.engine.folder / f"{self.project}.yaml"
        manifest.write_text(self._manifest())
        self.engine("kube", "play", "--network", "none", "--start=false", str(manifest))
        infra = json.loads(self.engine("pod", "inspect", self.project))["InfraContainerID"]
        self.engine("start", infra)
        (found,) = json.loads(self.engine("inspect", infra))
        for sysctl in self.release.pod["securityContext"].get("sysctls", ()):
            path = f"/proc/sys/{sysctl['name'].replace('.', '/')}"
            script = f"echo {sysctl['value']} > {path}"
            enter = ["nsenter", f"--net=/proc/{found['State']['Pid']}/ns/net"]
            subprocess.run([*enter, "sh", "-c", script], check=True)
        first, *others = (f"{self.project}-{name}" for name in self.release.containers())
        self.engine("start", first)
        self.refresh()
        self.wait_for(lambda: self.probe("init", "startupProbe"), READY_WITHIN)
        self.engine("start", *others)
        self.refresh()
        self.wait_for(
            lambda: all(self.probe(name, "startupProbe") for name in self.pids),
            READY_WITHIN,
            why=lambda: [name for name in self.pids if not self.probe(name, "startupProbe")],
        )

    def refresh(self) -> None:
        """Find the containers' first processes: they have others once they were started again."""
        names = self.release.containers()
        found = json.loads(self.engine("inspect", *(f"{self.project}-{name}" for name in names)))
        self.pids = {one["Name"].removeprefix(f"{self.project}-"): one["State"]["Pid"] for one in found}

    def started_again(self, container: str, before: int) -> bool:
        """Return whether a container runs whose first process was `before`, and is another one now."""
        self.refresh()
        return self.pids[container] not in (0, before)

    def said(self, container: str) -> float:
        """Return when a container's health file was written last (Unix time)."""
        return os.stat(f"/proc/{self.pids[container]}/root/run/health/state").st_mtime

    def run(self, container: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command of the manifest in a container, as its uid."""
        uid = self.release.containers()[container]["securityContext"]["runAsUser"]
        enter = ["nsenter", "--all", f"--target={self.pids[container]}", f"--setuid={uid}", f"--setgid={uid}"]
        return subprocess.run([*enter, *command], capture_output=True, text=True, timeout=PODMAN_WITHIN)

    def probe(self, container: str, kind: str) -> bool:
        """Return whether a probe succeeds; one that a container doesn't have does."""
        probe = self.release.containers()[container].get(kind)
        return probe is None or self.run(container, probe["exec"]["command"]).returncode == 0

    def end(self) -> dict[str, float]:
        """End it as the kubelet does; return how long (s) each container took.

        Hook and then SIGTERM in all containers at once, the sidecar when all others have ended. podman must not start
        them again (`mortal`).
        """
        grace = self.release.pod["terminationGracePeriodSeconds"]
        began = time.monotonic()

        def leave(name: str) -> float:
            pidfd = os.pidfd_open(self.pids[name])
            try:
                hook = self.release.containers()[name].get("lifecycle", {}).get("preStop")
                if hook is not None:
                    assert self.run(name, hook["exec"]["command"]).returncode == 0
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                left = grace - (time.monotonic() - began)
                if not select.select([pidfd], [], [], max(0.0, left))[0]:
                    pytest.fail(f"{name} is still there after {grace} s:\n{self.logs(name)[-3000:]}")
                return time.monotonic() - began
            finally:
                os.close(pidfd)

        others = [name for name in self.pids if name != "init"]
        with ThreadPoolExecutor(len(others)) as pool:
            took = dict(zip(others, pool.map(leave, others), strict=True))
        return took | {"init": leave("init")}

    def down(self) -> None:
        self.engine("pod", "rm", "--force", "--time", "0", self.project)

    # ---- looking at it -----------------------------------------------------------------------------------------------

    def tenants(self) -> tuple[str, ...]:
        return ("static", "wsgi")

    def services(self) -> list[str]:
        return sorted(self.pids)

    def logs(self, service: str = "") -> str:
        names = [service] if service else self.services()
        return "".join(self.engine("logs", f"{self.project}-{name}", check=False) for name in names)

    def processes(self, service: str) -> list[Process]:
        return Process.tree(self.pids[service])

    # ---- asking it ---------------------------------------------------------------------------------------------------

    def connect(self, timeout: float = ANSWER_WITHIN, port: int = 0) -> socket.socket:
        with in_network_of(self.pids["init"]):
            sock = socket.socket()
        sock.settimeout(timeout)
        try:
            sock.connect(("127.0.0.1", port or self.port))
        except OSError:
            sock.close()
            raise
        return sock

    def client(self, port: int, timeout: float) -> http.client.HTTPConnection:
        found = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        found.sock = self.connect(timeout, port)
        return found

    def within(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pids['init']}/ns/net"]


@contextlib.contextmanager
def playing(engine: Podman, release: Release, name: str, *, mortal: bool = False) -> Iterator[Pod]:
    """Play one pod of `release`, and take it away."""
    (listener,) = release.of("Service")[0]["spec"]["ports"]
    pod = Pod(name, listener["targetPort"], 9100, 9109, engine=engine, release=release, mortal=mortal)
    try:
        pod.up()
        yield pod
        alerts = pod.alerts()
    finally:
        pod.down()
    assert not alerts, "in the log: " + "\n".join(alerts)
