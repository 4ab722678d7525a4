"""All that a supervisor has to do with programs: the exec service, the application processes, and their sockets.

A tenant of which nothing asks for a program has none of it. Otherwise this is what the supervisor talks to, and what it
gives to the prototype (`Equipment`), from which the workers get it by fork.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyttpd.config.shares import VhostShare
from pyttpd.service import Service

from pyttpd_vhost.execution.host import Host
from pyttpd_vhost.execution.manager import Manager, Pool
from pyttpd_vhost.execution.places import Listeners, Place, without_links
from pyttpd_vhost.execution.plan import Backend, plan, wanted
from pyttpd_vhost.execution.tally import Tally
from pyttpd_vhost.execution.usage import Usage

if TYPE_CHECKING:
    import socket

    from pyttpd_vhost.site import Site


@dataclass(frozen=True, slots=True)
class Equipment:
    """What the tenant's processes have: the door of the exec service, if there is one, and their backends."""

    door: socket.socket | None = None
    backends: tuple[Backend, ...] = ()
    usage: Usage | None = None
    through_door: bool = False

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that have to stay open in a fork."""
        door = () if self.door is None else (self.door.fileno(),)
        return door if self.usage is None else (*door, self.usage.wake)

    def equip(self, site: Site) -> None:
        """Give it to the site of this process."""
        if self.door is not None:
            from pyttpd_vhost.execution.client import Client

            site.programs = Client(self.door)
        client = site.programs if self.through_door else None
        site.places = {
            backend.name: Place(
                backend.mount,
                backend.path,
                kind=backend.kind,
                pool=backend.pool,
                usage=self.usage,
                client=client,
            )
            for backend in self.backends
        }


class Programs:
    """See the module's text. Owns `listeners`."""

    def __init__(self, service: Service, listeners: Listeners) -> None:
        self._service = service
        self._listeners = listeners
        self._host: Host | None = None
        self._manager: Manager | None = None
        self._usage: Usage | None = None
        self.equipment = Equipment()

    def open(self, share: VhostShare, printed: int, rows: int) -> None:
        """Make what the first share asks for, for so many workers; what it doesn't is given back."""
        service, options = self._service, self._service.options
        applications, backends, without = plan(share, self._listeners, options.tmp)
        self._listeners.release()
        for mount in without:
            service.log.error(
                "no socket for the processes of a mount: its requests get 503",
                mount=mount,
                reason=self._listeners.problem or "too many mounts have processes",
            )
        if not (wanted(share) or (options.one_uid and backends)):
            self.equipment = Equipment(backends=tuple(backends))
            return
        sockets = {
            backend.mount: (backend.kind, without_links(backend.path, options.tmp)) for backend in backends
        }
        host = self._host = Host(service, share, printed, sockets)
        self._usage = Usage(rows, len(applications))
        if applications:
            self._manager = Manager(
                service.loop,
                service.log,
                host.client,
                self._usage,
                service.budget,
                applications,
                printed=printed,
                grace=share.grace,
                may_start=lambda: host.ready and not service.draining,
            )
        self.equipment = Equipment(host.door, tuple(backends), self._usage, through_door=options.one_uid)

    # ---- what the supervisor's turn brings ----

    def look(self, now: float) -> None:
        """Start the exec service, and again if it has ended; kill one that hangs."""
        if self._host is not None:
            self._host.look(now)

    def gone(self, pid: int, code: int) -> bool:
        """A child was reaped; say whether it was ours."""
        if self._host is None or pid != self._host.pid:
            return False
        self._host.gone(code, time.monotonic())
        return True

    def clear(self, slot: int) -> None:
        """The worker of `slot` has ended."""
        if self._usage is not None:
            self._usage.clear(slot)

    # ---- what is asked ----

    @property
    def pids(self) -> set[int]:
        """Children of the supervisor that are ours."""
        return {self._host.pid} if self._host is not None and self._host.pid else set()

    @property
    def pools(self) -> list[Pool]:
        return [] if self._manager is None else self._manager.pools

    @property
    def tally(self) -> Tally | None:
        """What the exec service has counted; None if there is none."""
        return None if self._host is None else self._host.tally

    @property
    def starts(self) -> int:
        """How often the exec service was started."""
        return 0 if self._host is None else self._host.starts

    @property
    def proven(self) -> bool:
        """Whether every mount has the processes that it should have, and they stay."""
        return all(pool.proven for pool in self.pools)

    @property
    def problem(self) -> str:
        """Why a mount has none, "" if none fails."""
        for pool in self.pools:
            if pool.fails:
                return f"{pool.application.mount}: {pool.failure or 'unknown'}"
        return ""

    # ---- the end ----

    def leave(self, done: Callable[[], None]) -> bool:
        """No request is on its way any more. Say whether no process is left; else `done` is called when none is."""
        return self._manager is None or self._manager.leave(done)

    def close(self) -> None:
        """End all of it at once."""
        if self._manager is not None:
            self._manager.close()
        if self._host is not None:
            self._host.close()
        self._listeners.close()
