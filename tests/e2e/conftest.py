"""One compose tree for all tests that leave it as they found it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from support.compose import Deployment, running


@pytest.fixture(scope="session")
def shared_tree() -> Iterator[Deployment]:
    """The tree; when all have used it, it has as many descriptors open as before."""
    with running("e2e") as tree:
        # What is opened once, at a first request, is open before it counts.
        tree.wait_for(tree.serves)
        assert all(tree.samples(service) for service in tree.targets())
        tree.wait_for(lambda: not tree.busy())
        before = tree.descriptors() if os.geteuid() == 0 else {}
        yield tree
        if before:
            tree.wait_for(
                lambda: tree.descriptors() == before, why=lambda: f"{tree.descriptors()}, not {before}"
            )


@pytest.fixture
def tree(shared_tree: Deployment) -> Iterator[Deployment]:
    """The shared tree; after the test nobody is at fault, and nothing waits or is open that nobody asks for."""
    yield shared_tree
    shared_tree.wait_for(lambda: not shared_tree.busy())
    assert not shared_tree.faults()
