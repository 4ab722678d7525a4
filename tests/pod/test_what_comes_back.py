"""A container is killed, and the engine starts it again, with the volumes as they are; the pod serves by itself.

A successor finds its predecessor's socket in its own directory of the volume, and init's successor the listening
sockets with those who have them.
"""

from __future__ import annotations

import os
import signal
import time

import pytest

from support.pod import Pod

pytestmark = [
    pytest.mark.docker,
    pytest.mark.root,
    pytest.mark.program("podman", "nsenter", "unshare", "runc"),
    pytest.mark.timeout(600),
]

#: For podman to start a container again, and for the others to find it (s).
BACK_WITHIN = 60.0


@pytest.fixture(scope="module", params=["init", "umaster", "vhost-static"])
def killed(request: pytest.FixtureRequest, shared_pod: Pod) -> tuple[str, Pod]:
    """A container whose first process has been killed, and that serves again."""
    name: str = request.param
    before = shared_pod.pids[name]
    at = time.time()
    os.kill(before, signal.SIGKILL)
    shared_pod.wait_for(lambda: shared_pod.started_again(name, before), BACK_WITHIN)
    # The volume with the health file has outlived the container: not what the predecessor has said.
    shared_pod.wait_for(
        lambda: shared_pod.said(name) > at and shared_pod.probe(name, "startupProbe"), BACK_WITHIN
    )
    return name, shared_pod


def test_the_pod_serves_again(killed: tuple[str, Pod]) -> None:
    _, pod = killed
    pod.wait_for(pod.serves, BACK_WITHIN)
    pod.wait_for(lambda: all(pod.probe(name, "readinessProbe") for name in pod.pids), BACK_WITHIN)


def test_its_metrics_are_there_again(killed: tuple[str, Pod]) -> None:
    name, pod = killed
    pod.wait_for(lambda: bool(pod.samples(name)), BACK_WITHIN)
