"""The supervisor's end of a tenant's logs: what is printed, the access log's entries, and the files they may go to."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyttpd.log import Log
from pyttpd.loop import Loop

from pyttpd_vhost import output as module
from pyttpd_vhost.access import ACCESS_LOGS, LOST, MAX_RECORD, line_pattern
from pyttpd_vhost.http.heads import HeadReader
from pyttpd_vhost.http.llhttp import LlhttpEngine
from pyttpd_vhost.logfile import LogFile, open_log
from pyttpd_vhost.output import Entries, Output, pieces


class Lines:
    """A role's log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.log = Log("vhost", "blog", write=lambda line: self.lines.append(line.decode()))

    def events(self) -> list[str]:
        return [line.split(": ", 1)[1].rstrip("\n") for line in self.lines]


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


class Access:
    """Entries with a worker's access log on its other side and a pipe for its standard output."""

    def __init__(
        self,
        loop: Loop,
        lines: Lines,
        form: str = "combined",
        *,
        file: LogFile | None = None,
        shared: bool = False,
        stdout: int = -1,
    ) -> None:
        self.loop = loop
        self.reader, self.stdout = os.pipe()
        if stdout >= 0:
            os.close(self.stdout)
            self.stdout = stdout
        os.set_blocking(self.reader, False)
        self.entries = Entries(
            loop, lines.log, form=form, vhost="blog", file=file, shared=shared, stdout=self.stdout
        )
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=os.dup(self.entries.fd))
        self.worker = ACCESS_LOGS[form]("blog", self.sock)
        request = HeadReader(LlhttpEngine(), 8192).read(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert request is not None
        self.request = request

    def add(self, count: int = 1) -> None:
        for _ in range(count):
            self.worker.add("::1", self.request, 200, 13, time.monotonic())

    def turn(self, until: Callable[[], bool]) -> None:
        """Turn the loop until something holds."""
        end = time.monotonic() + 10

        def look() -> None:
            if until():
                self.loop.stop()
            else:
                assert time.monotonic() < end
                self.loop.call_later(0.001, look)

        look()
        self.loop.run()

    def read(self) -> bytes:
        try:
            return os.read(self.reader, 1 << 20)
        except BlockingIOError:
            return b""

    def written(self, count: int) -> bytes:
        """Return what is written to standard output until it has `count` lines."""
        data = bytearray()

        def enough() -> bool:
            data.extend(self.read())
            return data.count(b"\n") >= count

        self.turn(enough)
        return bytes(data)

    def close(self) -> None:
        self.entries.close()
        self.sock.close()
        os.close(self.reader)
        if self.stdout >= 0:
            os.close(self.stdout)


@pytest.fixture
def access(loop: Loop, lines: Lines) -> Iterator[Callable[..., Access]]:
    made: list[Access] = []

    def make(form: str = "combined", *, file: LogFile | None = None, shared: bool = False) -> Access:
        made.append(Access(loop, lines, form, file=file, shared=shared))
        return made[-1]

    yield make
    for each in made:
        each.close()


# --- standard output ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("form", "shared", "start"),
    [
        ("combined", False, b"::1 - - ["),
        ("combined", True, b"blog ::1 - - ["),
        ("json", False, b'{"time":'),
        ("json", True, b'{"time":'),
    ],
)
def test_entries_are_written_as_they_are(
    form: str, shared: bool, start: bytes, access: Callable[..., Access]
) -> None:
    there = access(form, shared=shared)
    there.add(100)
    there.worker.flush()
    written = there.written(100).splitlines()
    assert len(written) == 100
    assert all(line.startswith(start) for line in written)


def test_entries_go_into_a_file_as_they_have_come(loop: Loop, lines: Lines, tmp_path: Path) -> None:
    """Whoever else writes there comes between records, never into a line; each line has its tenant's name."""
    path = tmp_path / "stdout"
    stdout = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    there = Access(loop, lines, shared=True, stdout=stdout)
    try:
        there.add(200)
        there.worker.flush()
        os.write(stdout, b"another role's line\n")
        there.turn(lambda: path.read_bytes().count(b"\n") == 201)
        first, *entries = path.read_bytes().splitlines()
        assert first == b"another role's line"
        assert all(entry.startswith(b"blog ::1 - - [") and entry.endswith(b'"-" "-"') for entry in entries)
    finally:
        there.close()


def test_what_is_written_at_once_fits_a_pipe() -> None:
    assert pieces(b"") == []
    assert pieces(b"a\n") == [b"a\n"]
    line = b"x" * 999 + b"\n"
    found = pieces(line * 10)
    assert found is not None
    assert [len(each) for each in found] == [4000, 4000, 2000]
    assert b"".join(found) == line * 10
    assert pieces(b"x" * 4096 + b"\n") is None
    assert pieces(b"a\n" + b"x" * 5000 + b"\nb\n") is None


@pytest.mark.parametrize(
    "record",
    [
        b"::1 - - forged\n",
        b"vhost.other[1] error: forged\n",
        b"\x1b[2J\n",
        b"x" * (MAX_RECORD + 1),
        b"\n",
        b"no end",
    ],
)
def test_what_is_no_entry_is_not_written(record: bytes, access: Callable[..., Access], lines: Lines) -> None:
    there = access()
    there.sock.send(record)
    there.add()
    there.worker.flush()
    assert there.written(1).startswith(b"::1 - - [")
    assert lines.events() == [f"not an entry of the access log bytes={min(len(record), MAX_RECORD + 1)}"]
    assert there.entries.lost == record.count(b"\n")


def test_an_entry_that_is_too_long_is_not_written(access: Callable[..., Access], lines: Lines) -> None:
    there = access()
    there.add()
    (line,) = there.worker.lines
    there.worker.lines[0] = line.replace("GET /", "GET /" + "x" * 5000)
    there.worker.flush()
    there.turn(lambda: bool(lines.lines))
    assert lines.events() == [f"not an entry of the access log bytes={len(line) + 5000}"]
    assert there.read() == b""


def test_a_standard_output_that_takes_nothing_stops_nobody(
    access: Callable[..., Access], lines: Lines
) -> None:
    there = access()
    sent = 0
    while not there.worker._unsent:  # until the socket is full: nobody has taken what was read from it
        there.add(50)
        there.worker.flush()
        sent += 50
        turns = iter(range(3))
        there.turn(lambda turns=turns: next(turns, None) is None)  # type: ignore[misc]
    data = bytearray()

    def all_there() -> bool:
        there.worker.flush()
        data.extend(there.read())
        return data.count(b"\n") == sent

    there.turn(all_there)
    assert lines.lines == []
    assert line_pattern("combined", "blog").fullmatch(bytes(data))  # no line is mixed with another


def test_a_standard_output_that_is_gone(access: Callable[..., Access], lines: Lines) -> None:
    there = access()
    os.close(there.stdout)
    there.stdout = -1
    there.add(3)
    there.worker.flush()
    there.turn(lambda: there.entries.lost == 3)
    there.entries.tell()
    there.entries.tell()
    assert lines.events() == ["entries of the access log are lost count=3"]


def test_who_writes_too_much_waits(access: Callable[..., Access], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES_RATE", 10_000)
    there = access()
    began = time.monotonic()
    there.add(300)  # 23,000 bytes: more than two seconds' worth, of which one is left open
    there.worker.flush()
    there.written(300)
    there.add()
    there.worker.flush()
    there.written(1)
    assert time.monotonic() - began > 1.0


def test_what_workers_have_lost_is_told(access: Callable[..., Access], lines: Lines) -> None:
    there = access()
    for record in (LOST + b"7", LOST + b"x", LOST, LOST + b"9" * 20, LOST + b"999999999"):
        there.sock.send(record)
    there.turn(lambda: there.entries.lost == 1_000_007)
    there.entries.tell()
    assert lines.events() == ["entries of the access log are lost count=1000007"]


def test_a_tenant_that_closes_its_log_has_none(access: Callable[..., Access], lines: Lines) -> None:
    there = access()
    there.sock.shutdown(socket.SHUT_RDWR)
    there.turn(lambda: bool(lines.lines))
    there.entries.finish(0.1)
    assert lines.events() == ["the access log was closed by a process of the tenant's"]


def test_the_end_writes_what_is_there(access: Callable[..., Access]) -> None:
    there = access()
    there.add(2000)  # more than a pipe holds
    there.worker.flush()
    data = bytearray()

    def drain() -> None:
        while data.count(b"\n") < 2000:
            data.extend(there.read())

    reader = threading.Thread(target=drain)
    reader.start()
    there.entries.finish(10.0)
    reader.join()
    assert there.entries.lost == 0


def test_the_end_does_not_wait_for_ever(access: Callable[..., Access], lines: Lines) -> None:
    there = access()
    there.add(2000)
    there.worker.flush()
    there.entries.finish(0.05)
    assert 0 < there.entries.lost < 2000
    assert lines.events() == [f"entries of the access log are lost count={there.entries.lost}"]


def test_who_goes_on_sending_does_not_put_off_the_end(access: Callable[..., Access]) -> None:
    """Something that a worker has left behind; the supervisor has to leave all the same."""
    there = access()
    ended = threading.Event()

    def send() -> None:
        there.sock.setblocking(True)
        while not ended.is_set():
            there.sock.send(b"no entry")

    left_behind = threading.Thread(target=send)
    left_behind.start()
    end = time.monotonic() + 10
    there.entries.finish(0.1)
    assert time.monotonic() < end
    ended.set()
    while left_behind.is_alive():
        there.entries.finish(0.01)
    left_behind.join()


# --- what is printed ------------------------------------------------------------------------------------------
def test_printed_lines_go_to_the_log(loop: Loop, lines: Lines) -> None:
    output = Output(loop, lines.log)
    try:
        os.write(output.fd, b"one\ntwo \x1b[2J\n" + b"x" * 5000 + b"\nrest")
        output.take()
        output.finish()
    finally:
        output.close()
    assert lines.events() == [
        "output one",
        r"output two \x1b[2J",
        f"output {'x' * 4096}",
        f"output {'x' * 904}",
        "output rest",
    ]


def test_what_is_said_of_slow_requests_can_go_elsewhere(loop: Loop, lines: Lines) -> None:
    """As the audit writes it: an event with its traceback below. Whatever else is indented stays where it is."""
    output = Output(loop, lines.log)
    slow: list[bytes] = []
    output.slow = Log("vhost", "test", write=slow.append)

    def write(line: bytes) -> None:
        os.write(output.fd, line)

    report = Log("vhost", "test", write=write)
    report.bare = True
    try:
        report.warning("application failed", traceback="File one")
        report.warning(module.SLOW, path="/a", traceback="File two\nFile three")
        report.warning("another event", traceback="File four")
        report.warning(module.TIMED_OUT, path="/b", traceback="File five")
        os.write(output.fd, b"warning: slow requests\n    | printed\n")
        output.take()
    finally:
        output.close()
    told = b"".join(slow).decode()
    assert [line.partition("output ")[2] for line in told.splitlines()] == [
        "warning: slow request path=/a",
        "    | File two",
        "    | File three",
        "warning: request timed out: its worker retires path=/b",
        "    | File five",
    ]
    assert len(lines.events()) == 6


# --- files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path, lines: Lines) -> Iterator[LogFile]:
    made = LogFile(str(tmp_path / "a.log"), 1000, lines.log)
    yield made
    made.close()


def test_a_file_is_made_and_appended_to(tmp_path: Path, lines: Lines) -> None:
    (tmp_path / "a.log").write_bytes(b"old\n")
    file = LogFile(str(tmp_path / "a.log"), 1000, lines.log)
    file.write(b"new\n")
    file.close()
    assert (tmp_path / "a.log").read_bytes() == b"old\nnew\n"
    file = LogFile(str(tmp_path / "b.log"), 1000, lines.log)
    file.close()
    assert (tmp_path / "b.log").stat().st_mode & 0o777 == 0o640
    assert lines.lines == []


def test_a_renamed_file_is_written_until_it_is_noticed(file: LogFile, tmp_path: Path, lines: Lines) -> None:
    file.write(b"1\n")
    (tmp_path / "a.log").rename(tmp_path / "a.log.1")
    file.write(b"2\n")
    file.look()
    file.write(b"3\n")
    assert (tmp_path / "a.log.1").read_bytes() == b"1\n2\n"
    assert (tmp_path / "a.log").read_bytes() == b"3\n"
    # who rotates may have made the new one already
    (tmp_path / "a.log").rename(tmp_path / "a.log.2")
    (tmp_path / "a.log").touch()
    file.look()
    file.write(b"4\n")
    assert (tmp_path / "a.log").read_bytes() == b"4\n"
    (tmp_path / "a.log").unlink()
    file.look()
    file.write(b"5\n")
    assert (tmp_path / "a.log").read_bytes() == b"5\n"
    assert lines.events() == [f"log file is opened anew file={tmp_path}/a.log"] * 3
    assert file.lost == 0


def test_a_full_file_is_told_and_counted_until_it_is_rotated(
    file: LogFile, tmp_path: Path, lines: Lines
) -> None:
    file.write(b"x" * 899 + b"\n")
    file.write(b"y" * 199 + b"\n")
    file.write(b"z\n" * 51)
    assert (tmp_path / "a.log").stat().st_size == 900
    assert file.lost == 52
    file.write(b"still\n")
    os.truncate(tmp_path / "a.log", 0)
    file.look()
    file.write(b"again\n")
    assert (tmp_path / "a.log").read_bytes() == b"again\n"
    file.write(b"x" * 1000 + b"\n")
    assert lines.events() == [f"log file is full: rotate it file={tmp_path}/a.log limit=1000"] * 2
    assert file.lost == 53


def test_a_full_disk_is_told_and_no_line_is_mixed(
    lines: Lines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = LogFile(str(tmp_path / "a.log"), 1000, lines.log)
    write = os.write
    full = True

    def partly(fd: int, data: bytes) -> int:
        if full and len(data) <= 4:
            raise OSError(28, "No space left on device")
        return write(fd, data[:4] if full else data)

    monkeypatch.setattr(os, "write", partly)
    file.write(b"one\ntwo\n")  # the second line doesn't fit
    file.write(b"abcdef\n")  # not even the first
    full = False
    file.write(b"last\n")
    monkeypatch.undo()
    file.close()
    assert (tmp_path / "a.log").read_bytes() == b"one\nabcd\nlast\n"
    assert file.lost == 2
    assert lines.events() == [
        f'log file can\'t be written file={tmp_path}/a.log error="No space left on device"'
    ]


#: What a tenant might put in the place of its log, or of the folder, and what is said.
TRAPS = ("link", "link_to_folder", "link_on_the_way", "second_name", "fifo", "folder", "device", "socket")


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_in_its_place_is_not_written(trap: str, tmp_path: Path, lines: Lines) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious\n")
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs" / "a.log"
    match trap:
        case "link":
            path.symlink_to(victim)
        case "link_to_folder":
            path.symlink_to(tmp_path)
        case "link_on_the_way":
            (tmp_path / "way").symlink_to("logs")
            path = tmp_path / "way" / "a.log"
        case "second_name":
            path.hardlink_to(victim)
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path = Path("/dev/full")
        case "socket":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))
    with pytest.raises(OSError, match=r"."):
        open_log(str(path))
    file = LogFile(str(path), 1000, lines.log)
    assert not file.is_open
    file.write(b"lost\n")
    file.look()
    assert file.lost == 1
    assert len(lines.lines) == 1
    assert re.match(r"log file can't be opened file=\S+ error=", lines.events()[0])
    assert victim.read_bytes() == b"precious\n"
    assert not (tmp_path / "logs" / "a.log").is_file() or trap in ("link", "second_name")


def test_a_trap_after_rotation_keeps_the_old_file(file: LogFile, tmp_path: Path, lines: Lines) -> None:
    (tmp_path / "a.log").rename(tmp_path / "a.log.1")
    (tmp_path / "a.log").symlink_to(tmp_path / "victim")
    file.look()
    assert lines.lines == []  # it might be in the middle of a rotation
    file.look()
    file.write(b"here\n")
    assert (tmp_path / "a.log.1").read_bytes() == b"here\n"
    assert not (tmp_path / "victim").exists()
    (tmp_path / "a.log").unlink()
    file.look()
    file.write(b"there\n")
    assert (tmp_path / "a.log").read_bytes() == b"there\n"
    assert [event.partition(" file=")[0] for event in lines.events()] == [
        "log file can't be opened",
        "log file is opened anew",
    ]


def test_a_reason_is_told_again_now_and_then(tmp_path: Path, lines: Lines) -> None:
    file = LogFile(str(tmp_path / "no" / "a.log"), 1000, lines.log)
    for _ in range(120):
        file.look()
    assert len(lines.lines) == 3


def test_a_moment_without_a_file_is_no_error(
    file: LogFile, tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.log").rename(tmp_path / "a.log.1")
    opened = os.open

    def may_not(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", may_not)
    file.look()
    (tmp_path / "a.log").write_bytes(b"")
    file.look()
    file.write(b"1\n")
    assert (tmp_path / "a.log").read_bytes() == b"1\n"
    assert lines.events() == [f"log file is opened anew file={tmp_path}/a.log"]


def test_entries_in_a_file(
    access: Callable[..., Access], file: LogFile, tmp_path: Path, lines: Lines
) -> None:
    there = access(file=file, shared=True)
    there.add(5)
    there.worker.flush()
    there.turn(lambda: (tmp_path / "a.log").read_bytes().count(b"\n") == 5)
    assert (tmp_path / "a.log").read_bytes().startswith(b"::1 - - [")
    there.add(100)
    there.worker.flush()
    there.turn(lambda: file.lost == 100)
    there.entries.tell()
    assert lines.events()[-1] == "entries of the access log are lost count=100"
    assert there.read() == b""


def test_entries_go_to_standard_output_while_there_is_no_file(
    access: Callable[..., Access], tmp_path: Path, lines: Lines
) -> None:
    file = LogFile(str(tmp_path / "no" / "a.log"), 1000, lines.log)
    there = access(file=file)
    there.add(5)
    there.worker.flush()
    there.written(5)
    (tmp_path / "no").mkdir()
    file.look()
    there.add(2)
    there.worker.flush()
    there.turn(lambda: (tmp_path / "no" / "a.log").read_bytes().count(b"\n") == 2)
    file.close()
