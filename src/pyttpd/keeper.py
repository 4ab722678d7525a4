"""The keeper: every role's PID 1. It reads no peer; it starts the role, watches it, replaces it and reaps.

Theory of operation. The keeper has imported the role's code and holds what has to outlive a single role
process: the bound channel sockets and the inherited doors. The role is forked from it, so a successor is
there within milliseconds. Between the two there is one socketpair over which the role says one byte at a
time: `R` ready, `N` not (any more), `D` draining, `.` alive; `j` or `t`, and `0` to `3`, say in which form and
from which level on the log is wanted, which the keeper can't read in any share; `S` asks for a successor,
`F` is said by one that won't become ready, and `W` by one that leaves so that another follows which may meet strangers
(seed.py). That is all the keeper ever reads, and any other byte counts as alive.
The keeper says two things to the role: `L`, right before SIGTERM, when the keeper itself was told to leave, so that
nobody follows; and `S` to who leaves, once the successor is ready.

    start      fork; the role confines itself and serves
    crash      start again, with a delay that grows while it keeps crashing
    silence    no byte for BEAT_LIMIT seconds (a hung process), or stopped by a signal for STOP_LIMIT: SIGKILL, then as
               a crash
    max_age, S start a successor, wait until it is ready, ask the old one to leave (SIGTERM), kill it after `grace`
    SIGHUP     for master, who reads the configuration anew; elsewhere it is as if the role had said S
    SIGUSR2    as if the role had said S, for master too
    W          the role ends: who follows is an interpreter of its own, by exec. So is who follows because of S, if ours
               was forked from a seed; whoever else we start then sleeps
    draining   somebody else has asked the role to leave (SIGTERM to its own process): a successor is started at once
    SIGTERM    ask all to leave; after `grace`, or at the second signal, SIGKILL; reap everything; end

What a role that died has left behind (a tenant's workers, when their supervisor was killed) is ours now, as we are the
subreaper. It gets `grace` to finish what its clients have in hand, and is killed then; what a role that left in good
order leaves behind is killed at once.
"""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from pyttpd import privileges
from pyttpd.health import HealthFile
from pyttpd.log import LEVELS, Log
from pyttpd.office import Office

#: The role says that it is alive so often (s) ...
BEAT_INTERVAL = 1.0
#: One that sleeps says so seldomer, by this factor, and its keeper isn't up more often than it: thousands may sleep.
ASLEEP_BEATS = 2
#: A keeper that waits for its role's next beat waits so much longer (s), and is woken once.
BEAT_SLACK = 0.25
#: ... and is killed when it hasn't for so long.
BEAT_LIMIT = 10.0
#: Delays (s) before a crashed role is started again; a role that lived for STABLE_AFTER counts as healthy again.
FIRST_DELAY = 0.05
LAST_DELAY = 5.0
STABLE_AFTER = 10.0
#: Lives end up to this share earlier, so that what was born together doesn't die together.
AGE_JITTER = 0.1
#: A successor that isn't ready after so long (s) is given up; the old one stays.
SUCCESSION_TIMEOUT = 60.0

#: The signals that ask a keeper to leave.
_LEAVE = (signal.SIGTERM, signal.SIGINT)
#: The one that asks it to replace its role's process.
REPLACE = signal.SIGUSR2

READY, NOT_READY, DRAINING, ALIVE = b"R", b"N", b"D", b"."
RENEW, FAILED, WAKE = b"S", b"F", b"W"
#: What the keeper says to the role.
NOBODY_FOLLOWS, RELIEVED = b"L", b"S"
LOG_FORMATS = {b"j": "json", b"t": "text"}
LOG_LEVELS = {b"%d" % number: level for number, level in enumerate(LEVELS)}


@dataclass(slots=True)
class Child:
    """A process of the role. `beat` is our end of the pair it says it is alive over."""

    pid: int
    beat: socket.socket
    born: float
    last_beat: float
    dies_at: float
    renew_at: float = float("inf")
    ready: bool = False
    draining: bool = False
    waking: bool = False
    asked_at: float | None = None
    deaf: bool = False
    relieved: bool = False


@dataclass(slots=True)
class Keeper:
    """Keeps one role alive. serve(beat) is run in the forked process, and owns `beat`.

    overlap: a successor is ready before its predecessor is asked to leave. Not so init, whose successor gets back what
    others hold only when they have lost the old one; it has nothing in hand that could be lost meanwhile.
    """

    serve: Callable[[socket.socket], None]
    log: Log
    health: HealthFile
    grace: float
    max_age: float
    #: Where the role asks for what it has no right to any more.
    office: Office | None = None
    overlap: bool = True
    #: SIGHUP is the role's own affair.
    forwards_hup: bool = False
    #: Become the role in an interpreter of its own, where what we fork must not meet strangers; never returns.
    become: Callable[[socket.socket, bool], NoReturn] | None = None
    #: Whoever is started now succeeds somebody because that was asked for.
    renewing: bool = False
    children: list[Child] = field(default_factory=list)
    _crashes: int = 0
    _start_at: float | None = 0.0
    _waking: bool = False
    _signals: int = 0
    _succession_since: float | None = None
    _stopped: dict[int, float] = field(default_factory=dict)
    _orphans: dict[int, float] = field(default_factory=dict)

    def run(self) -> int:
        """Keep the role until SIGTERM or SIGINT; return the exit status."""
        privileges.adopt_orphans()
        wake, wake_end = socket.socketpair()
        for end in (wake, wake_end):
            end.setblocking(False)
        signal.set_wakeup_fd(wake_end.fileno(), warn_on_full_buffer=False)
        for number in _LEAVE:
            signal.signal(number, lambda *_: self._on_leave())
        signal.signal(REPLACE, lambda *_: self._on_replace())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGHUP, lambda *_: self._on_hup())
        self.health.write("starting")
        while not (self._signals and not self.children):
            self._turn(wake)
        self._end_strays()
        self.health.remove()
        signal.set_wakeup_fd(-1)  # one more signal may come, and the pair ends with us
        return 0

    # ---- one turn ----

    def _turn(self, wake: socket.socket) -> None:
        now = time.monotonic()
        if self._start_at is not None and now >= self._start_at and not self._signals:
            self._start_at = None
            self.renewing = False
            waking, self._waking = self._waking, False
            self._start(now, waking=waking)
        sources = [] if self.office is None else self.office.sources()
        try:
            ready, _, _ = select.select(
                [wake, *(child.beat for child in self.children if not child.deaf), *sources],
                [],
                [],
                self._wait(now),
            )
        except InterruptedError:
            ready = []
        now = time.monotonic()
        if wake in ready:
            try:
                wake.recv(256)
            except BlockingIOError:
                pass
        for child in self.children:
            if child.beat in ready:
                self._listen(child, now)
        if self.office is not None:
            self.office.turn(ready, now)
        self._reap(now)
        self._watch(now)
        if self._orphans:
            self._watch_orphans(now)
        self._tell()

    def _wait(self, now: float) -> float:
        times = [now + (BEAT_INTERVAL if self.become is None else ASLEEP_BEATS * BEAT_INTERVAL + BEAT_SLACK)]
        if self._start_at is not None:
            times.append(self._start_at)
        for child in self.children:
            times.append(child.last_beat + BEAT_LIMIT)
            if child.asked_at is not None:
                times.append(child.asked_at + self.grace)
        times += [since + privileges.STOP_LIMIT for since in self._stopped.values()]
        times += self._orphans.values()
        return max(0.0, min(times) - now) + 0.001

    def _start(self, now: float, *, waking: bool = False) -> None:
        # A signal that comes in between would be heard by nobody: not by a child that isn't listed yet, and in the
        # child by what is still our handler. One that came before has been handled when this returns.
        signal.pthread_sigmask(signal.SIG_BLOCK, _LEAVE)
        if self._signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEAVE)
            return
        ours, theirs = socket.socketpair()
        desk = None if self.office is None else self.office.before_fork()
        keeper = os.getpid()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in (*_LEAVE, REPLACE, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            # Until the role hears it, it must not end it.
            signal.signal(signal.SIGHUP, signal.SIG_IGN if self.forwards_hup else signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEAVE)
            ours.close()
            for child in self.children:
                child.beat.close()
            if self.office is not None and desk is not None:
                self.office.in_child(desk)
            self._run_role(theirs, keeper, apart=waking or self.renewing)
        theirs.close()
        ours.setblocking(False)
        if self.office is not None and desk is not None:
            self.office.forked(pid, desk)
        life = self.max_age * random.uniform(1 - AGE_JITTER, 1) if self.max_age else float("inf")
        self.children.append(Child(pid, ours, now, now, now + life))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEAVE)

    def _run_role(self, beat: socket.socket, keeper: int, *, apart: bool) -> NoReturn:
        status = 1
        try:
            privileges.die_with_parent(keeper, signal.SIGKILL)
            if apart and self.become is not None:
                self.become(beat, self.renewing)
            self.serve(beat)
            status = 0
        except BaseException as error:  # noqa: BLE001 - a role must not come back into the keeper's loop
            import traceback

            self.log.error("role ended by an error", error=repr(error), traceback=traceback.format_exc())
        finally:
            os._exit(status)

    def _listen(self, child: Child, now: float) -> None:
        try:
            said = child.beat.recv(64)
        except (BlockingIOError, ConnectionError):
            return
        if not said:
            child.deaf = True  # it closed its end: its death, or its silence, is noticed elsewhere
            return
        child.last_beat = now
        child.draining = child.draining or DRAINING in said
        child.waking = child.waking or WAKE in said
        for byte, form in LOG_FORMATS.items():
            if byte in said:
                self.log.format = form
        for byte, level in LOG_LEVELS.items():
            if byte in said:
                self.log.level = level
        if RENEW in said:
            child.renew_at = min(child.renew_at, now)
        if FAILED in said:
            self._failed(child, now)
        if child.draining:
            child.ready = False
        elif said.rfind(READY) != said.rfind(NOT_READY):
            child.ready = said.rfind(READY) > said.rfind(NOT_READY)

    def _reap(self, now: float) -> None:
        for pid, code in privileges.ended(self._stopped):
            self._orphans.pop(pid, None)
            for child in self.children:
                if child.pid == pid:
                    self._gone(child, code, now)
                    break

    def _gone(self, child: Child, code: int, now: float) -> None:
        self.children.remove(child)
        try:
            child.waking = child.waking or WAKE in child.beat.recv(64)
        except (BlockingIOError, ConnectionError):
            pass
        child.beat.close()
        if self.office is not None:
            self.office.gone(child.pid)
        if self._signals or child.asked_at is not None or code == 0:
            self._end_strays(keep={c.pid for c in self.children} | self._readers | self._orphans.keys())
        else:
            self._adopt(now + self.grace)
        if self._signals or (child.asked_at is not None and self.children):
            return
        if child.waking and code == 0:
            if not self.children:
                self._start_at, self._waking = now, True
            return
        reason = f"signal {-code}" if code < 0 else f"status {code}"
        self._crashes = 0 if now - child.born > STABLE_AFTER else self._crashes + 1
        delay = min(LAST_DELAY, FIRST_DELAY * 2 ** min(self._crashes, 16)) if self._crashes else 0.0
        self.log.warning(
            "role died and is started again", pid=child.pid, reason=reason, delay=round(delay, 3)
        )
        if all(other.asked_at is not None for other in self.children):
            self._start_at = now + delay
        else:
            # A successor crashed: the next one comes after the delay as well.
            old = self.children[0]
            old.dies_at = max(old.dies_at, now + delay)
            if self.renewing:
                old.renew_at = now + delay

    @property
    def _readers(self) -> set[int]:
        return set() if self.office is None else self.office.pids

    def _adopt(self, until: float) -> None:
        """Let what a dead role has left behind live `until` then, so that clients get what they have been promised."""
        known = {child.pid for child in self.children} | self._readers
        for pid in privileges.children():
            if pid not in known and pid not in self._orphans:
                self._orphans[pid] = until
                if privileges.is_stopped(pid):
                    self._stopped.setdefault(pid, time.monotonic())

    def _watch_orphans(self, now: float) -> None:
        """Kill whose time is over. What they have forked has no more time than they, so this comes to an end."""
        self._adopt(min(self._orphans.values()))
        while late := [pid for pid, until in self._orphans.items() if now >= until]:
            self.log.warning("processes of a dead role have not ended within grace", count=len(late))
            for pid in late:
                del self._orphans[pid]
                self._stopped.pop(pid, None)
                try:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                except (ProcessLookupError, ChildProcessError):
                    pass
            self._adopt(now)

    def _end_strays(self, keep: set[int] | frozenset[int] = frozenset()) -> None:
        """Kill what dead role processes have left behind: as the subreaper (or PID 1) we have become its parent."""
        while strays := [pid for pid in privileges.children() if pid not in keep]:
            for pid in strays:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            for pid in strays:
                self._stopped.pop(pid, None)
                try:
                    os.waitpid(pid, 0)
                except ChildProcessError:
                    pass

    def _watch(self, now: float) -> None:
        for pid in privileges.stopped_for_good(self._stopped, now):
            # It may be an orphan. Not reaped, so the pid is still our child's.
            self.log.error("process is stopped and is killed", pid=pid)
            os.kill(pid, signal.SIGKILL)
        for child in self.children:
            if now - child.last_beat > BEAT_LIMIT:
                self.log.error("role gives no sign of life and is killed", pid=child.pid, silent=BEAT_LIMIT)
                child.last_beat = now
                _kill(child, signal.SIGKILL)
            elif child.asked_at is not None and now - child.asked_at > self.grace:
                self.log.warning(
                    "role has not left within grace and is killed", pid=child.pid, grace=self.grace
                )
                child.asked_at = now
                _kill(child, signal.SIGKILL)
        if self._signals:
            return
        self._relieve()
        if len(self.children) == 1 and self.children[0].draining and self.children[0].asked_at is None:
            old = self.children[0]
            self.log.info("role was asked to leave: a successor is started", pid=old.pid)
            old.asked_at = now
            self.renewing = False
            self._start(now)
        elif (
            len(self.children) == 1
            and self.children[0].asked_at is None
            and now >= min(self.children[0].dies_at, self.children[0].renew_at)
        ):
            old = self.children[0]
            self.renewing = now >= old.renew_at
            why = "was asked for" if self.renewing else "its predecessor has reached its age"
            self.log.info("a successor is started", pid=old.pid, reason=why)
            old.renew_at = float("inf")
            if self.overlap:
                self._succession_since = now
            else:
                old.asked_at = now
                _kill(old, signal.SIGTERM)
            self._start(now)
            self.renewing = self.renewing and len(self.children) > 1
        elif len(self.children) > 1 and self._succession_since is not None:
            old, new = self.children[0], self.children[-1]
            if new.ready and old.asked_at is None:
                self.log.info("the successor is ready: its predecessor is asked to leave", pid=new.pid)
                old.asked_at = now
                _kill(old, signal.SIGTERM)
            elif not new.ready and now - self._succession_since > SUCCESSION_TIMEOUT:
                self._give_up(new, now, f"not ready within {SUCCESSION_TIMEOUT:g} s")

    def _relieve(self) -> None:
        """Tell who leaves that its successor is ready: until then it may be the only one to hold something."""
        for child in self.children[:-1]:
            if self.children[-1].ready and not child.relieved:
                child.relieved = True
                _say(child, RELIEVED)

    def _failed(self, child: Child, now: float) -> None:
        """`child` says that it won't become ready. Alone it goes on trying; a successor makes way for who serves."""
        if len(self.children) > 1 and child is self.children[-1] and not child.ready:
            self._give_up(child, now, "it says so itself")

    def _give_up(self, new: Child, now: float, reason: str) -> None:
        old = self.children[0]
        if new.asked_at is None and old.asked_at is None:
            self.log.error("successor did not become ready and is given up", pid=new.pid, reason=reason)
            old.dies_at = max(old.dies_at, now + SUCCESSION_TIMEOUT)
            new.asked_at = now
            self._succession_since = None
            _kill(new, signal.SIGKILL)

    def _tell(self) -> None:
        if self._signals:
            state = "draining"
        elif any(child.ready for child in self.children):
            state = "ready"
        else:
            state = "restarting" if self._crashes else "starting"
        self.health.write(state)

    def _on_hup(self) -> None:
        for child in self.children[-1:]:
            if self.forwards_hup:
                _kill(child, signal.SIGHUP)
            else:
                child.renew_at = time.monotonic()

    def _on_replace(self) -> None:
        for child in self.children[-1:]:
            child.renew_at = time.monotonic()

    def _on_leave(self) -> None:
        self._signals += 1
        now = time.monotonic()
        for child in self.children:
            if self._signals > 1:
                _kill(child, signal.SIGKILL)
            else:
                _say(child, NOBODY_FOLLOWS)
                if child.asked_at is None:
                    child.asked_at = now
                    _kill(child, signal.SIGTERM)


def _say(child: Child, byte: bytes) -> None:
    try:
        child.beat.send(byte, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        pass  # it is gone


def _kill(child: Child, number: int) -> None:
    # Not yet reaped, so the pid is still this child's: only _reap and _gone take it away.
    try:
        os.kill(child.pid, number)
    except ProcessLookupError:
        pass
