"""What a tenant's processes say, on its way into the logs: two descriptors, read by the supervisor.

What they print comes through a pipe, and is the tenant's word. It gets into the operator's terminal or log (or the
tenant's own log file) only line by line, each with the tenant's name in front and without control characters, so
that it can neither forge another role's line nor move a cursor. A tenant that prints faster than it is read
waits in its own write().

The entries of the access log come through a socket, as records of whole lines (access.py). They go to the
supervisor's own standard output, or to a file, as they are: so nothing is let through that isn't an entry of this
tenant's. Nobody waits for them: what can't be written, or is more than MAX_ENTRIES_RATE, stays in the socket, and
what doesn't fit in there is counted by the workers.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import sys
import time

from pyttpd.log import Log
from pyttpd.loop import READ, Loop

from pyttpd_vhost.access import LOST, MAX_LINE, MAX_RECORD, line_pattern
from pyttpd_vhost.logfile import LogFile

#: What a worker's audit writes (audit.py), and how the lines below it begin (pyttpd.log).
SLOW, TIMED_OUT = "slow request", "request timed out: its worker retires"
#: The same of an event loop: all requests in it wait, or one was given up.
STUCK, GIVEN_UP = "slow request: the event loop stands still", "request timed out"
_SLOW_LINES = tuple([f"warning: {event} ".encode() for event in (SLOW, TIMED_OUT, STUCK, GIVEN_UP)])
_BELOW = b"    | "
#: A longer printed line is cut into several.
MAX_PRINTED = 4096
#: Read in one turn of the loop.
_CHUNK = 16384
#: What a pipe holds (pipe(7)).
_PIPE = 65536
#: What gets into the log in a second, in bytes; who prints more waits. Each line is counted with what is put in front.
MAX_RATE = 1 << 20
_PER_LINE = 64
_PAUSE = 0.1
#: What gets to the standard output in a second, in bytes: about 80,000 entries.
MAX_ENTRIES_RATE = 8 << 20
#: Records taken in one turn of the loop.
_BURST = 16
#: Until a standard output that is full is tried again (s).
_RETRY = 0.02
#: The most that one record may say to be lost: a number from the tenant's process.
_MAX_LOST = 1_000_000


class Output:
    """The pipe. `fd` is the end for the children; both are closed with the process."""

    def __init__(self, loop: Loop, log: Log) -> None:
        self._read, self.fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read, False)
        self.log = log
        #: Where it goes what is said of slow requests; None: there as well.
        self.slow: Log | None = None
        self._slow_goes_on = False
        self._rest = b""
        self._loop = loop
        self._due = 0.0
        loop.add(self._read, READ, lambda _: self._turn())

    def _turn(self) -> None:
        """Take some; then leave the rest to the pipe for as long as that much may fill the log."""
        now = time.monotonic()
        self._due = max(now, self._due) + self.take() / MAX_RATE
        if self._due - now > 1.0:
            self._loop.modify(self._read, 0)
            self._loop.call_later(_PAUSE, self._go_on)

    def _go_on(self) -> None:
        if self._due - time.monotonic() > 1.0:
            self._loop.call_later(_PAUSE, self._go_on)
        else:
            self._loop.modify(self._read, READ)

    def take(self) -> int:
        """Log what has been printed; return how many bytes that made, about."""
        try:
            data = self._rest + os.read(self._read, _CHUNK)
        except BlockingIOError:
            return 0
        *lines, self._rest = data.split(b"\n")
        logged = 0
        for line in lines:
            log = self.log if self.slow is None else self._log_for(line, self.slow)
            for start in range(0, len(line) or 1, MAX_PRINTED):
                log.output(line[start : start + MAX_PRINTED].decode("utf-8", "replace"))
                logged += 1
        while len(self._rest) > MAX_PRINTED:
            self.log.output(self._rest[:MAX_PRINTED].decode("utf-8", "replace"))
            self._rest = self._rest[MAX_PRINTED:]
            logged += 1
        return len(data) + _PER_LINE * logged

    def _log_for(self, line: bytes, slow: Log) -> Log:
        """Return where a line goes that may be about a slow request. It is the tenant's word that it is."""
        self._slow_goes_on = line.startswith(_SLOW_LINES) or (self._slow_goes_on and line.startswith(_BELOW))
        return slow if self._slow_goes_on else self.log

    def close(self) -> None:
        """Give both ends back."""
        self._loop.remove(self._read)
        os.close(self._read)
        os.close(self.fd)

    def finish(self) -> None:
        """Log what is left in the pipe, also a last line without an end."""
        for _ in range(_PIPE // _CHUNK):
            self.take()
        if self._rest:
            self.log.output(self._rest.decode("utf-8", "replace"))
            self._rest = b""


class Entries:
    """The socket of the access log. `fd` is the end for the workers; both are closed with the process.

    `file` is where entries go; None, or as long as it can't be opened: standard output, where each line begins with
    the tenant's name if that is `shared` with other tenants and the form (combined) doesn't hold it.
    """

    def __init__(
        self,
        loop: Loop,
        log: Log,
        *,
        form: str,
        vhost: str,
        file: LogFile | None,
        shared: bool,
        stdout: int = 1,
    ) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self.fd = self._theirs.fileno()
        #: Entries that are in no log, since the start.
        self.lost = 0
        self._told = 0
        self._loop = loop
        self._log = log
        self._file = file
        self._pattern = line_pattern(form, vhost)
        self._name = f"{vhost} ".encode() if shared and form == "combined" else b""
        self._stdout = stdout
        #: What is written to a file in one piece stays in one; in a pipe only what is no longer than PIPE_BUF does.
        self._to_file = stat.S_ISREG(os.fstat(stdout).st_mode)
        self._writable = select.poll()
        self._writable.register(stdout, select.POLLOUT)
        self._rest: list[bytes] = []
        self._due = 0.0
        self._waiting = self._closed = False
        self._listen()

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add(self._ours.fileno(), READ, lambda _: self._turn())

    def close(self) -> None:
        """Give both ends back."""
        self._closed = True
        self._loop.remove(self._ours.fileno())
        self._ours.close()
        self._theirs.close()

    def tell(self) -> None:
        """Tell how many entries were lost since the last time; to be called now and then."""
        lost = self.lost + (self._file.lost if self._file is not None else 0)
        if lost > self._told:
            self._log.warning("entries of the access log are lost", count=lost - self._told)
            self._told = lost

    def finish(self, within: float = 1.0) -> None:
        """Write what is there, for up to `within` s; the workers are gone, but what they have left behind may go on."""
        end = time.monotonic() + within
        while self._take(end) and time.monotonic() < end:
            pass
        self.lost += sum(each.count(b"\n") for each in self._rest)
        self.tell()

    def _turn(self) -> None:
        """Take some records; then leave the others in the socket for as long as it takes to write these."""
        for _ in range(_BURST):
            if not self._take() or self._rest:
                break
        now = time.monotonic()
        if self._rest or self._due - now > 1.0:
            self._waiting = True
            self._loop.remove(self._ours.fileno())
            self._loop.call_later(_RETRY, self._go_on)

    def _go_on(self) -> None:
        self._write_rest()
        if self._rest or self._due - time.monotonic() > 1.0:
            self._loop.call_later(_RETRY, self._go_on)
        else:
            self._waiting = False
            self._listen()

    def _take(self, until: float = 0.0) -> bool:
        """Take one record, if there is one; wait for standard output until `until`."""
        try:
            record = self._ours.recv(MAX_RECORD + 1)
        except BlockingIOError:
            return False
        except OSError:
            record = b""
        if not record:
            # Only the tenant's own code can have done that: to its own log.
            if not self._closed:
                self._closed = True
                self._loop.remove(self._ours.fileno())
                self._log.warning("the access log was closed by a process of the tenant's")
            return False
        if record[:1] == LOST:
            number = record[1:]
            self.lost += min(int(number), _MAX_LOST) if number.isdigit() and len(number) < 10 else 0
            return True
        if not self._is_entries(record):
            self._log.warning("not an entry of the access log", bytes=len(record))
            self.lost += record.count(b"\n")
        elif self._file is not None and self._file.is_open:
            self._file.write(record)
        else:
            self._due = max(time.monotonic(), self._due) + len(record) / MAX_ENTRIES_RATE
            if self._name:
                record = self._name + record[:-1].replace(b"\n", b"\n" + self._name) + b"\n"
            self._rest += [record] if self._to_file else pieces(record) or ()
            self._write_rest(until)
        return True

    def _is_entries(self, record: bytes) -> bool:
        return (
            len(record) <= MAX_RECORD
            and self._pattern.fullmatch(record) is not None
            and (len(record) <= MAX_LINE or pieces(record) is not None)
        )

    def _write_rest(self, until: float = 0.0) -> None:
        """Write to standard output what it takes without waiting, or until `until`."""
        while self._rest:
            left = max(0.0, until - time.monotonic()) if until else 0.0
            if not self._writable.poll(left * 1000):
                return
            piece = self._rest[0]
            try:
                written = os.write(self._stdout, piece)
            except BlockingIOError:
                return
            except OSError:
                self.lost += sum(each.count(b"\n") for each in self._rest)
                self._rest = []
                return
            if written < len(piece):
                self._rest[0] = piece[written:]
            else:
                del self._rest[0]


def pieces(lines: bytes) -> list[bytes] | None:
    """Cut whole lines into pieces that a pipe takes as one (PIPE_BUF); None if there is a longer line."""
    found = []
    start = 0
    while start < len(lines):
        end = lines.rfind(b"\n", start, start + MAX_LINE) + 1
        if not end:
            return None
        found.append(lines[start:end])
        start = end
    return found


def redirect(fd: int) -> None:
    """In a child: print to `fd` from now on, line by line, and close it."""
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
