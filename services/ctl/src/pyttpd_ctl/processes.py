"""A tenant's application processes, as its supervisor tells of them: one row for each mount that has any.

What is told is the supervisor's, but it goes through a process with the tenant's uid: every number is checked, every
text made printable and cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyttpd.config.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pyttpd_ctl.scrape import Scrape

#: Mounts of one tenant that are shown: more than may have processes.
MAX_MOUNTS = 64
_WORD, _PATH, _REASON = 16, 60, 200


@dataclass(frozen=True, slots=True)
class MountStatus:
    """The processes of one mount. `active`: requests that are with them now; retry_in in seconds."""

    mount: str
    kind: str
    mode: str
    up: bool
    why: str
    size: int
    serving: int
    active: int
    retry_in: float


def mounts(answer: Scrape) -> tuple[MountStatus, ...]:
    """Return the mounts with processes that a tenant tells of."""
    return tuple([_mount(said) for said in answer.notes.get("mount", ())[:MAX_MOUNTS]])


def _mount(said: Mapping[str, object]) -> MountStatus:
    failing = said.get("failing") is True
    return MountStatus(
        mount=printable(str(said.get("mount", "")), _PATH),
        kind=printable(str(said.get("kind", "")), _WORD),
        mode=printable(str(said.get("mode", "")), _WORD),
        up=not failing,
        why=printable(str(said.get("reason", "")) or "unknown", _REASON) if failing else "",
        size=int(number(said.get("size"))),
        serving=int(number(said.get("serving"))),
        active=int(number(said.get("active"))),
        retry_in=number(said.get("retry_in")),
    )


def number(value: object) -> float:
    """Return a number that a tenant says, 0 if it is none."""
    return float(value) if isinstance(value, int | float) and abs(value) < 1e15 else 0.0


HEADINGS = [
    ("tenant", False),
    ("mount", False),
    ("kind", False),
    ("up", False),
    ("processes", True),
    ("requests now", True),
    ("", False),
]


def cells(tenant: str, rows: Iterable[MountStatus]) -> list[tuple[str, ...]]:
    """Return a tenant's rows for people."""
    return [
        (
            tenant,
            row.mount,
            row.kind,
            "yes" if row.up else "no",
            f"{row.serving:,} of {row.size:,}"[:26],
            f"{row.active:,}"[:26],
            f"{row.why}; tried again in {min(row.retry_in, 9999.0):.1f}s" if not row.up else "",
        )
        for row in rows
    ]
