"""Fetching a role's metrics: bounded in size and time, and believed no further than numbers.

A tenant's metrics are written by a process under the tenant's uid: what comes may be endless, slow, malformed or
hostile. So: a deadline for the whole exchange, a limit of bytes, HTTP without redirects or encodings, and of the
answer only the families that are asked for.
"""

from __future__ import annotations

import enum
import json
import math
import re
import socket
import time
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: A tenant's metrics: a few dozen lines.
MAX_TENANT_BYTES = 1024 * 1024
#: umaster's metrics with 10,000 vhosts: some twenty lines of a hundred bytes for each.
MAX_ROLE_BYTES = 32 * 1024 * 1024
#: The whole exchange, in seconds. All roles answer without thinking.
TIMEOUT = 3.0
#: An HTTP head longer than this is none of ours.
_MAX_HEAD = 8192
#: Lines for us in one answer: a worker each, and a few more.
MAX_NOTES = 2048
_NOTE = re.compile(rb"(?m)^# pyttpd ([a-z]{1,16}) (\{[ -~]{0,20000}\})$")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?\r\n")


class Outcome(enum.Enum):
    """How an attempt went; the value is what `status` shows."""

    UP = "up"
    REFUSED = "nobody listens"
    SILENT = "no answer in time"
    BROKEN = "not an answer that makes sense"
    ERROR = "answered with an error"


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample: its labels and a finite value."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Scrape:
    """What one target said. `samples` is by sample name, `notes` (lines for us, a supervisor's `report.notes`) by their
    word; both are empty unless the outcome is UP.
    """

    outcome: Outcome
    samples: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)
    status: int = 200
    notes: Mapping[str, tuple[Mapping[str, object], ...]] = field(default_factory=dict)

    @property
    def why(self) -> str:
        """The outcome in words."""
        return f"answered {self.status}" if self.outcome is Outcome.ERROR else self.outcome.value

    @property
    def up(self) -> bool:
        """Whether the target answered in full."""
        return self.outcome is Outcome.UP

    def total(
        self, name: str, where: Callable[[Mapping[str, str]], bool] = lambda _labels: True
    ) -> float | None:
        """Return the sum of all samples of that name whose labels fit; None if there is none."""
        values = [sample.value for sample in self.samples.get(name, ()) if where(sample.labels)]
        return sum(values) if values else None

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Return the values of that name, summed up for each value of `label`."""
        result: dict[str, float] = {}
        for sample in self.samples.get(name, ()):
            key = sample.labels.get(label)
            if key is not None:
                result[key] = result.get(key, 0.0) + sample.value
        return result

    def label(self, name: str, label: str) -> str | None:
        """Return that label of the first sample of that name: what `..._info` families carry."""
        samples = self.samples.get(name, ())
        return samples[0].labels.get(label) if samples else None


def scrape(
    host: str, port: int, path: str, *, limit: int = MAX_ROLE_BYTES, timeout: float = TIMEOUT
) -> Scrape:
    """Fetch http://host:port/path and parse it. Never raises for anything the other side does."""
    try:
        answer = _fetch(host, port, path, limit, time.monotonic() + timeout)
    except (TimeoutError, BlockingIOError):
        return Scrape(Outcome.SILENT)
    except ConnectionRefusedError:
        return Scrape(Outcome.REFUSED)
    except OSError:
        return Scrape(Outcome.BROKEN)
    return Scrape(Outcome.BROKEN) if answer is None else _parse(answer)


def _fetch(host: str, port: int, path: str, limit: int, deadline: float) -> bytes | None:
    """Return everything up to the end of the connection, or None if that is more than `limit`."""
    with socket.create_connection((host, port), timeout=_left(deadline)) as connection:
        shown = f"[{host}]" if ":" in host else host
        connection.settimeout(_left(deadline))
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {shown}:{port}\r\nConnection: close\r\n\r\n".encode()
        )
        received = bytearray()
        while True:
            connection.settimeout(_left(deadline))
            data = connection.recv(65536)
            if not data:
                return bytes(received)
            received += data
            if len(received) > limit + _MAX_HEAD:
                return None


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _parse(answer: bytes) -> Scrape:
    head, blank, body = answer[:_MAX_HEAD].partition(b"\r\n\r\n")
    status = _STATUS_LINE.match(head + b"\r\n")
    if not blank or status is None:
        return Scrape(Outcome.BROKEN)
    if status[1] != b"200":
        return Scrape(Outcome.ERROR, status=int(status[1]))
    body = answer[len(head) + len(blank) :]
    length = re.search(rb"(?im)^content-length:[ \t]*(\d{1,10})[ \t]*\r?$", head)
    if length is not None and int(length[1]) != len(body):
        return Scrape(Outcome.BROKEN)
    samples: dict[str, list[Sample]] = {}
    try:
        for family in text_string_to_metric_families(body.decode()):
            for each in family.samples:
                value = float(each.value)
                samples.setdefault(each.name, []).append(
                    Sample(each.labels, value if math.isfinite(value) else 0.0)
                )
    except Exception:  # noqa: BLE001 (the parser is made for honest text and fails in many ways on other)
        return Scrape(Outcome.BROKEN)
    return Scrape(Outcome.UP, {name: tuple(each) for name, each in samples.items()}, notes=_notes(body))


def _notes(body: bytes) -> dict[str, tuple[Mapping[str, object], ...]]:
    """Return what the lines "# pyttpd WORD {...}" say; a line that says it otherwise says nothing."""
    found: dict[str, list[Mapping[str, object]]] = {}
    for word, text in (match.groups() for match in islice(_NOTE.finditer(body), MAX_NOTES)):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.setdefault(word.decode(), []).append(value)
    return {word: tuple(values) for word, values in found.items()}
