"""An exec service in a process of its own, for tests, and what is asked of it again and again."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyttpd.confine.kernel import set_no_new_privs
from pyttpd.log import Log

from pyttpd_vhost.execution.client import Client, Spawned
from pyttpd_vhost.execution.host import Door
from pyttpd_vhost.execution.service import ExecService
from pyttpd_vhost.execution.tally import Tally
from pyttpd_vhost.processes import keep_only

PYTHON = sys.executable
PATIENCE = 30.0


class Running:
    """An exec service in a process of its own, without the tenant's locks (tests/integration has those)."""

    def __init__(self, backends: dict[int, tuple[int, str]] | None = None, *, one_uid: bool = False) -> None:
        self.own, self.tenants = Door(), Door()
        self.tally = Tally()
        self.client = Client(self.tenants.asks)
        self._backends = backends or {}
        self._one_uid = one_uid
        self.control: socket.socket | None = None
        self.pid = 0

    def start(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                doors = (self.own.serves, self.tenants.serves)
                keep_only(theirs.fileno(), *(door.fileno() for door in doors))
                set_no_new_privs()
                ExecService(
                    "test",
                    theirs,
                    doors,
                    self.tally,
                    Log("vhost", "test", write=lambda _: None),
                    one_uid=self._one_uid,
                    backends=self._backends,
                ).loop.run()
                status = 0
            finally:
                os._exit(status)
        theirs.close()

    def stop(self) -> None:
        if self.control is not None:
            self.control.close()
            os.waitpid(self.pid, 0)
            self.control = None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def close(self) -> None:
        self.stop()
        self.own.close()
        self.tenants.close()
        self.tally.close()


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.01)
    return found


def read_all(fd: int) -> bytes:
    data = b""
    while True:
        assert select.select([fd], [], [], PATIENCE)[0], "nothing more comes"
        piece = os.read(fd, 65536)
        if not piece:
            return data
        data += piece


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def shell(running: Running, script: str, **options: Any) -> Spawned:
    return running.client.spawn(["/bin/sh", "-c", script], {"PATH": "/usr/bin:/bin"}, "/", **options)


def python(
    running: Running, script: str, *arguments: str, environment: dict[str, str] | None = None, **options: Any
) -> Spawned:
    return running.client.spawn(
        [PYTHON, "-I", "-S", "-c", script, *arguments], environment or {}, "/", **options
    )
