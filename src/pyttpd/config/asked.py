"""The options of kinds whose applications are asked over a Unix socket: fastcgi and scgi.

In step with: kind_keys.py (`ASKED_KEYS`), docs/fastcgi.md, docs/scgi.md. Lean: every role process imports this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pyttpd.config import checks, limits, processes
from pyttpd.config.checks import Check
from pyttpd.config.processes import ProcessOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedOptions(ProcessOptions):
    """How an application is asked: processes of `command`, or somebody else's at `socket`. Times in s."""

    socket: str | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    connect_timeout: float = 5.0
    read_timeout: float = 60.0

    def contradictions(self) -> list[tuple[str, str]]:
        """See `ProcessOptions.contradictions`."""
        found = ProcessOptions.contradictions(self)
        if self.command and self.socket is not None:
            found.append(("socket", "is for an application that somebody else runs: remove it, or command"))
        if len((self.socket or "").encode()) > limits.MAX_SOCKET_PATH:
            found.append(
                ("socket", f"must be a path of at most {limits.MAX_SOCKET_PATH} bytes, as sockets' are")
            )
        if not self.command and self.socket is None:
            found.append(
                ("command", "is missing: the program that serves (or socket, if somebody else runs it)")
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptOptions(AskedOptions):
    """And which scripts below `root` it runs. `keep_connections`: idle ones that each worker keeps, None: as many as
    there are processes for it, if it never needs more.
    """

    root: str
    scripts: tuple[str, ...] = ()
    index: tuple[str, ...] = ("index.php", "index.html")
    front_controller: str = ""
    files: bool = True
    keep_connections: int | None = None

    def contradictions(self) -> list[tuple[str, str]]:
        """See `ProcessOptions.contradictions`."""
        found = AskedOptions.contradictions(self)
        if self.front_controller and not self.front_controller.endswith(self.scripts or ("\0",)):
            found.append(("front_controller", "must be a script: its name must end in one of scripts"))
        return found

    def kept(self, workers: int, threads: int) -> int:
        """Return how many idle connections each of so many workers, with so many threads each, may keep.

        A process that serves one request at a time is taken by a connection that is kept. Who needed another one would
        wait for a process that an idle worker has, so there are as many for each worker as it has threads, or none.
        """
        if self.keep_connections is not None:
            return self.keep_connections
        return self._fitting(workers, threads)

    def _fitting(self, workers: int, threads: int) -> int:
        share = self.processes // workers if self.command and self.mode == "static" else 0
        return share if share >= threads else 0

    def misfits(self, workers: int, threads: int) -> list[tuple[str, str]]:
        """See `ProcessOptions.misfits`.

        Of `scripts` a process runs one at a time. With more kept than fit, or fewer than a worker's threads may need, a
        request would wait for a process that an idle connection has, maybe for ever. (Where others run the processes
        nobody here knows how many there are.)
        """
        keep, most = self.keep_connections, self._fitting(workers, threads)
        if not keep or not self.command or not self.scripts or threads <= keep <= most:
            return []
        few = f"processes = {self.processes}, pool.max_workers = {workers} and pool.max_threads = {threads}"
        right = "0" if not most else f"0 or {most}" if most == threads else f"0, or from {threads} to {most}"
        if self.mode != "static":
            right, few = "0", f'mode = "{self.mode}"'
        why = "a request would wait for a process that an idle connection has"
        return [("keep_connections", f"must be {right}, with {few}: {why}")]


def _count_or_none(value: object, where: str) -> int | None:
    return None if value is None else checks.integer(limits.KEPT)(value, where)


#: The check of each field.
FIELDS: Final[Mapping[str, Check]] = {
    **processes.FIELDS,
    "socket": checks.path_or_none,
    "params": checks.env,
    "connect_timeout": checks.number(limits.TIMEOUT),
    "read_timeout": checks.number(limits.TIMEOUT),
}
SCRIPT_FIELDS: Final[Mapping[str, Check]] = {
    **FIELDS,
    "root": checks.path,
    "scripts": checks.tuple_of(checks.matching(limits.SUFFIX, "a file name's suffix"), limits.MAX_SUFFIXES),
    "index": checks.tuple_of(checks.file_name, limits.MAX_INDEX_NAMES),
    "front_controller": checks.or_empty(checks.below_root),
    "files": checks.flag,
    "keep_connections": _count_or_none,
}
