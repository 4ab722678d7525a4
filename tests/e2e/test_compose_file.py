"""compose.yaml against the table of roles: its volumes, uids and rights are the map of trust, and must be the true one.

Only the client's reading of the file is needed, no engine, no image.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pyttpd.config.loader import load
from pyttpd.roles import METRICS_LISTENER, METRICS_LISTENER_UID, ROLES, Channel, Role, binder_of

from support.images import TOP

pytestmark = pytest.mark.docker

#: Capabilities beyond none, by service.
CAPABILITIES = {"net": {"NET_ADMIN"}, "init": {"NET_BIND_SERVICE"}}
CONFIG_READERS = {"init", "master"}


@pytest.fixture(scope="module")
def model() -> dict[str, Any]:
    done = subprocess.run(
        ["docker", "compose", "config", "--format", "json"],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def services(model: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = model["services"]
    return found


def role_of(service: str) -> Role:
    return Role("init" if service == "net" else service.partition("-")[0])


def test_there_is_a_service_for_each_role_listener_and_tenant(services: dict[str, Any]) -> None:
    config = load(str(TOP / "examples/compose/pyttpd.toml"))
    expected = {"net", "init", "master", "umaster"}
    expected |= {f"listener-{one.name}" for one in config.listeners}
    expected |= {f"vhost-{one.name}" for one in config.vhosts}
    assert set(services) == expected


def test_uids_are_the_tables_and_the_configurations(services: dict[str, Any]) -> None:
    config = load(str(TOP / "examples/compose/pyttpd.toml"))
    expected = {"net": 0} | {r.value: ROLES[r].uid for r in (Role.INIT, Role.MASTER, Role.UMASTER)}
    expected |= {f"listener-{one.name}": one.uid for one in config.listeners}
    expected |= {f"vhost-{one.name}": one.uid for one in config.vhosts}
    assert expected[f"listener-{METRICS_LISTENER}"] == METRICS_LISTENER_UID
    assert {name: one["user"] for name, one in services.items()} == {
        n: f"{u}:{u}" for n, u in expected.items()
    }


def test_directories_are_writable_for_their_binder_alone(services: dict[str, Any]) -> None:
    for name, service in services.items():
        row = ROLES[role_of(name)]
        mounts = {} if name == "net" else dict.fromkeys(row.connects, True) | dict.fromkeys(row.binds, False)
        found = {
            Channel(mount["target"].removeprefix("/run/pyttpd/")): bool(mount.get("read_only"))
            for mount in service.get("volumes", ())
            if mount["type"] == "volume"
        }
        assert found == mounts, name


def test_directories_belong_to_their_binder(model: dict[str, Any]) -> None:
    for channel in Channel:
        options = model["volumes"][f"channel-{channel.value}"]["driver_opts"]
        settings = dict(part.partition("=")[::2] for part in options["o"].split(","))
        assert options["type"] == "tmpfs"
        assert int(settings["uid"]) == int(settings["gid"]) == ROLES[binder_of(channel)].uid
        # service.bind() takes no directory that others may write in.
        assert int(settings["mode"], 8) == 0o755


def test_only_init_and_master_read_the_configuration(services: dict[str, Any]) -> None:
    for name, service in services.items():
        binds = [mount for mount in service.get("volumes", ()) if mount["type"] == "bind"]
        assert [mount["target"] for mount in binds] == (["/etc/pyttpd"] if name in CONFIG_READERS else [])
        assert all(mount["read_only"] for mount in binds)


def test_rights_are_taken_away(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert set(service.get("cap_add", ())) == CAPABILITIES.get(name, set())
        assert "no-new-privileges:true" in service["security_opt"]
        assert not service.get("privileged") and not service.get("devices") and not service.get("pid")
        assert int(service["mem_limit"]) <= 512 * 1024 * 1024
        assert 0 < service["pids_limit"] <= 128
        assert service["restart"] == "unless-stopped"
        assert service["logging"]["options"]["max-size"]
        assert service["healthcheck"]["test"][-1] == "pyttpd.health"


def test_only_the_holder_has_a_network(services: dict[str, Any]) -> None:
    modes = {name: service.get("network_mode") for name, service in services.items()}
    assert modes.pop("net") is None
    assert modes.pop("init") == "service:net"
    assert set(modes.values()) == {"none"}


def test_ports_are_published_on_loopback_and_are_the_configurations(services: dict[str, Any]) -> None:
    config = load(str(TOP / "examples/compose/pyttpd.toml"))
    ports = {int(port["target"]) for port in services["net"]["ports"]}
    base = config.metrics.base_port
    roles = {base + (ROLES[role].metrics_offset or 0) for role in (Role.INIT, Role.MASTER, Role.UMASTER)}
    listeners = {one.address.port for one in config.listeners} | {
        one.metrics_port for one in config.listeners
    }
    assert ports == roles | listeners
    assert {port["host_ip"] for port in services["net"]["ports"]} == {"127.0.0.1"}
    assert all(not service.get("ports") for name, service in services.items() if name != "net")


def test_a_container_has_longer_than_its_role_to_leave(services: dict[str, Any]) -> None:
    grace = load(str(TOP / "examples/compose/pyttpd.toml")).grace
    for service in services.values():
        assert re.fullmatch(r"\d+s", service["stop_grace_period"])
        assert int(service["stop_grace_period"][:-1]) > grace


# ---- the profile observability ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watchers() -> dict[str, Any]:
    done = subprocess.run(
        ["docker", "compose", "--profile", "observability", "config", "--format", "json"],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=True,
    )
    services = json.loads(done.stdout)["services"]
    return {name: services[name] for name in ("prometheus", "grafana")}


def test_who_watches_has_no_right_either(watchers: dict[str, Any]) -> None:
    for service in watchers.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert {port["host_ip"] for port in service["ports"]} == {"127.0.0.1"}


def test_what_is_mounted_is_there(watchers: dict[str, Any]) -> None:
    for service in watchers.values():
        binds = [mount for mount in service["volumes"] if mount["type"] == "bind"]
        assert binds
        for mount in binds:
            assert Path(mount["source"]).exists(), mount["source"]
            assert mount["read_only"]


def test_every_tenant_of_the_example_is_scraped() -> None:
    config = load(str(TOP / "examples/compose/pyttpd.toml"))
    text = (TOP / "examples/observability/prometheus.yml").read_text()
    found = re.findall(r"\b([a-z0-9-]+)@net:9110", text)
    assert found == [one.name for one in config.vhosts]
    ports = set(map(int, re.findall(r"net:(\d+)", text)))
    assert ports == {
        port for one in config.listeners for port in (one.metrics_port, one.address.port) if port > 1024
    } | {config.metrics.base_port + offset for offset in (0, 1, 2)}
