"""The same in containers: one after the other is replaced, and processes in them are killed and stopped, under load.

Containers are replaced as an operator does it, `docker compose up -d --no-deps --force-recreate ROLE`. What a tenant's
container had parked is closed then, cleanly; nobody is refused, and whoever comes meanwhile waits.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chaos import clients, sums
from chaos.content import files
from chaos.schedule import Action, Deed
from chaos.stage import HELD, Done, crowd, in_words, report, table
from support.compose import Deployment, running
from support.images import TOP

#: Without `make chaos`. Each thing is done at least once, however long that takes.
CI_SECONDS = 60.0
SEED = int(os.environ.get("PYTTPD_CHAOS_SEED") or 1)
SECONDS = float(os.environ.get("PYTTPD_CHAOS_SECONDS") or CI_SECONDS)
pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(SECONDS + 600)]

SERVICES = ("master", "umaster", "listener-http", "vhost-static", "vhost-wsgi", "init")
HOSTS = ("wsgi.localhost", "static.localhost")
BACK_WITHIN = 90.0
#: The example's other tenants are none of this tree: a profile that nobody chooses keeps them away.
OVERRIDE = """
services:
  vhost-static: {{ volumes: ["{folder}/site:/srv/chaos:ro"] }}
  vhost-wsgi: {{ volumes: ["{folder}/application:/srv/chaos:ro"] }}
  vhost-asgi: {{ profiles: [absent] }}
  vhost-cgi: {{ profiles: [absent] }}
  vhost-fastcgi: {{ profiles: [absent] }}
  vhost-scgi: {{ profiles: [absent] }}
  vhost-handoff: {{ profiles: [absent] }}
"""
#: Who comes while a container is replaced waits for as long as a busy engine takes.
CONFIG = """
[listen.http]
address = "0.0.0.0:80"
handover_timeout = 60.0
[metrics]
address = "0.0.0.0"
base_port = 9100
[vhost.static]
hosts = ["static.localhost"]
uid = 20001
kind = "static"
root = "/srv/chaos"
[vhost.static.queue]
timeout = 60.0
[vhost.wsgi]
hosts = ["wsgi.localhost"]
uid = 20002
kind = "wsgi"
root = "/srv/chaos"
application = "app:application"
[vhost.wsgi.pool]
max_threads = 4
[vhost.wsgi.queue]
timeout = 60.0
"""


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Deployment]:
    contents = files() | {"config/pyttpd.toml": CONFIG, "override.yaml": OVERRIDE.format(folder=tmp_path)}
    for name, content in contents.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    for path in (*tmp_path.parents, tmp_path, *tmp_path.rglob("*")):
        if path.is_relative_to("/tmp/pytest-of-root"):
            path.chmod(0o755 if path.is_dir() else 0o644)
    variables = {
        "PYTTPD_CONFIG": f"{tmp_path}/config",
        "COMPOSE_FILE": f"{TOP}/compose.yaml:{tmp_path}/override.yaml",
    }
    with running("chaos", ("is stopped and is killed",), **variables) as one:
        yield one


def whole(tree: Deployment) -> bool:
    containers = tree.containers()  # asked once: the engine takes its time
    return all(containers[service]["State"]["Health"]["Status"] == "healthy" for service in SERVICES) and all(
        tree.get(host, "/pattern/0/1").status == 200 for host in HOSTS
    )


def recreate(tree: Deployment, service: str) -> Done:
    began = time.monotonic()
    tree.compose("up", "--detach", "--no-deps", "--force-recreate", service)
    tenant = service.partition("-")[2] if service.startswith("vhost-") else ""
    return Done(Deed(Action.REPLACE, service, 0), began, 0, until=time.monotonic(), tenant=tenant)


def kill_role(tree: Deployment, service: str, number: signal.Signals) -> Done | None:
    """Kill, or stop, the role's process below a container's PID 1. Only of roles that have no client's connection."""
    below = tree.processes(service)[1:2]
    if not below:
        return None
    at = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        os.kill(below[0].pid, number)
    action = Action.KILL if number is signal.SIGKILL else Action.STOP
    return Done(Deed(action, service, 0), at, below[0].pid, until=at)


def test_nothing_is_lost_in_containers(tree: Deployment) -> None:
    chance = random.Random(SEED)
    every: list[Callable[[], Done | None]] = [
        *(lambda service=service: recreate(tree, service) for service in SERVICES),
        *(
            lambda service=service, number=number: kill_role(tree, service, number)
            for service in ("master", "umaster", "init")
            for number in (signal.SIGKILL, signal.SIGSTOP)
        ),
    ]
    tree.wait_for(lambda: whole(tree), BACK_WITHIN)
    done: list[Done] = []
    began = time.monotonic()
    with crowd(tree.port, SEED, HOSTS, HOSTS[:1]) as seen:
        try:
            while len(done) < len(every) or time.monotonic() - began < SECONDS:
                chance.shuffle(every)
                for act in every:
                    one = act()
                    started = time.monotonic()
                    tree.wait_for(lambda: whole(tree), BACK_WITHIN, why=lambda: done[-1:])
                    if one is not None:
                        one.whole_after = time.monotonic() - started
                        done.append(one)
                    if len(done) >= len(every) and time.monotonic() - began > SECONDS:
                        break
        finally:
            time.sleep(clients.IDLE)
    violations = []
    for failure in seen.failures:
        before = [one for one in done if one.at <= failure.at]
        last = next((one for one in reversed(before) if failure.host == f"{one.tenant}.localhost"), None)
        # A connection that a tenant's container had parked: it was opened before, and found closed afterwards.
        if (
            last is not None
            and failure.what == "closed-idle"
            and failure.alive < last.until
            and failure.opened < last.until
        ):
            last.lost.append((failure, HELD))
            continue
        after = ", ".join(f"{failure.at - one.at:.2f} s after {one.deed}" for one in before[-2:])
        violations.append(f"{in_words(failure)}: {after}")
    found = report(done, seen.summaries, seen.failures, 0)
    found |= {"seconds": SECONDS, "events": len(done), "pairs": 0, "violations": violations}
    sums.write(found, f"compose-{SEED}", tree.logs())
    print(f"\nseed {SEED}, {len(done)} events in containers\n")
    print(table(found))
    for text in violations[:40]:
        print("VIOLATION", text)
    assert not violations, f"{len(violations)} violations, the first: {violations[0]}"
    assert all(summary.answered for summary in seen.summaries)
    tree.wait_for(lambda: not tree.busy())
