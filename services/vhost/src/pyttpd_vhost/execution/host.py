"""The supervisor's side of the exec service: it makes the doors, starts the process, watches it, and starts it again.

Rules
  1. There is a service only where something of the tenant's asks for one: a mount of a kind that runs programs.
  2. It is started before the prototype, and no worker has to know when another one takes its place: the supervisor
     holds both ends of each door, so what was asked meanwhile waits in it.
  3. Who dies young is started again with a delay that grows (backoff.py). Who gives no sign of life is killed.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping
from typing import NoReturn

from pyttpd.channel import Channel
from pyttpd.config.shares import VhostShare
from pyttpd.service import Service
from pyttpd.wire.messages import Message, Ready
from pyttpd.wire.permits import Kind, Side

from pyttpd_vhost.backoff import Backoff
from pyttpd_vhost.evictor import BEAT_LIMIT
from pyttpd_vhost.execution import frames, service
from pyttpd_vhost.execution.client import Client
from pyttpd_vhost.execution.tally import Tally
from pyttpd_vhost.processes import keep_only, send_signal


class Door:
    """A pair of sockets: `asks` is the requesters' end, `serves` the service's."""

    def __init__(self) -> None:
        self.serves, self.asks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A frame may be as large as this, however small the machine's default is.
        self.asks.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, frames.MAX_FRAME)

    def close(self) -> None:
        self.serves.close()
        self.asks.close()


class Host:
    """See the module's text. `printed` is the descriptor that the tenant's processes print to; `backends`: the sockets
    that may be asked for.
    """

    def __init__(
        self,
        service: Service,
        share: VhostShare,
        printed: int,
        backends: Mapping[int, tuple[int, str]],
    ) -> None:
        self._service = service
        self._share = share
        self._printed = printed
        self._backends = backends
        self._own, self._tenants = Door(), Door()
        self._control: Channel | None = None
        self._backoff = Backoff()
        self._killed = False
        self._last_beat = 0.0
        self.tally = Tally()
        #: For the application processes; the tenant's workers have one of their own, with the other door.
        self.client = Client(self._own.asks)
        self.pid = 0
        self.born = 0.0
        self.ready = False
        self.starts = 0

    @property
    def door(self) -> socket.socket:
        """What the tenant's processes ask at."""
        return self._tenants.asks

    def look(self, now: float) -> None:
        """Start the service if there is none and it is time; kill one that gives no sign of life."""
        if not self.pid:
            if self._backoff.may_try(now):
                self._start(now)
        elif now - self._last_beat > BEAT_LIMIT and not self._killed:
            self._service.log.error("exec service gives no sign of life and is killed", pid=self.pid)
            self.kill()

    def _start(self, now: float) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                pid = os.fork()
            except OSError as error:
                ours.close()
                delay = self._backoff.died_young(now)
                self._service.log.warning(
                    "exec service could not be forked", error=error, delay=round(delay, 2)
                )
                return
            if pid == 0:
                self._become(theirs)
        self.pid, self.born, self._last_beat, self._killed = pid, now, now, False
        self.starts += 1
        role = self._service
        self._control = Channel(
            ours,
            Kind.CONTROL,
            Side.BINDER,
            loop=role.loop,
            log=role.log,
            faults=role.faults,
            peer="exec-service",
            on_message=self._hear,
            on_close=lambda _channel, _reason: self.kill(),
        )
        role.budget.take()
        self._control.budget = role.budget

    def _become(self, control: socket.socket) -> NoReturn:
        """In the forked child."""
        doors = (self._own.serves, self._tenants.serves)
        keep_only(control.fileno(), self._printed, *(door.fileno() for door in doors))
        options = self._service.options
        service.main(
            self._share,
            control,
            doors,
            self.tally,
            self._service.log,
            printed=self._printed,
            tmp=options.tmp,
            one_uid=options.one_uid,
            backends=self._backends,
        )

    def _hear(self, _: Channel, message: Message, __: int | None) -> None:
        self._last_beat = time.monotonic()
        if isinstance(message, Ready):
            self.ready = True

    def kill(self) -> None:
        """Kill the service; its reapers find out, and end what they have started."""
        if self.pid and not self._killed:
            self._killed = True
            send_signal(self.pid, signal.SIGKILL)

    def gone(self, code: int, now: float) -> None:
        """The service was reaped."""
        assert self._control is not None
        self._control.close()
        self.pid, self.ready = 0, False
        self.tally.set("running", 0)
        self.tally.set("waiting", 0)
        delay = self._backoff.died(now - self.born, now)
        if not self._service.draining:
            self._service.log.warning(
                "exec service ended and is started again", status=code, delay=round(delay, 2)
            )

    def close(self) -> None:
        """End the service, and all that it has started; whoever still asks finds nobody."""
        self.kill()
        if self._control is not None:
            self._control.close()
        self._own.close()
        self._tenants.close()
        # The tally stays: the service is reaped after this, and that is written down in it.
