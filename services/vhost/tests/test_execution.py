"""The exec service with real processes: what a program gets, what ends it, what is refused, that nothing is left."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyttpd.confine.landlock import SCOPE_ABI, kernel_abi

from pyttpd_vhost.execution import frames, places, reaper, service
from pyttpd_vhost.execution.client import Client, Limits, SpawnError
from pyttpd_vhost.execution.frames import Cause, Refusal
from pyttpd_vhost.execution.tally import Tally
from support.measure import UNMEASURED

from .programs import PATIENCE, Running, alive, python, read_all, shell, wait_for

scoped = pytest.mark.skipif(kernel_abi() < SCOPE_ABI, reason="the kernel has no domains that keep signals")


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    made.start()
    yield made
    made.close()


# ---- what a program gets ----


def test_a_program_gets_its_arguments_variables_directory_and_streams(
    running: Running, tmp_path: Path
) -> None:
    script = 'cat; printf \'%s|%s|%s|\' "$1" "$A" "$PWD"; env | sort; echo wrong >&2; exit 3'
    with running.client.spawn(
        ["/bin/sh", "-c", script, "sh", "one two"],
        {"A": b"\xff x", "PATH": "/usr/bin:/bin"},
        str(tmp_path),
    ) as program:
        os.write(program.stdin, b"body;")
        os.close(program.stdin)
        program.stdin = -1
        out, said = read_all(program.stdout), read_all(program.stderr)
        ended = program.ended(PATIENCE)
    variables = b"A=\xff x\nPATH=/usr/bin:/bin\nPWD=" + bytes(tmp_path) + b"\n"
    assert out.startswith(b"body;one two|\xff x|" + bytes(tmp_path) + b"|")
    assert set(out.rpartition(b"|")[2].splitlines()) - {b"_=/usr/bin/env", b"OLDPWD="} == set(
        variables.splitlines()
    )
    assert said == b"wrong\n"
    assert ended is not None and (ended.status, ended.cause) == (3, Cause.ITSELF)
    assert ended.memory > 0


def test_a_program_is_looked_for_in_its_path(running: Running) -> None:
    with running.client.spawn(["true"], {"PATH": "/usr/bin:/bin"}, "/") as program:
        ended = program.ended(PATIENCE)
    assert ended is not None and ended.status == 0


SURROUNDINGS = """
import os, resource, signal, sys
fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
listing = fds.pop() # the listing's own
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
umask = os.umask(0)
print(repr((fds, listing, sorted(blocked), int(status["SigIgn"], 16), umask, os.getsid(0) == os.getpid(),
    os.getpgid(0) == os.getpid(), dict(os.environ), resource.getrlimit(resource.RLIMIT_CORE),
    resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= 1024)))
"""


def test_a_program_gets_nothing_else(running: Running) -> None:
    """/proc/self/fd of a child: three descriptors; no signal is blocked; its own session; no variable of ours."""
    os.environ["SECRET"] = "of the server"
    try:
        # Python ignores SIGPIPE and SIGXFSZ when it starts: what it inherited is in the shell's.
        with shell(running, "grep SigIgn /proc/self/status") as program:
            ignored = read_all(program.stdout).split()
        with python(running, SURROUNDINGS, environment={UNMEASURED: ""}) as program:
            found = eval(read_all(program.stdout))
    finally:
        del os.environ["SECRET"]
    # 32 and 33 are the C library's own, which it doesn't let anybody set (signal(7)).
    assert not int(ignored[1], 16) & ~(3 << 31)
    fds, listing, blocked, _, umask, session, group, environment, core, descriptors = found
    assert (fds, listing) == ([0, 1, 2], 3)
    assert not blocked
    assert umask == 0o022
    assert session and group and descriptors
    assert set(environment) <= {UNMEASURED, "LC_CTYPE"}  # which Python sets by itself
    assert core == (0, 0)


def test_streams_may_be_given(running: Running, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"from a file")
    reader, writer = os.pipe()
    with (
        body.open("rb") as file,
        os.fdopen(reader, "rb") as out,
        shell(running, "cat; echo ' said' >&2", stdin=file.fileno(), stdout=writer, stderr=writer) as program,
    ):
        os.close(writer)
        assert (program.stdin, program.stdout, program.stderr) == (-1, -1, -1)
        assert out.read() == b"from a file said\n"


def test_a_large_environment_travels(running: Running) -> None:
    value = "x" * 60_000
    with running.client.spawn(
        ["/bin/sh", "-c", 'printf %s "$A$B" | wc -c'], {"A": value, "B": value, "PATH": "/usr/bin:/bin"}, "/"
    ) as program:
        assert int(read_all(program.stdout)) == 120_000


def test_more_than_a_frame_is_refused_here(running: Running) -> None:
    with pytest.raises(frames.TooLarge):
        running.client.spawn(["/bin/true"], {"A": "x" * frames.MAX_FRAME}, "/")


# ---- what isn't run ----


@pytest.mark.parametrize(
    ("argv", "directory", "reason", "code"),
    [
        (["/no/such/program"], "/", "exec", errno.ENOENT),
        (["no-such-program"], "/", "exec", errno.ENOENT),
        (["/etc/passwd"], "/", "exec", errno.EACCES),
        (["/bin/true"], "/no/such/directory", "directory", errno.ENOENT),
        (["/bin/true"], "/etc/passwd", "directory", errno.ENOTDIR),
    ],
)
def test_what_cannot_run_says_why(
    running: Running, argv: list[str], directory: str, reason: str, code: int
) -> None:
    with pytest.raises(SpawnError) as caught:
        running.client.spawn(argv, {"PATH": "/usr/bin"}, directory)
    assert (caught.value.reason, caught.value.code, caught.value.passing) == (reason, code, False)


# ---- limits ----


def test_wall_time_ends_it(running: Running) -> None:
    with shell(running, "sleep 1000", limits=Limits(wall=0.3)) as program:
        ended = program.ended(PATIENCE)
        assert ended is not None and (ended.cause, ended.status) == (Cause.WALL, -signal.SIGKILL)
        assert read_all(program.stdout) == b""


def test_processor_time_ends_it(running: Running) -> None:
    with shell(running, "while :; do :; done", limits=Limits(cpu=1)) as program:
        ended = program.ended(PATIENCE)
    assert ended is not None and ended.status == -signal.SIGXCPU
    # What it has used before execve counts for the limit, and the kernel looks at it by ticks.
    assert ended.cpu >= 0.5


def test_memory_is_limited(running: Running) -> None:
    script = "try:\n x = bytearray(1 << 29)\nexcept MemoryError:\n print('none left')"
    with python(running, script, limits=Limits(memory=256 << 20)) as program:
        assert read_all(program.stdout) == b"none left\n"


def test_limits_reach_the_program(running: Running) -> None:
    script = "import resource as r; print([r.getrlimit(n)[0] for n in (r.RLIMIT_CPU, r.RLIMIT_AS, r.RLIMIT_NPROC)])"
    with python(running, script, limits=Limits(cpu=7, memory=1 << 30, processes=321)) as program:
        assert eval(read_all(program.stdout)) == [7, 1 << 30, 321]


# ---- the end of all of it ----

FAMILY = """
import os, sys, time
def spawn():
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            sys.stdout.write(f"{os.getpid()}\\n"); sys.stdout.flush()
            time.sleep(1000)
        os._exit(0) if sys.argv[1] == "orphans" else time.sleep(1000)
spawn()
sys.stdout.write(f"{os.getpid()}\\n"); sys.stdout.flush()
time.sleep(1000 if sys.argv[2] == "stay" else 0)
"""


@scoped
@pytest.mark.parametrize(
    ("shape", "how"),
    [("orphans", "closed"), ("chain", "closed"), ("orphans", "told"), ("chain", "told"), ("chain", "wall")],
)
def test_nothing_outlives_the_request(running: Running, shape: str, how: str) -> None:
    """Also what has made a session of its own, whether its parent lives or not."""
    limits = Limits(wall=5.0) if how == "wall" else Limits()
    with python(running, FAMILY, shape, "stay", limits=limits) as program:
        with os.fdopen(program.stdout, "rb", buffering=0, closefd=False) as out:
            pids = [int(out.readline()), int(out.readline())]
        if how == "wall":
            assert program.ended(PATIENCE) is not None
        elif how == "told":
            assert program.signal(signal.SIGTERM)
            ended = program.ended(PATIENCE)
            assert ended is not None and ended.status == -signal.SIGTERM
    wait_for(lambda: not any(alive(pid) for pid in (*pids, program.reaper)), "all of it to end")


@scoped
def test_what_it_leaves_behind_may_finish_its_output(running: Running) -> None:
    with shell(running, "(sleep 0.5; echo late) & echo early") as program:
        assert program.ended(PATIENCE) is not None
        assert read_all(program.stdout) == b"early\nlate\n"
    wait_for(lambda: not alive(program.reaper), "the reaper to end")


@scoped
def test_what_it_leaves_behind_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "AFTERWARDS", 0.3)
    running = Running()
    running.start()
    try:
        with shell(running, "sleep 1000 & echo $!") as program:
            pid = int(os.read(program.stdout, 100))
            assert program.ended(PATIENCE) is not None
            assert read_all(program.stdout) == b""  # which `sleep` holds as well, until it is killed
            wait_for(lambda: not alive(pid), "it to be killed")
    finally:
        running.close()


@scoped
def test_a_program_cannot_kill_its_reaper_or_the_service(running: Running) -> None:
    script = "kill -9 $PPID; kill -9 $1; kill -9 -1; echo alive"
    with running.client.spawn(
        ["/bin/sh", "-c", script, "sh", str(running.pid)], {"PATH": "/usr/bin:/bin"}, "/"
    ) as program:
        assert read_all(program.stdout) == b"alive\n"
        ended = program.ended(PATIENCE)
    assert ended is not None and ended.status == 0
    assert alive(running.pid)


@scoped
def test_a_fork_bomb_ends_with_its_request(running: Running) -> None:
    bomb = """
import os, sys, time
sys.stdout.write("x"); sys.stdout.flush()
end = time.monotonic() + 60
while time.monotonic() < end:
    try:
        os.fork()
    except OSError:
        pass
    os.setsid() if os.getpid() != os.getsid(0) else None
"""
    # Of everybody under this uid: enough of them, and not too many for a busy machine.
    there = len([name for name in os.listdir("/proc") if name.isdigit()])
    with python(running, bomb, limits=Limits(processes=there + 150)) as program:
        assert os.read(program.stdout, 1) == b"x"
        reaper = program.reaper
    wait_for(lambda: not alive(reaper), "the reaper to have reaped all")


def test_nothing_outlives_the_service(running: Running) -> None:
    with shell(running, "trap '' TERM HUP; sleep 1000 & echo $!; wait") as program:
        pids = [int(os.read(program.stdout, 100)), program.pid, program.reaper]
        running.kill()
        with pytest.raises(SpawnError) as caught:
            program.ended(PATIENCE)
        assert caught.value.reason == "unavailable"
        wait_for(lambda: not any(alive(pid) for pid in pids), "all of it to end")


def test_no_zombies(running: Running) -> None:
    for _ in range(5):
        with shell(running, "exit 0") as program:
            assert program.ended(PATIENCE) is not None
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    wait_for(lambda: not children.read_text().split(), "the service to have reaped its reapers")


# ---- the service itself ----


def test_a_request_waits_for_the_next_service(running: Running) -> None:
    running.kill()
    found: list[Any] = []

    def ask() -> None:
        with shell(running, "echo here") as program:
            found.append(read_all(program.stdout))

    thread = threading.Thread(target=ask)
    thread.start()
    running.start()
    thread.join(PATIENCE)
    assert found == [b"here\n"]


def test_a_service_that_stays_away_is_no_hang(running: Running) -> None:
    running.kill()
    with pytest.raises(SpawnError) as caught:
        shell(running, "true", patience=0.2)
    assert (caught.value.reason, caught.value.passing) == ("unavailable", True)


def test_who_left_meanwhile_is_not_served(running: Running, tmp_path: Path) -> None:
    running.kill()
    mark = tmp_path / "mark"
    with pytest.raises(SpawnError):
        shell(running, f"touch {mark}", patience=0.1)
    running.start()
    with shell(running, "exit 0") as program:
        assert program.ended(PATIENCE) is not None
    assert not mark.exists()


def test_the_door_is_bounded(running: Running) -> None:
    """What the kernel holds while nobody takes it, and then the queue."""
    running.kill()
    asked: list[Any] = []

    def fill() -> None:
        while len(asked) < 10_000:
            asked.append(running.client.ask(["/bin/true"], {"A": "x" * 10_000}, "/"))

    with pytest.raises(SpawnError) as caught:
        fill()
    assert caught.value.reason == "busy"
    assert 10 < len(asked) < 500
    for each in asked:
        each.cancel()


def test_as_many_as_may_run_do_and_the_others_wait_or_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "MAX_RUNNING", 2)
    monkeypatch.setattr(service, "MAX_QUEUED", 2)
    running = Running()
    running.start()
    try:
        first = [shell(running, "read x; echo $x") for _ in range(2)]
        queued = [running.client.ask(["/bin/echo", "later"], {}, "/") for _ in range(2)]
        wait_for(lambda: running.tally["waiting"] == 2, "two to wait")
        with pytest.raises(SpawnError) as caught:
            shell(running, "true")
        assert (caught.value.reason, caught.value.passing) == ("busy", True)
        assert running.tally["running"] == 2
        # the supervisor's own programs don't wait for the tenant's
        with Client(running.own.asks).spawn(["/bin/echo", "own"], {}, "/") as own:
            assert read_all(own.stdout) == b"own\n"
        for program in first:
            program.close()
        for each in queued:
            assert select.select([each], [], [], PATIENCE)[0]
            with each.spawned() as program:
                assert read_all(program.stdout) == b"later\n"
        assert running.tally["busy"] == 1
    finally:
        running.close()


def test_what_waits_grows_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_RUNNING", 1)
    monkeypatch.setattr(service, "MAX_AGE", 0.2)
    monkeypatch.setattr(service, "BEAT_INTERVAL", 0.05)
    running = Running()
    running.start()
    try:
        with shell(running, "sleep 1000"), pytest.raises(SpawnError) as caught:
            shell(running, "true")
        assert caught.value.reason == "busy"
    finally:
        running.close()


# ---- hostile peers ----


def packet(door: socket.socket, data: bytes, *fds: int) -> None:
    door.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


def test_garbage_at_the_door_is_dropped_and_counted(running: Running) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stream, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    good = frames.encode(frames.Run((b"/bin/true",), {}, b"/"))
    door = running.tenants.asks
    cases: list[tuple[bytes, list[int]]] = [
        (b"\0", []),
        (b"x" * 500, []),
        (good, []),  # no requester's end
        (good, [null]),
        (good, [stream.fileno()]),
        (good, [theirs.fileno(), null]),  # one too many
        (good, [theirs.fileno()] * 9),
        (good + b"x", [theirs.fileno()]),
        (good[:-1], [theirs.fileno()]),
        (frames.encode(frames.Signal(signal.SIGTERM)), []),  # belongs to a reaper
        (frames.encode(frames.Started(1, 1)), []),  # said by the service only
        (b"", []),
        (b"", [null]),
        (good + b"x" * frames.MAX_FRAME, [theirs.fileno()]),
    ]
    door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * frames.MAX_FRAME)
    try:
        for data, fds in cases:
            packet(door, data, *fds)
        wait_for(lambda: running.tally["faults"] == len(cases), "all of it to be counted")
        before = len(os.listdir(f"/proc/{running.pid}/fd"))
        packet(door, cases[6][0], *cases[6][1])
        wait_for(lambda: running.tally["faults"] == len(cases) + 1, "one more")
        assert len(os.listdir(f"/proc/{running.pid}/fd")) == before
        with shell(running, "echo fine") as program:
            assert read_all(program.stdout) == b"fine\n"
        theirs.close()
        assert select.select([ours], [], [], PATIENCE)[0]
        assert ours.recv(100) == b""  # nobody holds its other end
    finally:
        for sock in (ours, theirs, stream, other):
            sock.close()
        os.close(null)


def test_garbage_to_a_reaper_ends_its_program(running: Running) -> None:
    for data in (b"x", frames.encode(frames.Run((b"/bin/true",), {}, b"/")), b"\x01\x03\0\0\0\0\0\x01\x09"):
        with shell(running, "sleep 1000") as program:
            program.end.send(data)
            wait_for(lambda: not alive(program.pid), "it to end")


def test_a_door_that_was_shut_is_the_tenants_own_loss(running: Running) -> None:
    running.tenants.asks.shutdown(socket.SHUT_WR)
    with pytest.raises(SpawnError):
        shell(running, "true", patience=0.5)
    with Client(running.own.asks).spawn(["/bin/echo", "own"], {}, "/") as own:
        assert read_all(own.stdout) == b"own\n"


def test_a_requester_that_does_not_read_holds_nobody_up(running: Running) -> None:
    """Its pair is full before the reaper has said anything."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    with ours, theirs:
        with contextlib.suppress(BlockingIOError):
            while True:
                theirs.send(b"x" * 1000)
        packet(
            running.tenants.asks,
            frames.encode(frames.Run((b"/bin/sleep", b"1000"), {}, b"/")),
            theirs.fileno(),
        )
        wait_for(lambda: running.tally["started"] == 1, "it to be started")
        wait_for(lambda: running.tally["running"] == 0, "it to be given up")


# ---- connections for who may not connect ----


def test_connections_to_configured_backends_only(tmp_path: Path) -> None:
    path = str(tmp_path / "backend.sock")
    running = Running({3: (socket.SOCK_STREAM, path), 4: (socket.SOCK_STREAM, str(tmp_path / "none.sock"))})
    running.start()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen(1)
            with running.client.connect(3) as connection:
                there, _ = listener.accept()
                with there:
                    there.sendall(b"hello")
                    assert connection.recv(10) == b"hello"
        for mount, code in ((3, errno.ECONNREFUSED), (4, errno.ENOENT), (5, 0)):
            with pytest.raises(SpawnError) as caught:
                running.client.connect(mount)
            assert (caught.value.reason, caught.value.code) == ("backend", code)
    finally:
        running.close()


def test_what_is_started_may_not_connect_where_a_uid_says_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "backend.sock")
    running = Running({0: (socket.SOCK_STREAM, path)}, one_uid=True)
    running.start()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen(1)
            running.client.connect(0).close()
            script = (
                "import socket, sys\ntry:\n socket.socket(socket.AF_UNIX).connect(sys.argv[1])\n"
                "except OSError as error:\n print(error.errno)"
            )
            with python(running, script, path) as program:
                assert int(read_all(program.stdout)) == errno.EPERM
    finally:
        running.close()


def test_no_connection_is_led_elsewhere_by_a_link(tmp_path: Path) -> None:
    """The tenant can write where its socket is. Where one uid is everybody's, what a link of its leads to would take
    the exec service for its user: an agent with keys, master's admin channel.
    """
    others = tmp_path / "others"
    others.mkdir()
    (tmp_path / "folder").symlink_to(others)
    (tmp_path / "link.sock").symlink_to(others / "agent.sock")
    paths = [others / "agent.sock", tmp_path / "link.sock", tmp_path / "folder" / "agent.sock"]
    running = Running({n: (socket.SOCK_STREAM, str(path)) for n, path in enumerate(paths)}, one_uid=True)
    running.start()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(paths[0]))
            listener.listen(len(paths))
            running.client.connect(0).close()
            for mount, code in ((1, errno.ELOOP), (2, errno.ENOTDIR)):
                with pytest.raises(SpawnError) as caught:
                    running.client.connect(mount)
                assert caught.value.code == code
    finally:
        running.close()


def test_links_above_the_tenants_own_folder_may_stand(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "tmp").symlink_to(tmp_path / "real")
    tmp = str(tmp_path / "tmp")
    assert places.without_links(f"{tmp}/a.sock", tmp) == f"{os.path.realpath(tmp)}/a.sock"
    assert places.without_links("/run/b.sock", tmp) == "/run/b.sock"


def test_every_refusal_has_a_count() -> None:
    tally = Tally()
    assert tally.refusals() == {reason.name.lower(): 0 for reason in Refusal}
    tally.close()
