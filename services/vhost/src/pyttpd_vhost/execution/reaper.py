"""A reaper: starts one program, watches it, and lets nothing of it outlive it.

Rules
  1. One process for each program, forked from the exec service, never from one with threads. It reads no more than a
     signal's number from its requester, and an errno from its own child before that runs foreign code.
  2. The program gets a session of its own, three descriptors, the arguments and variables that it was asked for, and
     nothing else: no other descriptor, no handler or mask, no variable of ours.
  3. Whatever the program forks is below the reaper, which adopts what its parents leave behind. In the end all of it is
     killed in one call, which no fork escapes: kill(-1) from inside a Landlock domain that holds nobody else. The
     program itself has a domain within this, so that it can't kill its reaper. (Where the kernel has no such domains,
     before Linux 6.12, the process group is killed, and what has left it becomes the supervisor's, which kills what it
     doesn't know.)
  4. The end comes with what is first: the program has ended and AFTERWARDS is over, its time is, the requester has
     closed its end, or the exec service is gone.

    STARTING -- execve has succeeded: STARTED --> RUNNING -- it ends: ENDED --> ENDING --> killed, reaped, gone
        '-- errno: REFUSED --> gone

In step with: frames.py, service.py (which forks us), client.py (the requester).
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import resource
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from pyttpd import fdpass, privileges
from pyttpd.confine import landlock, seccomp
from pyttpd.wire.errors import RemoteProtocolError

from pyttpd_vhost.execution import frames
from pyttpd_vhost.execution.frames import STDERR, STDIN, STDOUT, Cause, Ended, Refusal, Refused, Run, Side
from pyttpd_vhost.processes import keep_only

#: What a program has left running may finish its output for so long (s), as long as the requester listens.
AFTERWARDS: Final = 5.0
#: For files that it makes: nobody else writes them.
UMASK: Final = 0o022
#: The soft limit of descriptors; what wants more raises it. select() can't take more, and old programs close them all.
DESCRIPTORS: Final = 1024
#: From SIGXCPU, which a program may catch, to SIGKILL (s).
_CPU_GRACE: Final = 1
#: What a child says that could not become its program: the step, an errno.
_FAILURE: Final = struct.Struct("@ii")
_AT_DIRECTORY, _AT_EXEC = 1, 2
_LAST_DESCRIPTOR: Final = 2**31 - 1
_STREAM_FLAGS: Final = (STDIN, STDOUT, STDERR)


class Stage(enum.Enum):
    """Of a program: forked; execve has succeeded; it has ended."""

    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a reaper gets from its service. `life`: the end of a pipe that is closed when the service ends; `abi`: the
    kernel's Landlock; `refuse_connect`: a filter for programs, where our own processes may connect and they may not.
    """

    name: str
    life: int
    abi: int
    refuse_connect: bytes | None = None


def main(run: Run, reply: socket.socket, given: Sequence[int], around: Surroundings) -> NoReturn:
    """Be the reaper of `run` in a forked process. `given`: the streams that came with it."""
    status = 1
    try:
        keep_only(*sorted({reply.fileno(), around.life, *given}))
        privileges.set_process_name(f"r:{around.name}")
        scoped = landlock.keep_signals(around.abi)
        if scoped:
            privileges.adopt_orphans()
        Reaper(run, reply, given, around, scoped=scoped).run()
        status = 0
    finally:
        os._exit(status)


class Reaper:
    """See the module's text."""

    def __init__(
        self,
        run: Run,
        reply: socket.socket,
        given: Sequence[int],
        around: Surroundings,
        *,
        scoped: bool,
    ) -> None:
        self._run = run
        self._reply = reply
        self._around = around
        self._scoped = scoped
        self._stage = Stage.STARTING
        self._deadline = time.monotonic() + run.limits.wall if run.limits.wall else float("inf")
        self._ours: list[int] = []
        theirs = self._streams(run.streams, given)
        self._said, say = os.pipe2(os.O_CLOEXEC)
        try:
            self._pid = os.fork()
        except OSError as error:
            self._send(Refused(Refusal.PROCESSES, error.errno or 0, "no process could be forked"))
            os._exit(0)
        if self._pid == 0:
            become(run, theirs, say, around)
        self._reaped = False
        for fd in (*theirs, say):
            os.close(fd)
        self._pidfd = os.pidfd_open(self._pid)

    def _streams(self, flags: int, given: Sequence[int]) -> list[int]:
        """Return the program's three descriptors; our ends of those that are pipes are in `_ours`."""
        theirs, there = [], list(given)
        for flag in _STREAM_FLAGS:
            if flags & flag:
                theirs.append(there.pop(0))
                continue
            reader, writer = os.pipe2(os.O_CLOEXEC)
            theirs.append(reader if flag == STDIN else writer)
            self._ours.append(writer if flag == STDIN else reader)
        return theirs

    def run(self) -> None:
        """Watch until the end, and see to it."""
        poll = select.poll()
        for fd in (self._said, self._reply.fileno(), self._pidfd, self._around.life):
            poll.register(fd, select.POLLIN)
        handlers: dict[int, Callable[[], bool]] = {
            self._said: self._hear,
            self._reply.fileno(): self._obey,
            self._pidfd: self._gone,
            self._around.life: lambda: False,
        }
        goes_on = True
        while goes_on:
            left = self._deadline - time.monotonic()
            ready = poll.poll(None if left == float("inf") else max(0.0, left) * 1000 + 1)
            if not ready and time.monotonic() >= self._deadline:
                if self._stage is not Stage.ENDING:
                    self._kill()
                    self._tell_end(Cause.WALL)
                break
            for fd, _ in sorted(ready, key=lambda pair: pair[0] != self._said):
                if not handlers[fd]():
                    goes_on = False
                    break
                if fd == self._said or fd == self._pidfd:
                    poll.unregister(fd)
        self._kill()
        while not self._is_last():
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)

    # ---- what happens; each says whether to go on ----

    def _hear(self) -> bool:
        """The child has become its program, or says why not."""
        failure = os.read(self._said, _FAILURE.size)
        os.close(self._said)
        if len(failure) == _FAILURE.size:
            step, code = _FAILURE.unpack(failure)
            reason = Refusal.DIRECTORY if step == _AT_DIRECTORY else Refusal.EXEC
            self._send(Refused(reason, code, os.strerror(code)))
            return False
        self._stage = Stage.RUNNING
        pipes = sum(flag for flag in _STREAM_FLAGS if not self._run.streams & flag)
        told = self._send(frames.Started(self._pid, os.getpid(), pipes), self._ours)
        for fd in self._ours:
            os.close(fd)
        self._ours = []
        return told

    def _obey(self) -> bool:
        """The requester says what the program is to be told, or is gone."""
        try:
            data, fds = fdpass.recv_fds(self._reply, frames.MAX_ANSWER, 1)
        except BlockingIOError:
            return True
        except (OSError, RemoteProtocolError, fdpass.DescriptorLost):
            return False
        for fd in fds:
            os.close(fd)
        if not data or fds:
            return False
        try:
            frame = frames.decode(data, 0, Side.REQUESTER)
        except RemoteProtocolError:
            return False
        if not isinstance(frame, frames.Signal):
            return False
        self._signal(frame.number)
        return True

    def _gone(self) -> bool:
        """The program has ended; what it has forked may be about to finish its output."""
        if not self._scoped:
            self._kill()  # while its pid, and so its group's number, can be nobody else's
        if not self._tell_end(Cause.ITSELF):
            return False
        self._stage = Stage.ENDING
        self._deadline = min(self._deadline, time.monotonic() + AFTERWARDS)
        return not self._is_last()

    # ---- what is done ----

    def _send(self, frame: frames.Frame, fds: Sequence[int] = ()) -> bool:
        try:
            fdpass.send_fds(self._reply, frames.encode(frame), fds)
        except OSError:
            return False  # gone, or it doesn't read: the same
        return True

    def _tell_end(self, cause: Cause) -> bool:
        """Reap the program, and say what became of it."""
        _, status, usage = os.wait4(self._pid, 0)
        self._reaped = True
        return self._send(
            Ended(
                os.waitstatus_to_exitcode(status),
                cause,
                usage.ru_utime + usage.ru_stime,
                usage.ru_maxrss * 1024,
            )
        )

    def _is_last(self) -> bool:
        """Reap what has ended; say whether we have no child any more: all of the program's would be."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        return False

    def _signal(self, number: int) -> None:
        if not self._reaped:
            try:
                os.killpg(self._pid, number)
            except ProcessLookupError:
                # It hasn't made its session yet.
                signal.pidfd_send_signal(self._pidfd, number)

    def _kill(self) -> None:
        """Kill all that is left."""
        try:
            if self._scoped:
                os.kill(-1, signal.SIGKILL)
            elif not self._reaped:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                os.killpg(self._pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # nobody, or it has ended before it had a group


def become(run: Run, streams: Sequence[int], say: int, around: Surroundings) -> NoReturn:
    """In the forked child: become the program. Says on `say` what didn't work; execve closes it."""
    step = _AT_EXEC
    try:
        parent = os.getppid()
        os.setsid()
        landlock.keep_signals(around.abi)
        # After keep_signals: a domain's change leaves it as it is.
        privileges.die_with_parent(parent, signal.SIGKILL)
        os.umask(UMASK)
        for number in signal.valid_signals():
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        say = _arrange(streams, say)
        step = _AT_DIRECTORY
        os.chdir(run.directory)
        step = _AT_EXEC
        if around.refuse_connect is not None:
            seccomp.install_filter(around.refuse_connect)
        _limit(run.limits)
        os.execvpe(run.argv[0], run.argv, run.environment)
    except OSError as error:
        os.write(say, _FAILURE.pack(step, error.errno or errno.EINVAL))
    except BaseException:  # noqa: BLE001 - whatever it was, nothing runs
        os.write(say, _FAILURE.pack(step, errno.EINVAL))
    finally:
        os._exit(127)


def _arrange(streams: Sequence[int], say: int) -> int:
    """Put `streams` at 0, 1, 2, `say` at 3, which is returned, and close all the rest."""
    # Out of the way first: any of them may be where another one belongs.
    streams = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in streams]
    say = fcntl.fcntl(say, fcntl.F_DUPFD_CLOEXEC, 10)
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    os.dup2(say, 3, inheritable=False)
    os.closerange(4, _LAST_DESCRIPTOR)
    return 3


def _limit(limits: frames.Limits) -> None:
    """Set the program's limits, never above those that we have."""
    wanted = [(resource.RLIMIT_CORE, 0, 0), (resource.RLIMIT_NOFILE, DESCRIPTORS, -1)]
    if limits.cpu:
        wanted.append((resource.RLIMIT_CPU, limits.cpu, limits.cpu + _CPU_GRACE))
    if limits.processes:
        wanted.append((resource.RLIMIT_NPROC, limits.processes, limits.processes))
    if limits.memory:
        wanted.append((resource.RLIMIT_AS, limits.memory, limits.memory))
    for number, soft, hard in wanted:
        most = resource.getrlimit(number)[1]
        top = most if hard < 0 else hard if most == resource.RLIM_INFINITY else min(hard, most)
        resource.setrlimit(number, (soft if top == resource.RLIM_INFINITY else min(soft, top), top))
