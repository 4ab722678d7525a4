"""Log lines of the roles: one event a line, as text or as JSON, on standard error.

Values may come from clients or tenants: control characters and everything else that isn't printable are
escaped before a terminal or a log sees them, and each value and line has a limit.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable

LEVELS = ("debug", "info", "warning", "error")
#: A value longer than this is cut: a log line is no place for a payload.
MAX_VALUE = 500
#: A line that a tenant has printed may be longer.
MAX_OUTPUT = 4096
#: The event of such a line.
OUTPUT = "output"
#: What each JSON object says itself; a field of such a name gets a "_" behind it.
_OURS = frozenset({"time", "level", "role", "name", "pid", "event"})
#: A field of this name is a text of several lines, shown below the event. It keeps its end, where the reason stands.
TRACEBACK = "traceback"
MAX_TRACEBACK = 8000
#: Lines of one event and second; more are counted and told in one line afterwards.
MAX_REPEATED = 20


class Printed(str):
    """A line that somebody else has printed."""

    __slots__ = ()


def printable(value: object, limit: int = MAX_VALUE) -> str:
    """Return `value` as text with nothing in it that could move a terminal's cursor or forge a line."""
    text = str(value)
    if len(text) > limit:
        text = text[:limit] + "..."
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}" for c in text
    )


def write(line: bytes) -> None:
    """Write a line to standard error."""
    try:
        os.write(2, line)
    except OSError:
        pass  # A log that is full or gone must not end a server.


class Log:
    """The log of one role. `name` is the instance's (a vhost's, a listener's), or empty."""

    def __init__(self, role: str, name: str = "", *, write: Callable[[bytes], None] = write) -> None:
        self.role = role
        self.name = name
        self.level = "info"
        self.format = "text"
        #: What is written is read by somebody who adds time and name (a tenant's supervisor).
        self.bare = False
        self._write = write
        self._second = 0
        self._seen: dict[str, int] = {}

    def debug(self, event: str, **fields: object) -> None:
        self._line("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        self._line("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._line("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Something that an operator must look at. The tests' fixtures take one as a failure unless it was expected."""
        self._line("error", event, fields)

    def output(self, line: str) -> None:
        """Pass on a line that somebody else has printed, all of it: what isn't printable escaped, a tab as a blank."""
        self._emit(time.time(), "info", OUTPUT, {"line": Printed(line.replace("\t", " "))})

    def _line(self, level: str, event: str, fields: dict[str, object]) -> None:
        if LEVELS.index(level) < LEVELS.index(self.level):
            return
        now = time.time()
        if int(now) != self._second:
            self._second, seen = int(now), self._seen
            self._seen = {}
            for repeated, count in seen.items():
                if count > MAX_REPEATED:
                    self._emit(now, "warning", repeated, {"suppressed": count - MAX_REPEATED})
        count = self._seen[event] = self._seen.get(event, 0) + 1
        if count <= MAX_REPEATED:
            self._emit(now, level, event, fields)

    def _emit(self, now: float, level: str, event: str, fields: dict[str, object]) -> None:
        trace = [printable(line) for line in str(fields.pop(TRACEBACK, ""))[-MAX_TRACEBACK:].splitlines()]
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        who = f"{self.role}.{self.name}" if self.name else self.role
        if self.format == "json" and not self.bare:
            line = json.dumps(
                {
                    "time": stamp,
                    "level": level,
                    "role": self.role,
                    "name": self.name,
                    "pid": os.getpid(),
                    "event": event,
                }
                | {f"{key}_" if key in _OURS else key: _json_value(value) for key, value in fields.items()}
                | ({TRACEBACK: "\n".join(trace)} if trace else {})
            )
        else:
            pairs = "".join(f" {key}={_quoted(printable(value))}" for key, value in fields.items())
            if event == OUTPUT:
                pairs = " " + printable(fields["line"], MAX_OUTPUT)
            if event == OUTPUT and self.bare:
                line = pairs[1:]  # who reads it takes it for such a line anyway
            else:
                start = "" if self.bare else f"{stamp} {who}[{os.getpid()}] "
                line = f"{start}{level}: {event}{pairs}" + "".join(f"\n    | {text}" for text in trace)
        self._write(line.encode("utf-8", "backslashreplace") + b"\n")


def _json_value(value: object) -> int | float | str:
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return printable(value, MAX_OUTPUT if isinstance(value, Printed) else MAX_VALUE)


def _quoted(text: str) -> str:
    return (
        text
        if text and not set(text) & set(' "=')
        else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    )
