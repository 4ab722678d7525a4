"""What can be wrong with an application in another process, and whose answer that is.

Each has a name for the metric (`pyttpd_vhost_backend_errors_total`), a status for the client, and its line in the log.
When the answer has begun, the client sees a body that is cut instead. The client's own faults (it left, sent too
little, too slowly) are none of these.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyttpd_vhost.http.exchange import Exchange


class Fault(enum.Enum):
    """The reasons, with their statuses. In this order each mount's are counted (`Stats.faults`)."""

    UNREACHABLE = "unreachable", 503  # nobody listens at its socket, or nobody can be started
    FULL = "full", 503  # it takes nobody more
    NO_SPACE = "no-space", 503  # the request's body can't be kept until its length is known
    SLOW = "timeout", 504  # it says nothing, or takes nothing, for too long
    DIED = "died", 502  # it ended before its answer did
    EMPTY = "empty", 502  # it ended without a word
    MALFORMED = "malformed", 502  # what it says is no answer, or not its protocol
    OVERSIZE = "head-too-large", 502
    LENGTH = "length", 502  # its body is longer or shorter than its Content-Length
    OUTPUT = "output-too-large", 502  # it says more than it may
    REFUSED = "refused", 403  # it isn't what a program must be to be run (execution/checks.py)

    def __init__(self, reason: str, status: int) -> None:
        self.reason = reason
        self.status = status


#: The metric's label values.
REASONS = tuple(fault.reason for fault in Fault)
_CELLS = {fault: cell for cell, fault in enumerate(Fault)}

#: What is shown of an application's words in a log line.
_MAX_EXCERPT = 80


class BackendError(Exception):
    """The application's fault; `detail` is a text of ours, with an excerpt of its words at the most."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(f"{fault.reason}: {detail}")
        self.fault = fault
        self.detail = detail


def excerpt(text: str | bytes) -> str:
    """Return the beginning of what an application said, for a detail."""
    return f"{text[:_MAX_EXCERPT]!r}{'...' if len(text) > _MAX_EXCERPT else ''}"


def report(exchange: Exchange, mount: int, path: str, error: BackendError) -> None:
    """Count and log the fault of the application at `path`, the vhost's mount number `mount`; answer its client."""
    site, request = exchange.site, exchange.request
    site.stats.errors += 1
    cell = mount * len(_CELLS) + _CELLS[error.fault]
    site.stats.faults[cell] = site.stats.faults.get(cell, 0) + 1
    site.log.warning(
        "application failed",
        mount=path or "/",
        reason=error.fault.reason,
        detail=error.detail,
        method=request.method,
        target=request.target.decode("latin-1"),
        client=exchange.client[0],
    )
    exchange.fail(error.fault.status)
