"""What a keeper does for its role beside keeping it alive: it reads the configuration again, and holds what came of it.

Theory of operation. The role's process is confined for good; its keeper isn't, so it may open the configuration's files
and bind ports, and what it holds outlives the role's process. Between the two there is, beside the heartbeat, a
pair over which the role asks with one word, and the keeper answers with one packet:

    role    prepare   read the configuration again; nothing changes yet
    keeper  outcome   what came of it (`Outcome`, in a memfd)
    role    adopt     what was prepared is in force: whoever serves after this process serves by it
    role    retire    everybody else has it, too: what it doesn't name may end
    role    drop      it isn't to be
    role    keep WHAT a socket that the role was brought back and that the keeper lacks, to outlive the role (init's)

Reading takes seconds for thousands of tenants, so that a *reader*, forked for it, does it: the keeper goes on watching.
Where a runner stands behind the keeper (plain mode), it reads in place of master's keeper, which has a uid by then that
need not be able to, and prepares, adopts and retires what is its own: processes, namespaces. Words go on to it as
they are.

As an ordinary user all have one uid, and who is who is told by doors (rendezvous.py). Those of parts that come
after the start are handed down as well: the keeper of who binds keeps the far end for whoever of its role comes later.

    runner  door DIRECTORY:ROLE:NAME      with a descriptor; the keeper passes it on to its role
    runner  no-door DIRECTORY:ROLE:NAME   nobody comes through it any more

From the role the keeper takes these words and nothing else, and its desk looks at what it is to keep. An Outcome is
only ever handed down: by a reader of our own or the runner, which is root, to the keeper, and by the keeper to the
role. So it may be pickled.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pyttpd import fdpass, privileges
from pyttpd.log import Log
from pyttpd.loop import READ, Loop
from pyttpd.rendezvous import Door
from pyttpd.roles import Channel as Directory
from pyttpd.wire.errors import RemoteProtocolError

if TYPE_CHECKING:
    from pyttpd.config.changes import Plan
    from pyttpd.config.model import Config

PREPARE, ADOPT, RETIRE, DROP = b"prepare", b"adopt", b"retire", b"drop"
OUTCOME = b"outcome"
KEEP = b"keep "
DOOR, NO_DOOR = b"door", b"no-door"
#: A word, a directory, a role and a vhost's name.
_MAX_WORD = 256
#: Ten thousand tenants are read in seconds; a file system that hangs doesn't hang us.
READ_TIMEOUT = 120.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of reading the configuration: it and what it would change, or why it can't be used (all reasons at
    once; `count` is how many there were). `digest` is that of the files, in hex; empty if they couldn't be read.
    """

    digest: str = ""
    errors: tuple[str, ...] = ()
    count: int = 0
    config: Config | None = None
    plan: Plan | None = None
    #: What else the reader has found for who prepares.
    more: object = None

    @classmethod
    def refusal(cls, reason: str, digest: str = "") -> Outcome:
        return cls(digest, (reason,), 1)


class Reading(Protocol):
    """Who reads the configuration; in a process of its own."""

    def read(self) -> Outcome: ...


class Desk(Reading, Protocol):
    """What a role (or the runner) does with a configuration that is read again, in its keeper.

    read() runs in the reader. prepare() may find more reasons against it, after which nothing may be left of it; the
    other calls come after a prepare() without errors, and don't fail.
    """

    def prepare(self, outcome: Outcome) -> Outcome: ...
    def adopt(self) -> None: ...
    def retire(self) -> None: ...
    def drop(self) -> None: ...


@runtime_checkable
class Keeping(Protocol):
    """A desk that keeps sockets. Takes `fd` over, whatever it is."""

    def keep(self, what: bytes, fd: int) -> None: ...


def pack(outcome: Outcome) -> int:
    """Return a memfd with `outcome`; the caller owns it."""
    fd = os.memfd_create("pyttpd-outcome", os.MFD_CLOEXEC)
    _write(fd, outcome)
    return fd


class NoDesk:
    """Of a role that has nothing to do with the configuration: it only gets doors here."""

    def read(self) -> Outcome:
        return Outcome.refusal("this role doesn't read the configuration")

    def prepare(self, outcome: Outcome) -> Outcome:
        return outcome

    def adopt(self) -> None: ...

    def retire(self) -> None: ...

    def drop(self) -> None: ...


def _write(fd: int, outcome: Outcome) -> None:
    view = memoryview(pickle.dumps(outcome, pickle.HIGHEST_PROTOCOL))
    while view:
        view = view[os.write(fd, view) :]


def unpack(fd: int) -> Outcome:
    """Return the Outcome in memfd `fd`, which stays the caller's. Only for what was handed down to us."""
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    found = pickle.loads(data) if data else None  # noqa: S301 - handed down: see the module's text
    return found if isinstance(found, Outcome) else Outcome.refusal("the configuration could not be read")


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected ends that never block."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    return ends


def say(sock: socket.socket, word: bytes, fd: int | None = None) -> bool:
    """Send a word; say whether there was somebody to hear it."""
    try:
        if fd is None:
            fdpass.send(sock, word)
        else:
            fdpass.send_fd(sock, word, fd)
    except OSError:
        return False
    return True


@dataclass(slots=True)
class Reader:
    """A process that reads the configuration for `desk`. `done` becomes readable when it has ended."""

    pid: int
    done: int
    result: int
    until: float

    @classmethod
    def start(cls, desk: Reading) -> Reader:
        """Fork the reader."""
        result = os.memfd_create("pyttpd-outcome", os.MFD_CLOEXEC)
        done, writer = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
                    signal.signal(number, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_SETMASK, ())
                privileges.die_with_parent(parent, signal.SIGKILL)
                privileges.set_process_name("pyttpd-reader")
                _write(result, desk.read())
            finally:
                os._exit(0)
        os.close(writer)
        return cls(pid, done, result, time.monotonic() + READ_TIMEOUT)

    def take(self) -> Outcome:
        """Return what it has found, and close its descriptors. It is reaped by whoever reaps."""
        os.close(self.done)
        try:
            return unpack(self.result)
        finally:
            os.close(self.result)

    def end(self) -> None:
        """Kill it; not reaped yet, so the pid is still its own."""
        os.close(self.done)
        os.close(self.result)
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


@dataclass(slots=True)
class Office:
    """The keeper's side. `runner` is the socket to the runner, if there is one; `asks`: it reads in our place, and
    prepares what is its own.
    """

    desk: Desk
    log: Log
    runner: socket.socket | None = None
    asks: bool = False
    doors: list[Door] = field(default_factory=list)
    theirs: socket.socket | None = None
    _ends: dict[int, socket.socket] = field(default_factory=dict)
    _reader: Reader | None = None
    _asker: int = 0
    _prepared: bool = False

    # ---- what the keeper calls ----

    def before_fork(self) -> socket.socket:
        """Return our end for a child that is about to be forked, which finds its own in `theirs`."""
        ours, self.theirs = pair()
        return ours

    def forked(self, pid: int, ours: socket.socket) -> None:
        self._ends[pid] = ours
        if self.theirs is not None:
            self.theirs.close()
            self.theirs = None

    def in_child(self, ours: socket.socket) -> None:
        """In the forked child: nothing of the keeper's is kept but its own end."""
        ours.close()
        for end in self._ends.values():
            end.close()
        if self._reader is not None:
            os.close(self._reader.done)
            os.close(self._reader.result)
        if self.runner is not None:
            self.runner.close()

    def gone(self, pid: int) -> None:
        """A child has ended. What it had asked for and not adopted isn't to be."""
        end = self._ends.pop(pid, None)
        if end is not None:
            end.close()
        if pid == self._asker:
            self._drop()

    @property
    def pids(self) -> set[int]:
        return set() if self._reader is None else {self._reader.pid}

    def sources(self) -> list[socket.socket | int]:
        """Return what to wait for."""
        found: list[socket.socket | int] = list(self._ends.values())
        if self._reader is not None:
            found.append(self._reader.done)
        if self.runner is not None:
            found.append(self.runner)
        return found

    def turn(self, ready: list[socket.socket | int], now: float) -> None:
        """Do what there is to do for those of `sources` that are ready."""
        for pid, end in list(self._ends.items()):
            if end in ready:
                self._hear(pid, end)
        if self.runner is not None and self.runner in ready:
            self._hear_runner(self.runner)
        if self._reader is not None:
            if self._reader.done in ready:
                reader, self._reader = self._reader, None
                self._settle(reader.take())
            elif now > self._reader.until:
                self._reader.end()
                self._reader = None
                self._settle(
                    Outcome.refusal(f"the configuration could not be read within {READ_TIMEOUT:g} s")
                )

    # ---- words ----

    def _hear(self, pid: int, end: socket.socket) -> None:
        try:
            word, fd = fdpass.recv_fd(end, _MAX_WORD)
        except BlockingIOError:
            return
        except (OSError, RemoteProtocolError, fdpass.DescriptorLost):
            word, fd = b"", None
        if fd is not None:
            if word.startswith(KEEP) and isinstance(self.desk, Keeping):
                self.desk.keep(word[len(KEEP) :], fd)
            else:
                os.close(fd)
            return
        if not word:
            del self._ends[pid]
            end.close()
            return
        match word:
            case b"prepare":
                self._drop()
                self._asker = pid
                if self.runner is not None and self.asks:
                    say(self.runner, PREPARE)
                else:
                    self._reader = Reader.start(self.desk)
            case b"adopt" if self._prepared and pid == self._asker:
                self._prepared = False
                self.desk.adopt()
                self._pass_on(ADOPT)
            case b"retire":
                self.desk.retire()
                self._pass_on(RETIRE)
            case b"drop" if pid == self._asker:
                self._drop()

    def _hear_runner(self, runner: socket.socket) -> None:
        try:
            word, fd = fdpass.recv_fd(runner, _MAX_WORD)
        except BlockingIOError:
            return
        except Exception as error:  # noqa: BLE001 - whatever it was, there is no runner any more
            self.log.error("the runner can't be heard", error=error)
            word, fd = b"", None
        match word.split(b" "):
            case [b"outcome"] if fd is not None:
                try:
                    self._settle(unpack(fd))
                finally:
                    os.close(fd)
            case [b"door", of] if fd is not None:
                self.doors.append(door_of(of, fd))
                for end in self._ends.values():
                    say(end, word, fd)
            case [b"no-door", of]:
                self._close_door(door_of(of, -1))
            case [b""]:
                runner.close()
                self.runner = None

    def _close_door(self, gone: Door) -> None:
        # The role hears of it by the door's end.
        for door in [door for door in self.doors if replace(door, fd=-1) == gone]:
            self.doors.remove(door)
            os.close(door.fd)

    def _pass_on(self, word: bytes) -> None:
        if self.runner is not None and self.asks:
            say(self.runner, word)

    def _drop(self) -> None:
        if self._reader is not None:
            self._reader.end()
            self._reader = None
        if self._prepared:
            self._prepared = False
            self.desk.drop()
        if self._asker:
            self._pass_on(DROP)
        self._asker = 0

    def _settle(self, outcome: Outcome) -> None:
        """Have what was read prepared, and tell who asked."""
        if not self._asker:
            return  # it has ended, or thought better of it
        if not outcome.errors:
            outcome = self.desk.prepare(outcome)
        self._prepared = not outcome.errors
        end = self._ends.get(self._asker)
        if end is not None:
            fd = pack(outcome)
            try:
                say(end, OUTCOME, fd)
            finally:
                os.close(fd)


def door_of(text: bytes, fd: int) -> Door:
    """Return the door that `text` names, with `fd` for its end."""
    directory, role, name = text.decode("ascii").split(":")
    return Door(Directory(directory), role, name, fd)


class Counter:
    """The role's side: where it asks. One question at a time."""

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        self._loop = loop
        self._sock = sock
        self._answer: Callable[[Outcome], None] | None = None
        #: Takes over the descriptor of a door that has come.
        self.on_door: Callable[[Door], None] = lambda door: os.close(door.fd)
        loop.add(sock.fileno(), READ, self._on_event)

    def prepare(self, answer: Callable[[Outcome], None]) -> None:
        """Have the configuration read again; answer(outcome) is called once."""
        self._answer = answer
        if not say(self._sock, PREPARE):
            self._settle(Outcome.refusal("the keeper isn't there"))

    def adopt(self) -> None:
        say(self._sock, ADOPT)

    def retire(self) -> None:
        say(self._sock, RETIRE)

    def drop(self) -> None:
        self._answer = None
        say(self._sock, DROP)

    def keep(self, what: bytes, fd: int) -> None:
        """Let the keeper have a copy of `fd`. If that fails, our successor is brought it again, as we were."""
        say(self._sock, KEEP + what, fd)

    def _settle(self, outcome: Outcome) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer(outcome)

    def _on_event(self, _: int) -> None:
        try:
            word, fd = fdpass.recv_fd(self._sock, _MAX_WORD)
        except BlockingIOError:
            return
        if fd is not None and word.startswith(DOOR):
            self.on_door(door_of(word.split(b" ")[1], fd))
        elif fd is not None:
            try:
                outcome = unpack(fd)
            finally:
                os.close(fd)
            self._settle(outcome)
        elif not word:
            self._loop.remove(self._sock.fileno())
            self._settle(Outcome.refusal("the keeper isn't there"))
