"""One podman, and one pod for all tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from hostile import attempts
from support.chart import Helm, Release, Values
from support.pod import TAG, Pod, Podman, playing, podman

#: The example tenants, and one whose application is the attacker: from a ConfigMap, in pyttpd-vhost's own image.
VALUES: Final[Values] = {
    "image": {"tag": TAG},
    "tenants": {
        "static": {
            "image": {"repository": "pyttpd-vhost-static"},
            "hosts": ["static.localhost"],
            "uid": 20001,
            "kind": "static",
            "root": "/srv/static",
        },
        "wsgi": {
            "image": {"repository": "pyttpd-vhost-wsgi"},
            "hosts": ["wsgi.localhost"],
            "uid": 20002,
            "kind": "wsgi",
            "root": "/srv/wsgi",
            "application": "app:application",
            "writable": ["/tmp"],
        },
        "evil": {
            "hosts": ["evil.localhost"],
            "uid": 20003,
            "kind": "wsgi",
            "root": "/srv/evil",
            "application": "attempts:application",
            "writable": ["/tmp"],
            "pool": {"max_workers": 1},
            "volumes": [{"name": "site", "mountPath": "/srv/evil", "configMap": {"name": "attempts"}}],
        },
    },
    "listeners": {"http": {"max_connections": 12000}},
    "extraObjects": [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "attempts"},
            "data": {},
        }
    ],
}


@pytest.fixture(scope="session")
def helm() -> Iterator[Helm]:
    with Helm() as found:
        yield found


@pytest.fixture(scope="session")
def engine() -> Iterator[Podman]:
    with podman() as found:
        yield found


def render(helm: Helm, **more: object) -> Release:
    """Return the release of VALUES with `more`; the attacker's code isn't a template, and put in afterwards."""
    release = helm.render({**VALUES, **more}, name="pyttpd")
    attacker = Path(attempts.__file__).read_text(encoding="utf-8")
    release.one("ConfigMap", "attempts")["data"]["attempts.py"] = attacker
    return release


@pytest.fixture(scope="session")
def shared_pod(helm: Helm, engine: Podman) -> Iterator[Pod]:
    with playing(engine, render(helm), "shared") as pod:
        pod.wait_for(pod.serves)
        yield pod


@pytest.fixture
def tree(shared_pod: Pod) -> Iterator[Pod]:
    """The shared pod; after the test nobody is at fault, and nothing waits or is open that nobody asks for."""
    yield shared_pod
    shared_pod.wait_for(lambda: not shared_pod.busy())
    assert not shared_pod.faults()
