"""What asks the exec service for a program: workers for a request, the supervisor for application processes.

Rules
  1. A program that was started is a `Spawned`, which owns its descriptors. close() ends the program with all that it
     has forked, whatever it is doing; so does the end of the process that holds it.
  2. spawn() waits, for a worker's thread. ask() doesn't, for who has a loop: what it returns is ready to be read when
     the answer is there.
  3. Any thread may use a client; a Spawned is one thread's at a time.

In step with: frames.py, service.py, reaper.py.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, NoReturn

from pyttpd import fdpass
from pyttpd.wire.errors import RemoteProtocolError

from pyttpd_vhost.execution import frames
from pyttpd_vhost.execution.frames import (
    STDERR,
    STDIN,
    STDOUT,
    Connect,
    Connected,
    Ended,
    Limits,
    Refusal,
    Refused,
    Run,
    Side,
    Started,
)

#: The service may be about to be started again, or have much to do: so long (s) an answer is waited for.
PATIENCE: Final = 15.0
NO_LIMITS: Final = Limits()


class SpawnError(Exception):
    """Nothing was started. `reason` is one of a few fixed words: "unavailable" (the service is gone, or doesn't
    answer), or a Refusal's name in lower case; `code` an errno or 0.

    `passing`: it is a matter of load, and the same may succeed later (503).
    """

    def __init__(self, reason: str, text: str, code: int = 0) -> None:
        super().__init__(text or reason)
        self.reason = reason
        self.code = code
        self.passing = reason in ("unavailable", "busy", "processes")


class Spawned:
    """A program that runs. `stdin`, `stdout`, `stderr` are our ends of its pipes, -1 for those that were given to it;
    whoever closes one writes -1 there. `end` becomes readable when it has ended.
    """

    __slots__ = ("end", "pid", "reaper", "result", "stderr", "stdin", "stdout")

    def __init__(self, started: Started, fds: Sequence[int], end: socket.socket) -> None:
        there = list(fds)
        self.pid = started.pid
        self.reaper = started.reaper
        self.stdin, self.stdout, self.stderr = (
            there.pop(0) if started.streams & flag else -1 for flag in (STDIN, STDOUT, STDERR)
        )
        self.end = end
        self.result: Ended | None = None

    def ended(self, within: float = 0.0) -> Ended | None:
        """Return how it ended, waiting up to `within` s for that; None if it runs.

        Raises SpawnError ("unavailable") if nobody can say any more: the service has ended, and so has the program.
        """
        if self.result is None and _ready(self.end, select.POLLIN, time.monotonic() + within):
            frame, fds = _receive(self.end)
            for fd in fds:
                os.close(fd)
            if not isinstance(frame, Ended):
                raise SpawnError("unavailable", "the exec service has broken its protocol")
            self.result = frame
        return self.result

    def signal(self, number: int) -> bool:
        """Send a signal (frames.SIGNALS) to its process group; say whether somebody is there to do so."""
        try:
            fdpass.send(self.end, frames.encode(frames.Signal(number)))
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close what is open of its pipes, and end it with all that it has forked."""
        for name in ("stdin", "stdout", "stderr"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)
        self.end.close()

    def __enter__(self) -> Spawned:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Asked:
    """A question to the service. Readable (fileno) when the answer is there."""

    __slots__ = ("_sock",)

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def answer(self) -> tuple[frames.Frame, list[int], socket.socket]:
        """Return what has come, its descriptors, and our end of the pair, all the caller's now. Raises SpawnError."""
        try:
            frame, fds = _receive(self._sock)
            if isinstance(frame, Refused):
                raise SpawnError(frame.reason.name.lower(), frame.text, frame.code)
        except SpawnError:
            self._sock.close()
            raise
        return frame, fds, self._sock

    def spawned(self) -> Spawned:
        """Return the program that was asked for. Raises SpawnError."""
        frame, fds, sock = self.answer()
        if not isinstance(frame, Started):
            self._wrong(fds)
        return Spawned(frame, fds, sock)

    def connected(self) -> socket.socket:
        """Return the connection that was asked for. Raises SpawnError."""
        frame, fds, sock = self.answer()
        if not isinstance(frame, Connected):
            self._wrong(fds)
        sock.close()
        return socket.socket(fileno=fds[0])

    def _wrong(self, fds: list[int]) -> NoReturn:
        for fd in fds:
            os.close(fd)
        self._sock.close()
        raise SpawnError("unavailable", "the exec service has broken its protocol")

    def cancel(self) -> None:
        """It isn't wanted any more."""
        self._sock.close()


class Client:
    """Who may ask. `door` is the socket that the service reads the other end of; it stays the caller's."""

    def __init__(self, door: socket.socket) -> None:
        self._door = door

    def spawn(
        self,
        argv: Sequence[str | bytes],
        environment: Mapping[str, str | bytes],
        directory: str | bytes,
        *,
        limits: Limits = NO_LIMITS,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        patience: float = PATIENCE,
    ) -> Spawned:
        """Have a program run, and return it when it does (execve has succeeded).

        argv: the program first, an absolute path, or a name that is looked for in the environment's PATH. environment:
        all that it gets. directory: absolute. stdin, stdout, stderr: descriptors that it gets, which stay the caller's;
        None makes a pipe. patience: seconds until there has to be an answer.
        Raises SpawnError; frames.TooLarge or LocalProtocolError (a NUL, say) for what no program can be given.
        """
        until = time.monotonic() + patience
        run = _run(argv, environment, directory, limits, (stdin, stdout, stderr))
        given = [fd for fd in (stdin, stdout, stderr) if fd is not None]
        return self._wait(self._ask(run, given, until), until).spawned()

    def ask(
        self,
        argv: Sequence[str | bytes],
        environment: Mapping[str, str | bytes],
        directory: str | bytes,
        *,
        limits: Limits = NO_LIMITS,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Asked:
        """The same without waiting: the answer's spawned() may be taken when it is readable."""
        run = _run(argv, environment, directory, limits, (stdin, stdout, stderr))
        return self._ask(run, [fd for fd in (stdin, stdout, stderr) if fd is not None], 0.0)

    def connect(self, mount: int, *, patience: float = PATIENCE) -> socket.socket:
        """Return a connection to the socket of the backend at `mount`, for who may not connect itself.

        Raises SpawnError: "backend" with the errno of connect(2).
        """
        until = time.monotonic() + patience
        return self._wait(self._ask(Connect(mount), [], until), until).connected()

    def _ask(self, frame: Run | Connect, given: list[int], until: float) -> Asked:
        data = frames.encode(frame)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            while True:
                try:
                    fdpass.send_fds(self._door, data, [theirs.fileno(), *given])
                    return Asked(ours)
                except BlockingIOError:
                    # As much waits as the kernel holds.
                    if _ready(self._door, select.POLLOUT, until):
                        continue
                    ours.close()
                    raise SpawnError("busy", "the exec service takes nothing") from None
                except OSError as error:
                    ours.close()
                    raise SpawnError("unavailable", f"the exec service's door: {error.strerror}") from None

    @staticmethod
    def _wait(asked: Asked, until: float) -> Asked:
        if not _ready(asked, select.POLLIN, until):
            asked.cancel()
            raise SpawnError("unavailable", "the exec service doesn't answer")
        return asked


def _run(
    argv: Sequence[str | bytes],
    environment: Mapping[str, str | bytes],
    directory: str | bytes,
    limits: Limits,
    streams: tuple[int | None, ...],
) -> Run:
    flags = (STDIN, STDOUT, STDERR)
    return Run(
        tuple([os.fsencode(argument) for argument in argv]),
        {os.fsencode(name): os.fsencode(value) for name, value in environment.items()},
        os.fsencode(directory),
        limits,
        sum(flag for flag, fd in zip(flags, streams, strict=True) if fd is not None),
    )


def _receive(sock: socket.socket) -> tuple[frames.Frame, list[int]]:
    """Return a frame and its descriptors. Raises SpawnError."""
    try:
        data, fds = fdpass.recv_fds(sock, frames.MAX_ANSWER, 3)
    except fdpass.DescriptorLost:
        raise SpawnError("unavailable", "no descriptor is left for the program's") from None
    except (OSError, RemoteProtocolError) as error:
        raise SpawnError("unavailable", f"the exec service: {error}") from None
    if not data:
        raise SpawnError("unavailable", "the exec service has ended")
    try:
        return frames.decode(data, len(fds), Side.SERVICE), fds
    except RemoteProtocolError as error:
        for fd in fds:
            os.close(fd)
        raise SpawnError("unavailable", f"the exec service: {error}") from None


def _ready(what: socket.socket | Asked, events: int, until: float) -> bool:
    """Wait for one of `events` until `until` (CLOCK_MONOTONIC); say whether there is one."""
    poll = select.poll()
    poll.register(what, events)
    return bool(poll.poll(max(0.0, until - time.monotonic()) * 1000))


__all__ = ["NO_LIMITS", "PATIENCE", "Asked", "Client", "Limits", "Refusal", "SpawnError", "Spawned"]
