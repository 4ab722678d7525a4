"""The state of a running tree, as its own metrics tell it.

Who should be there: init, master and umaster always; the listeners that init names in its accept queues; the tenants'
metrics listener; the vhosts that umaster names. Whoever should be there and doesn't answer is down.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pyttpd.config import limits
from pyttpd.config.errors import printable
from pyttpd.roles import METRICS_LISTENER, METRICS_LISTENER_OFFSET, ROLES, TENANT_METRICS_OFFSET, Role

from pyttpd_ctl import processes
from pyttpd_ctl.output import show_lines, show_table
from pyttpd_ctl.processes import MountStatus, number
from pyttpd_ctl.scrape import MAX_TENANT_BYTES, Outcome, Scrape, scrape

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Targets asked at a time; each costs a thread that waits.
_AT_A_TIME = 16
#: Lines of a tenant's traceback that are shown; a supervisor keeps no more.
MAX_LINES = 40
#: So many parts that a reload waits for are named.
MAX_WAITING = 20


#: What the tenants' metrics listener answers when nobody has come to umaster for a tenant.
_NOBODY_THERE = 503


@dataclass(frozen=True, slots=True)
class RoleStatus:
    """One process category's row. `age` in seconds; None: not known, or the role has no such thing."""

    role: str
    name: str
    up: bool
    why: str
    uid: int | None
    age: float | None
    connections: int | None
    requests: int | None
    errors: int | None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a tenant's application doesn't run, in its own words: printable, bounded. `retry_in` in seconds."""

    reason: str
    traceback: tuple[str, ...]
    ago: float
    retry_in: float


@dataclass(frozen=True, slots=True)
class TenantStatus:
    """One tenant's row. `queue` and `wait` (of the first in it, in seconds) are umaster's, the others the tenant's own.

    state: "serving", "loading", "asleep" (on demand, without a worker), "failing", or "" if that isn't known. size: how
    many workers there should be. oldest: the oldest worker's age in seconds. draining: how many workers finish what
    they have in hand, and draining_for how long the first of them has been at it, in seconds.
    """

    name: str
    up: bool
    why: str
    uid: int | None
    age: float | None
    workers: int | None
    connections: int | None
    requests: int | None
    errors: int | None
    queue: int | None
    wait: float | None = None
    state: str = ""
    mode: str = ""
    size: int | None = None
    oldest: float | None = None
    draining: int | None = None
    draining_for: float | None = None
    failure: Failure | None = None
    mounts: tuple[MountStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """A part that doesn't serve yet by what a reload has changed: since how long (s), and why if it has said so."""

    role: str
    name: str
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Status:
    """The whole tree. `generation`: of the configuration in force, None if master doesn't answer; it counts from 1
    since master was started.
    """

    roles: tuple[RoleStatus, ...]
    tenants: tuple[TenantStatus, ...]
    generation: int | None = None
    waiting: tuple[Waiting, ...] = ()

    @property
    def up(self) -> bool:
        """Whether everything that should be there is."""
        return (
            all(role.up for role in self.roles)
            and all(tenant.up for tenant in self.tenants)
            and all(mount.up for tenant in self.tenants for mount in tenant.mounts)
        )

    @property
    def found(self) -> bool:
        """Whether anybody answered at all."""
        return any(role.up for role in self.roles)

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values, for JSON."""
        return {"up": self.up, **asdict(self)}


#: Which samples (after "pyttpd_<role>_") make a role's numbers: connections now, requests so far, errors so far.
_COLUMNS: dict[Role, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    Role.INIT: (("accept_queue_depth",), ("hellos_total",), ("channel_faults_total",)),
    Role.MASTER: ((), ("shares_total",), ("channel_faults_total",)),
    Role.UMASTER: (
        ("handovers_open", "queue_depth"),
        ("dispatched_total",),
        ("refusals_total", "channel_faults_total"),
    ),
    Role.LISTENER: (("connections",), ("routed_total",), ("answers_total", "channel_faults_total")),
    Role.VHOST: (("connections",), ("requests_total",), ("errors_total", "channel_faults_total")),
}


def status(host: str, base_port: int, answers_of: dict[str, Scrape] | None = None) -> Status:
    """Ask all roles of the tree whose metrics are at `host` from `base_port` on.

    `answers_of` gets the tenants' answers, by name.
    """
    first, last = ROLES[Role.LISTENER].metrics_offset or 0, METRICS_LISTENER_OFFSET
    singles = [Role.INIT, Role.MASTER, Role.UMASTER]
    offsets = [*[ROLES[role].metrics_offset or 0 for role in singles], *range(first, last + 1)]
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        answers = dict(
            zip(
                offsets,
                pool.map(lambda offset: scrape(host, base_port + offset, "/metrics"), offsets),
                strict=True,
            )
        )
        roles = [_role_row(role, role.value, answers[ROLES[role].metrics_offset or 0]) for role in singles]
        roles += _listener_rows(
            answers[ROLES[Role.INIT].metrics_offset or 0], [answers[o] for o in offsets[3:]]
        )
        umaster = answers[ROLES[Role.UMASTER].metrics_offset or 0]
        queues = umaster.by_label("pyttpd_umaster_queue_depth", "vhost")
        waits = umaster.by_label("pyttpd_umaster_queue_age_seconds", "vhost")
        registered = umaster.by_label("pyttpd_umaster_workers", "vhost")
        known = {*registered, *queues}
        names = sorted([name for name in known if limits.NAME.fullmatch(name)])

        def ask(name: str) -> Scrape:
            return scrape(host, base_port + TENANT_METRICS_OFFSET, f"/metrics/{name}", limit=MAX_TENANT_BYTES)

        asked = dict(zip(names, pool.map(ask, names), strict=True))
        tenants = [
            _tenant_row(name, answer, queues.get(name), waits.get(name), registered.get(name))
            for name, answer in asked.items()
        ]
        if answers_of is not None:
            answers_of.update(asked)
        master = answers[ROLES[Role.MASTER].metrics_offset or 0]
    return Status(
        tuple(roles), tuple(tenants), _whole(master.total("pyttpd_master_generation")), _waiting(master)
    )


def _waiting(master: Scrape) -> tuple[Waiting, ...]:
    """Return who is waited for, longest first."""
    found = [
        Waiting(
            printable(sample.labels.get("role", ""), 16),
            printable(sample.labels.get("name", ""), 64),
            sample.value,
            printable(sample.labels.get("reason", ""), 200),
        )
        for sample in master.samples.get("pyttpd_master_waiting_seconds", ())
    ]
    return tuple(sorted(found, key=lambda each: -each.seconds))


def _listener_rows(init: Scrape, answers: Sequence[Scrape]) -> list[RoleStatus]:
    """Return a row for each listener that answered, and for each that init keeps a socket for and that did not.

    `answers` are in the order of the ports; the last one is the metrics listener's.
    """
    *others, last = answers
    rows = {METRICS_LISTENER: _role_row(Role.LISTENER, METRICS_LISTENER, last)}
    nameless = []
    for answer in others:
        name = answer.label("pyttpd_listener_info", "name")
        if name is not None:
            rows[name] = _role_row(Role.LISTENER, name, answer)
        elif answer.outcome is not Outcome.REFUSED:  # most of these ports belong to nobody
            nameless.append(answer)
    sockets = init.by_label("pyttpd_init_accept_queue_limit", "listener")
    for name in sorted(sockets):
        if name not in rows and not name.endswith("-metrics"):  # init's names for the metrics sockets
            rows[name] = _role_row(
                Role.LISTENER, name, nameless.pop(0) if nameless else Scrape(Outcome.REFUSED)
            )
    found = sorted(rows.values(), key=lambda row: (row.name == METRICS_LISTENER, row.name))
    return [_role_row(Role.LISTENER, "?", answer) for answer in nameless] + found


def _role_row(role: Role, name: str, answer: Scrape) -> RoleStatus:
    connections, requests, errors = _numbers(role, answer)
    return RoleStatus(
        role=role.value,
        name=printable(name),
        up=answer.up,
        why=answer.why,
        uid=_uid(role, answer),
        age=_age(role, answer),
        connections=connections,
        requests=requests,
        errors=errors,
    )


def _tenant_row(
    name: str, answer: Scrape, queue: float | None, wait: float | None, registered: float | None
) -> TenantStatus:
    pool = next(iter(answer.notes.get("pool", ())), {})
    failure = _failure(answer) if pool.get("failing") is True else None
    workers = _whole(answer.total("pyttpd_vhost_workers"))
    mode = printable(str(pool.get("mode", "")), 16)
    connections, requests, errors = _numbers(Role.VHOST, answer)
    why = answer.why
    failed = bool(answer.total("pyttpd_vhost_application_failed"))
    if answer.status == _NOBODY_THERE or (answer.outcome is Outcome.SILENT and registered == 0):
        # The second while umaster still waits for somebody to come (queue.timeout).
        why = "not there: not started, or turned away by master, whose log says why"
    elif failure is not None:
        why = f"does not run: {failure.reason}"
    elif failed:
        why = "its application isn't started or does not load: its log says why"
    return TenantStatus(
        name=name,
        up=answer.up and failure is None and not failed,
        why=why,
        uid=_uid(Role.VHOST, answer),
        age=_age(Role.VHOST, answer),
        workers=workers,
        connections=connections,
        requests=requests,
        errors=errors,
        queue=_whole(queue),
        wait=wait,
        state=_state(answer, mode, workers, failing=failure is not None),
        mode=mode,
        size=_whole(answer.total("pyttpd_vhost_pool_size")),
        oldest=answer.total("pyttpd_vhost_oldest_seconds", lambda labels: labels.get("process") == "worker"),
        draining=_whole(
            answer.total("pyttpd_vhost_workers", lambda labels: labels.get("state") == "leaving")
        ),
        draining_for=answer.total("pyttpd_vhost_leaving_seconds"),
        failure=failure,
        mounts=processes.mounts(answer),
    )


def _state(answer: Scrape, mode: str, workers: int | None, *, failing: bool) -> str:
    if not answer.up or workers is None:
        return ""
    if failing:
        return "failing"
    if answer.total("pyttpd_vhost_workers", lambda labels: labels.get("state") == "serving"):
        return "serving"
    return "asleep" if mode == "ondemand" and not workers else "loading"


def _failure(answer: Scrape) -> Failure:
    said = next(iter(answer.notes.get("failure", ())), {})
    lines = said.get("traceback", [])
    return Failure(
        printable(str(said.get("reason", "unknown")), 200),
        tuple(
            [printable(str(line), 200) for line in (lines if isinstance(lines, list) else [])][-MAX_LINES:]
        ),
        number(said.get("ago")),
        number(said.get("retry_in")),
    )


def _numbers(role: Role, answer: Scrape) -> tuple[int | None, int | None, int | None]:
    connections, requests, errors = [
        _whole(_sum([answer.total(f"pyttpd_{role.value}_{name}") for name in names]))
        for names in _COLUMNS[role]
    ]
    # A family without samples yet is a zero, if the role has such a thing at all.
    if answer.up:
        errors = errors or 0
        requests = requests or 0
        connections = (connections or 0) if _COLUMNS[role][0] else None
    return connections, requests, errors


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _uid(role: Role, answer: Scrape) -> int | None:
    text = answer.label(f"pyttpd_{role.value}_info", "uid")
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) <= 10 else None


def _age(role: Role, answer: Scrape) -> float | None:
    started = answer.total(f"pyttpd_{role.value}_start_time_seconds")
    return None if started is None else max(0.0, time.time() - started)


# --- for people ------------------------------------------------------------------------------------------------------
def show(tree: Status) -> None:
    """Print the two tables, and what a reload still waits for."""
    if tree.generation is not None:
        late = [
            f"{each.role} {each.name}: {each.reason or 'has not said so yet'}, for {duration(each.seconds)}"
            for each in tree.waiting[:MAX_WAITING]
        ]
        if len(tree.waiting) > MAX_WAITING:
            late.append(f"... and {len(tree.waiting) - MAX_WAITING} more")
        where = f"not yet in force in {len(tree.waiting)} parts:" if late else "in force everywhere"
        show_lines(f"Configuration: generation {tree.generation}, {where}", late)
    show_table(
        "Roles",
        [("role", False), ("name", False), ("up", False), *_NUMERIC[:2], *_NUMERIC[2:]],
        [
            (
                row.role,
                row.name,
                "yes" if row.up else "no",
                *_cells(row.uid, row.age),
                *_counts(row),
                _why(row),
            )
            for row in tree.roles
        ],
    )
    show_table(
        "Tenants",
        [
            ("name", False),
            ("up", False),
            *_NUMERIC[:2],
            ("workers", True),
            *_NUMERIC[2:5],
            ("queue", True),
            ("wait", True),
            ("oldest", True),
            ("", False),
        ],
        [
            (
                row.name,
                "yes" if row.up else "no",
                *_cells(row.uid, row.age),
                _number(row.workers),
                *_counts(row),
                _number(row.queue),
                "-" if row.wait is None else f"{min(row.wait, 9999.0):.1f}s",
                "-" if row.oldest is None else duration(row.oldest),
                _why(row) or ("asleep" if row.state == "asleep" else ""),
            )
            for row in tree.tenants
        ],
    )
    if draining := [row for row in tree.tenants if row.draining]:
        show_lines(
            "Draining",
            [
                f"{row.name}: {_number(row.draining)} of its workers, for {duration(row.draining_for or 0.0)}"
                for row in draining
            ],
        )
    if mounts := [each for row in tree.tenants for each in processes.cells(row.name, row.mounts)]:
        show_table("Application processes", processes.HEADINGS, mounts)
    for row in tree.tenants:
        if row.failure is not None:
            show_lines(
                f"{row.name}: does not run, tried again in {row.failure.retry_in:.1f}s",
                # A traceback ends with the reason, unless it was cut.
                row.failure.traceback
                if row.failure.traceback[-1:] == (row.failure.reason,)
                else (*row.failure.traceback, row.failure.reason),
            )


_NUMERIC = [
    ("uid", True),
    ("age", True),
    ("connections", True),
    ("requests", True),
    ("errors", True),
    ("", False),
]


def _cells(uid: int | None, age: float | None) -> tuple[str, str]:
    return "-" if uid is None else str(uid), "-" if age is None else duration(age)


def _counts(row: RoleStatus | TenantStatus) -> tuple[str, str, str]:
    return _number(row.connections), _number(row.requests), _number(row.errors)


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"[:26]


def _why(row: RoleStatus | TenantStatus) -> str:
    return "" if row.up else row.why


def duration(seconds: float) -> str:
    """Return a time span in its two largest units: "3d 4h", "5m 6s", "7s"."""
    whole = int(min(seconds, 10_000 * 86400))
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    while len(parts) > 1 and parts[0][0] == 0:
        parts.pop(0)
    return " ".join([f"{number}{unit}" for number, unit in parts[:2]])
