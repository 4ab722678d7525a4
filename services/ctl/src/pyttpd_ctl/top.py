"""`pyttpd top`: the workers and application processes of a running tree, live, busiest first.

Rules
  1. Everything comes from the tenants' metrics (the lines for us in them): a tenant writes what it likes there, so
     every number is checked, every text made printable and cut, and what doesn't fit the terminal isn't shown.
  2. Rates are differences between two looks at the same worker (tenant and number), never negative.
  3. The terminal is put back as it was, however this ends.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pyttpd.config.errors import printable

from pyttpd_ctl.output import make_table, show
from pyttpd_ctl.processes import number
from pyttpd_ctl.scrape import Scrape
from pyttpd_ctl.status import Status, duration, status

#: Bounds (s) of the time between two looks.
LEAST_INTERVAL, MOST_INTERVAL = 0.2, 60.0
#: Lines that aren't workers: title, headings, tenants' summary, help.
_FRAME = 8


@dataclass(frozen=True, slots=True)
class Row:
    """One worker or application process, as its tenant tells. Times in seconds, memory in bytes; rate in requests, cpu
    in shares of a second.
    """

    tenant: str
    number: int
    pid: int
    state: str
    age: float
    requests: float
    connections: float
    threads: float
    busy_threads: float
    memory: float
    cpu_seconds: float
    at: str
    rate: float = 0.0
    cpu: float = 0.0
    #: Where it belongs to, if it is an application process and no worker.
    mount: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """Which it is, from one look to the next."""
        return self.tenant, self.mount, self.number


#: What one can sort by: key, heading, and how; the largest comes first, but for names.
SORTS: dict[str, tuple[str, Callable[[Row], float | str]]] = {
    "c": ("cpu", lambda row: -row.cpu),
    "r": ("requests/s", lambda row: -row.rate),
    "m": ("memory", lambda row: -row.memory),
    "a": ("age", lambda row: -row.age),
    "o": ("connections", lambda row: -row.connections),
    "t": ("tenant", lambda row: row.tenant),
}


@dataclass(slots=True)
class View:
    """What is known of the tree at one moment. `before` are the workers of the look before, for rates."""

    tree: Status
    rows: list[Row] = field(default_factory=list)
    taken: float = 0.0


def look(host: str, base_port: int, before: View | None = None) -> View:
    """Ask the tree whose metrics are at `host` from `base_port` on."""
    answers: dict[str, Scrape] = {}
    tree = status(host, base_port, answers)
    view = View(tree, taken=time.monotonic())
    known = {row.key: row for row in before.rows} if before is not None else {}
    span = view.taken - before.taken if before is not None else 0.0
    for tenant, answer in answers.items():
        for row in (*workers(tenant, answer), *processes(tenant, answer)):
            view.rows.append(_with_rates(row, known.get(row.key), span))
    return view


def workers(tenant: str, answer: Scrape) -> Iterator[Row]:
    """Yield the workers that a tenant tells of."""
    for said in answer.notes.get("worker", ()):
        host, path = (printable(str(said.get(key, "")), 200) for key in ("host", "path"))
        due = printable(str(said.get("due", "")), 16)
        yield Row(
            tenant,
            int(number(said.get("number"))),
            int(number(said.get("pid"))),
            printable(str(said.get("state", "")), 16) + (f" ({due})" if due else ""),
            number(said.get("age")),
            number(said.get("requests")),
            number(said.get("connections")),
            number(said.get("threads")),
            number(said.get("busy_threads")),
            number(said.get("memory")),
            number(said.get("cpu")),
            host + path,
        )


def processes(tenant: str, answer: Scrape) -> Iterator[Row]:
    """Yield the application processes that a tenant tells of."""
    for said in answer.notes.get("process", ()):
        mount, kind = (printable(str(said.get(key, "")), 60) for key in ("mount", "kind"))
        due = printable(str(said.get("due", "")), 16)
        yield Row(
            tenant,
            int(number(said.get("number"))),
            int(number(said.get("pid"))),
            printable(str(said.get("state", "")), 16) + (f" ({due})" if due else ""),
            number(said.get("age")),
            number(said.get("requests")),
            0.0,
            0.0,
            0.0,
            number(said.get("memory")),
            number(said.get("cpu")),
            f"{kind} at {mount}",
            mount=mount or "/",
        )


def _with_rates(row: Row, before: Row | None, span: float) -> Row:
    if before is None or span <= 0:
        return row
    values = {name: getattr(row, name) for name in row.__slots__}
    values["rate"] = max(0.0, row.requests - before.requests) / span
    values["cpu"] = max(0.0, row.cpu_seconds - before.cpu_seconds) / span
    return Row(**values)


def arrange(rows: list[Row], sort: str, *, reverse: bool = False) -> list[Row]:
    """Return the rows in the order of `sort`, a key of SORTS; equals by tenant and number."""
    chosen = SORTS[sort][1]
    return sorted(sorted(rows, key=lambda row: row.key), key=chosen, reverse=reverse)


def size(value: float) -> str:
    """Return bytes for people: "17M"."""
    for unit in ("", "K", "M", "G"):
        if value < 1024 or unit == "G":
            break
        value /= 1024
    return f"{value:.0f}{unit}"


def render(view: View, sort: str, *, height: int, reverse: bool = False) -> Group:
    """Return the screen: at most `height` lines."""
    tenants = view.tree.tenants
    serving = sum(tenant.state == "serving" for tenant in tenants)
    ill = [tenant.name for tenant in tenants if not tenant.up]
    waiting = sum(tenant.queue or 0 for tenant in tenants)
    title = (
        f"pyttpd: {len(tenants)} tenants, {serving} serving, {len(view.rows)} processes, "
        f"{sum(row.rate for row in view.rows if not row.mount):,.0f} requests/s, {waiting} connections wait"
    )
    room = max(1, height - _FRAME)
    shown = arrange(view.rows, sort, reverse=reverse)[:room]
    table = make_table(
        f"Workers by {SORTS[sort][0]}" + (" (reversed)" if reverse else ""),
        [
            ("tenant", False),
            ("worker", True),
            ("pid", True),
            ("state", False),
            ("age", True),
            ("requests", True),
            ("/s", True),
            ("conn", True),
            ("busy", True),
            ("cpu", True),
            ("memory", True),
            ("last request", False),
        ],
        [
            (
                row.tenant,
                f"p{row.number}" if row.mount else str(row.number),
                str(row.pid),
                row.state,
                duration(row.age),
                f"{row.requests:,.0f}",
                f"{row.rate:,.0f}",
                "-" if row.mount else f"{row.connections:.0f}",
                "-" if row.mount else f"{row.busy_threads:.0f}/{row.threads:.0f}",
                f"{100 * row.cpu:.0f}%",
                size(row.memory),
                row.at[:60],
            )
            for row in shown
        ],
    )
    for column in table.columns:
        column.no_wrap, column.overflow = True, "ellipsis"
    hidden = len(view.rows) - len(shown)
    lines = [Text(title, style="bold")]
    if ill:
        lines.append(
            Text(
                "not well: " + printable(", ".join(ill), 200),
                style="bold red",
                no_wrap=True,
                overflow="ellipsis",
            )
        )
    keys = "  ".join(f"{key}: {what}" for key, (what, _) in SORTS.items())
    foot = Text(
        f"{f'{hidden} more  ' if hidden else ''}sort by {keys}  R: turn round  q: quit",
        style="dim",
        no_wrap=True,
    )
    return Group(*lines, table, foot)


@contextmanager
def keys(fd: int) -> Iterator[Callable[[float], str]]:
    """Take single keys from the terminal `fd`: yields read(seconds), which returns "" if none was pressed in time."""
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)

    def read(seconds: float) -> str:
        if not select.select([fd], [], [], max(0.0, seconds))[0]:
            return ""
        return os.read(fd, 1).decode("ascii", "replace") or "q"  # the terminal's end

    try:
        yield read
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def run(host: str, base_port: int, interval: float, sort: str) -> int:
    """Show the tree until q is pressed; return the exit status."""
    console = Console(markup=False, highlight=False, emoji=False)
    view = look(host, base_port)
    reverse = False
    with (
        keys(sys.stdin.fileno()) as read,
        Live(console=console, screen=True, auto_refresh=False, transient=True) as live,
    ):
        while True:
            until = time.monotonic() + interval
            live.update(render(view, sort, height=console.size.height, reverse=reverse), refresh=True)
            while (left := until - time.monotonic()) > 0:
                match read(left):
                    case "q" | "Q" | "\x03":
                        return 0
                    case "R":
                        reverse = not reverse
                    case key if key in SORTS:
                        sort, reverse = key, False
                    case _:
                        continue
                live.update(render(view, sort, height=console.size.height, reverse=reverse), refresh=True)
            view = look(host, base_port, view)


def once(host: str, base_port: int, sort: str) -> int:
    """Print one screen, for a pipe; return the exit status."""
    view = look(host, base_port)
    show(render(view, sort, height=len(view.rows) + _FRAME))
    return 0 if view.tree.found else 1
