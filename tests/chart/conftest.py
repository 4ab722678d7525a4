"""One Helm for all tests of the chart."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest

from support.chart import Helm
from support.needs import COMPLETE


@pytest.fixture(scope="session")
def helm() -> Iterator[Helm]:
    if importlib.util.find_spec("helm_python") is None:
        # Its wheels are for x86-64 alone.
        if os.environ.get(COMPLETE) and os.uname().machine == "x86_64":
            pytest.fail("helm-python-sdk isn't installed, and a complete run must have it", pytrace=False)
        pytest.skip("helm-python-sdk isn't installed")
    with Helm() as found:
        yield found
