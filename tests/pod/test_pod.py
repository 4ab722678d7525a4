"""The rendered pod in use: under the same checks as compose, and each container's rights as the kernel has them."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyttpd.roles import ROLES, Channel, Role
from pyttpd.service import OWN_DIRECTORY

from e2e import test_compose
from support.pod import Pod

pytestmark = [
    pytest.mark.docker,
    pytest.mark.root,
    pytest.mark.program("podman", "nsenter", "unshare", "runc"),
    pytest.mark.timeout(600),
]

UIDS = {
    "init": 10000,
    "master": 10001,
    "umaster": 10002,
    "listener-http": 10010,
    "listener-metrics": 10009,
    "vhost-static": 20001,
    "vhost-wsgi": 20002,
    "vhost-evil": 20003,
}
#: What holds in compose and has to hold here: the same tests, on this tree.
AS_IN_COMPOSE = (
    test_compose.test_both_tenants_answer,
    test_compose.test_an_unknown_host_gets_421,
    test_compose.test_a_tenant_answers_for_the_other_one_no_more_than_for_a_stranger,
    test_compose.test_the_download_arrives_whole,
    test_compose.test_a_form_comes_back,
    test_compose.test_an_upload_arrives_whole,
    test_compose.test_a_streamed_answer_arrives_while_it_is_made,
    test_compose.test_a_slow_answer_holds_up_no_neighbour,
)


@pytest.mark.parametrize("check", AS_IN_COMPOSE, ids=lambda check: check.__name__)
def test_as_in_compose(check: Callable[..., None], request: pytest.FixtureRequest, tree: Pod) -> None:
    wanted = set(inspect.signature(check).parameters) - {"tree"}
    check(tree=tree, **{name: request.getfixturevalue(name) for name in wanted})


@pytest.mark.program("wrk")
@pytest.mark.parametrize("host", ["static.localhost", "wsgi.localhost"])
def test_a_second_of_load_loses_nothing(tree: Pod, host: str) -> None:
    command = ["wrk", "-t1", "-c16", "-d1s", "-H", f"Host: {host}", f"http://127.0.0.1:{tree.port}/"]
    done = subprocess.run([*tree.within(), *command], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "Requests/sec:" in done.stdout
    assert "Socket errors" not in done.stdout, done.stdout
    assert "Non-2xx" not in done.stdout, done.stdout


# ---- rights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", UIDS)
def test_every_process_has_its_uid_and_no_right(tree: Pod, container: str) -> None:
    processes = tree.processes(container)
    assert processes
    for process in processes:
        assert process.ids("Uid") == process.ids("Gid") == {UIDS[container]}, process.command()
        assert set(map(int, process.status["Groups"].split())) <= {UIDS[container]}
        # Not even init has one: the pod's sysctl lets anybody bind its ports.
        for which in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert process.capabilities(which) == 0, f"{which} of {process.command()}"
        assert process.status["NoNewPrivs"] == "1"
        assert process.status["Seccomp"] == "2"
    # What speaks to a peer or runs a tenant's code has a filter of its own on top of the engine's.
    for process in processes[1:]:
        assert int(process.status["Seccomp_filters"]) > 1, process.command()


def test_low_ports_are_bound_without_a_privilege(tree: Pod) -> None:
    read = ["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"]
    done = subprocess.run([*tree.within(), *read], capture_output=True, text=True, check=True)
    assert int(done.stdout) == tree.port == 80


@pytest.mark.parametrize("container", UIDS)
def test_the_network_is_shared_and_all_there_is(tree: Pod, container: str) -> None:
    """Which is why the first lock isn't there: the two others carry the promise."""
    own = {process.namespace("net") for process in tree.processes(container)}
    assert own == {tree.processes("init")[0].namespace("net")}
    assert own != {os.readlink("/proc/self/ns/net")}


@pytest.mark.parametrize("kind", ["pid", "mnt"])
def test_containers_share_no_processes_and_no_files(tree: Pod, kind: str) -> None:
    namespaces = {name: tree.processes(name)[0].namespace(kind) for name in UIDS}
    assert len(set(namespaces.values())) == len(UIDS), namespaces


@pytest.mark.parametrize("container", UIDS)
def test_a_channel_directory_is_writable_in_its_binders_container_alone(tree: Pod, container: str) -> None:
    """Tried as root of this machine through the container's own mounts: their flags hold for root as well."""
    row = ROLES[Role(container.partition("-")[0])]
    root = Path(f"/proc/{tree.processes(container)[0].pid}/root/run/pyttpd")
    assert {path.name for path in root.iterdir()} == {c.value for c in (*row.binds, *row.connects)}
    for channel in Channel:
        volume = root / channel.value
        if channel in row.connects:
            assert (volume / OWN_DIRECTORY / "sock").is_socket()
            with pytest.raises(OSError, match="Read-only file system"):
                (volume / "other").touch()
            with pytest.raises(OSError, match="Read-only file system"):
                (volume / OWN_DIRECTORY / "sock").unlink()
            with pytest.raises(OSError, match="Read-only file system"):
                (volume / OWN_DIRECTORY).rename(volume / "other")
        elif channel in row.binds:
            # The volume itself is everybody's to write, as the kubelet makes it; what the binder has made is its own.
            found = (volume / OWN_DIRECTORY).stat()
            assert volume.stat().st_mode & 0o7777 == 0o777
            assert (found.st_uid, found.st_mode & 0o7777) == (UIDS[container], 0o755)
            assert [path.name for path in (volume / OWN_DIRECTORY).iterdir()] == ["sock"]


@pytest.mark.parametrize("container", UIDS)
def test_nothing_can_be_written_but_what_was_given(tree: Pod, container: str) -> None:
    row = ROLES[Role(container.partition("-")[0])]
    expected = {"/run/health"} | {f"/run/pyttpd/{channel.value}" for channel in row.binds}
    if container.startswith("vhost-"):
        expected |= {"/tmp", "/dev/shm"}
    lines = Path(f"/proc/{tree.processes(container)[0].pid}/mountinfo").read_text().splitlines()
    writable = {line.split()[4] for line in lines if "rw" in line.split()[5].split(",")}
    # The kernel's and the engine's own; what is below /proc is masked by it where it matters.
    devices = {path for path in writable if path.startswith("/dev") and path != "/dev/shm"}
    writable = {path for path in writable - devices if not path.startswith(("/proc", "/sys"))}
    if not container.startswith("vhost-"):
        writable.discard("/dev/shm")  # the pod's, which no role's rules open
    assert writable == expected


def test_memory_is_a_tenant_s_own_and_bounded(tree: Pod) -> None:
    def device(container: str, path: str) -> int:
        return os.stat(f"/proc/{tree.processes(container)[0].pid}/root{path}").st_dev

    tenants = [name for name in UIDS if name.startswith("vhost-")]
    for path in ("/tmp", "/dev/shm", "/run/health"):
        assert len({device(name, path) for name in tenants}) == len(tenants)
    for name in tenants:
        found = os.statvfs(f"/proc/{tree.processes(name)[0].pid}/root/dev/shm")
        assert found.f_blocks * found.f_frsize == 64 * 2**20


# ---- probes, hooks, tests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_every_probe_says_that_all_is_well(tree: Pod, kind: str) -> None:
    assert [name for name in UIDS if not tree.probe(name, kind)] == []


def test_a_container_whose_process_stands_still_is_not_well(tree: Pod) -> None:
    """The state is of the keeper's own file: put aside, as if it had grown old."""
    state = Path(f"/proc/{tree.processes('master')[0].pid}/root/run/health/state")
    state.rename(state.with_name("aside"))
    try:
        assert not tree.probe("master", "livenessProbe")
        assert not tree.probe("master", "readinessProbe")
    finally:
        state.with_name("aside").rename(state)
    assert tree.probe("master", "livenessProbe")


def test_helm_s_tests_pass(tree: Pod) -> None:
    pods = tree.release.of("Pod")
    assert {pod["metadata"]["name"] for pod in pods} == {"pyttpd-test-serves", "pyttpd-test-refuses"}
    for pod in pods:
        script, cases = pod["spec"]["containers"][0]["args"]
        here = [case | {"address": "127.0.0.1"} for case in json.loads(cases)]
        command = [*tree.within(), sys.executable, "-I", "-c", script]
        done = subprocess.run([*command, json.dumps(here)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, "WRONG" in done.stdout) == (0, False), done.stdout
        wrong = [case | {"want": 418} for case in here[:1]] + [case | {"port": 1} for case in here[:1]]
        done = subprocess.run([*command, json.dumps(wrong)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout.count("WRONG")) == (1, 2), done.stdout


def test_the_ports_that_the_manifest_names_are_the_ports(tree: Pod) -> None:
    for container, one in tree.release.containers().items():
        for port in one.get("ports", ()):
            with tree.connect(port=port["containerPort"]):
                pass
        assert container in UIDS
