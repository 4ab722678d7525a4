"""How full the accept queues are, asked of the kernel by socket diagnostics (sock_diag(7)) with pyroute2."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from pyroute2 import DiagSocket
from pyroute2.netlink.diag import SS_LISTEN

from pyttpd_init.sockets import Plan


class AcceptQueues:
    """Watches listening sockets by their address. Opens its netlink socket now, to be used after confinement."""

    def __init__(self, watched: Iterable[Plan]) -> None:
        self._names = {
            (plan.host, plan.port): plan.name if plan.use == "listen" else f"{plan.name}-metrics"
            for plan in watched
        }
        self._diag = DiagSocket()
        self._diag.bind()

    def read(self) -> list[tuple[str, int, int]]:
        """Return (listener, connections that wait, connections that may wait) for each watched socket.

        For a listening socket idiag_rqueue is the queue's length and idiag_wqueue its limit (inet_diag.h).
        """
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            for row in self._diag.get_sock_stats(family=family, states=1 << SS_LISTEN):
                name = self._names.get((row["idiag_src"], row["idiag_sport"]))
                if name is not None:
                    found.append((name, row["idiag_rqueue"], row["idiag_wqueue"]))
        return found
