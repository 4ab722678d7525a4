"""The prototype: has confined itself, imported the application once, and forks workers that share its pages.

It reads nothing but its supervisor's frames. Workers are forked twice, so that they become the supervisor's
children (it is their subreaper), which reaps and kills them; the prototype only says which pid it was.

From here on the tenant's code runs: nothing that this process or a worker says is believed by the supervisor.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from pyttpd import privileges
from pyttpd.channel import Channel, Faults
from pyttpd.config.shares import VhostShare
from pyttpd.log import Log
from pyttpd.loop import Loop
from pyttpd.wire.messages import Beat, Detail, Failed, Message, Ready, Spawn, Spawned
from pyttpd.wire.permits import Kind, Side

from pyttpd_vhost import inquest, worker
from pyttpd_vhost.access import ACCESS_LOGS
from pyttpd_vhost.commons import Commons
from pyttpd_vhost.execution.programs import Equipment
from pyttpd_vhost.output import redirect
from pyttpd_vhost.scoreboard import Scoreboard
from pyttpd_vhost.site import Site
from pyttpd_vhost.tenant import confine_tenant

BEAT_INTERVAL = 1.0
#: Messages that a child says of why it ends, and that its supervisor reads after its end.
MAX_WORDS = 41
_PID = struct.Struct("@i")


def main(
    share: VhostShare,
    control: socket.socket,
    scoreboard: Scoreboard,
    commons: Commons,
    log: Log,
    *,
    printed: int,
    entries: int,
    tracebacks: int,
    tmp: str,
    one_uid: bool,
    told: str = "",
    equipment: Equipment,
) -> NoReturn:
    """Be the prototype of `share`, whose standard output goes to the pipe `printed`; ends with the process.

    `entries` is the socket of the access log, -1 if there is none; tracebacks are written to `tracebacks` when the
    supervisor asks; `told` is why the prototype before has failed; `equipment`: what programs take.
    """
    status = 1
    try:
        redirect(printed)
        inquest.answer(tracebacks)
        log.bare = True
        privileges.set_process_name(f"p:{share.name}")
        prototype = Prototype(share, control, scoreboard, commons, entries, log)
        prototype.confine(tmp, one_uid=one_uid)
        equipment.equip(prototype.site)
        prototype.load(told)
        prototype.loop.run()
        status = 0
    except BaseException as error:  # noqa: BLE001 - the process ends here, whatever it was
        log.error("prototype ended by an error", error=repr(error), traceback=traceback.format_exc())
    finally:
        os._exit(status)


def load(site: Site, log: Log, tell: Callable[[Message], bool], told: str = "") -> None:
    """Import the application; if that fails, say why in the log and to the supervisor, and end the process.

    The log isn't told twice of the same reason: `told` is the last one, and it is tried again every few seconds.
    """
    try:
        site.load()
    except BaseException as error:  # noqa: BLE001 - the process ends here, whatever it was
        reason = describe(error)
        text = traceback.format_exc()
        if reason != told:
            log.error("application failed to load", error=reason, traceback=text)
        for message in last_words(reason, text):
            tell(message)
        sys.stdout.flush()
        os._exit(1)


def last_words(reason: str, text: str) -> list[Message]:
    """Return what a child says of the error that ends it: the traceback's last lines, then the reason."""
    return [*[Detail(line) for line in text.splitlines()[1 - MAX_WORDS :]], Failed(reason)]


def describe(error: BaseException) -> str:
    """Return an exception's name and text, also of one whose str() fails."""
    return traceback.format_exception_only(error)[-1].strip()


class Prototype:
    """See the module's text. Owns `control`."""

    def __init__(
        self,
        share: VhostShare,
        control: socket.socket,
        scoreboard: Scoreboard,
        commons: Commons,
        entries: int,
        log: Log,
    ) -> None:
        self._share = share
        self._scoreboard = scoreboard
        self._log = log
        self.loop = Loop()
        self._control = Channel(
            control,
            Kind.CONTROL,
            Side.CONNECTOR,
            loop=self.loop,
            log=log,
            faults=Faults(),
            peer="supervisor",
            on_message=self._on_message,
            on_close=lambda _channel, _reason: self.loop.stop(),
        )
        self.site = Site(share, log, commons)
        if entries >= 0:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=entries)
            self.site.access = ACCESS_LOGS[share.logs.access_log](share.name, sock)

    def confine(self, tmp: str, *, one_uid: bool) -> None:
        """Lock this process, and so all that comes of it, before the tenant's code is seen."""
        confine_tenant(self._share, self._log, tmp, one_uid=one_uid)

    def load(self, told: str) -> None:
        """Import the application, unless each worker is to do that, and tell the supervisor; if that fails, say why,
        and end.
        """
        share = self._share
        os.chdir(share.root)
        if share.preload:
            load(self.site, self._log, self._control.send, told)
            if (threads := threading.enumerate()[1:]) and share.python:
                names = ", ".join(thread.name for thread in threads)
                self._log.warning(
                    "threads that the application has started at import are missing in its workers: preload = false "
                    "helps",
                    threads=names,
                )
        gc.collect()
        gc.freeze()
        self._control.send(Ready())
        self._beat()

    def _beat(self) -> None:
        self._control.send(Beat())
        self.loop.call_later(BEAT_INTERVAL, self._beat)

    def _on_message(self, _: Channel, message: Message, fd: int | None) -> None:
        match message:
            case Spawn(number, slot):
                assert fd is not None
                try:
                    pid = self._fork(number, slot, fd)
                except OSError as error:
                    # The tenant has used up its processes. The control channel's end tells the supervisor.
                    self._log.warning("a worker could not be forked", worker=number, error=error)
                    return
                finally:
                    os.close(fd)
                self._control.send(Spawned(number, pid))
            case _:
                self.loop.stop()

    def _fork(self, number: int, slot: int, control: int) -> int:
        """Fork worker `number` twice and return its pid, when the supervisor has become its parent."""
        reader, writer = os.pipe()
        try:
            between = os.fork()
        except OSError:
            os.close(reader)
            os.close(writer)
            raise
        if between == 0:
            status = 1
            try:
                pid = os.fork()
                if pid == 0:
                    os.close(reader)
                    os.close(writer)
                    self._be_worker(number, slot, control)
                os.write(writer, _PID.pack(pid))
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        try:
            answer = os.read(reader, _PID.size)
        finally:
            os.close(reader)
            os.waitpid(between, 0)
        if len(answer) != _PID.size:
            raise OSError("a worker could not be forked")
        return int(_PID.unpack(answer)[0])

    def _be_worker(self, number: int, slot: int, control: int) -> NoReturn:
        status = 1
        process: worker.Worker | None = None
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=os.dup(control))
            os.close(control)
            # The loop first: its epoll is the prototype's too, and must not be told to forget the prototype's channel.
            self.loop.close()
            self._control.close()
            privileges.set_process_name(f"w{number}:{self._share.name}")
            self.site.clients = self.site.commons.clients(slot)
            if self.site.access is not None:
                self.site.access.worker = number
            for place in self.site.places.values():
                place.row = slot
            process = worker.Worker(self.site, sock, self._scoreboard, slot, number, self._log)
            if not self._share.preload:
                load(self.site, self._log, process.tell)
            process.run()
            status = 0
        except BaseException as error:  # noqa: BLE001 - the process ends here, whatever it was
            reason, text = describe(error), traceback.format_exc()
            self._log.error("worker ended by an error", error=reason, traceback=text)
            if process is not None:
                for message in last_words(reason, text):
                    process.tell(message)
        finally:
            self.site.finish()
            sys.stdout.flush()
            os._exit(status)
