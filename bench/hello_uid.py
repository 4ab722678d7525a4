"""A WSGI application that says whose process answers: that each tenant is served under its own uid is looked at."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any


def app(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with the uid."""
    body = b"Hello from %d" % os.getuid()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
