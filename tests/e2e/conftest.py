"""One compose tree for all tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.compose import Deployment, running


@pytest.fixture(scope="session")
def shared_tree() -> Iterator[Deployment]:
    with running("e2e") as tree:
        yield tree


@pytest.fixture
def tree(shared_tree: Deployment) -> Iterator[Deployment]:
    """The shared tree; after the test nobody is at fault, and nothing waits or is open that nobody asks for."""
    yield shared_tree
    shared_tree.wait_for(lambda: not shared_tree.busy())
    assert not shared_tree.faults()
