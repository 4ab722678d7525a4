"""A tenant's supervisor among its own hostile prototype and workers, a hostile umaster and a hostile master."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from pyttpd import memfd
from pyttpd.config.kinds import Mount, WsgiOptions
from pyttpd.config.shares import HttpSettings, PoolSettings, TenantLogs, VhostShare
from pyttpd.roles import Channel as Directory
from pyttpd.roles import Role as RoleName
from pyttpd.wire.messages import (
    VERSION,
    Credit,
    Demand,
    Dispatch,
    Gone,
    Hello,
    Message,
    Refuse,
    Retry,
    Route,
    Settled,
    Share,
    ShareOk,
    Standing,
    Stuck,
    Taken,
    Welcome,
    Worker,
    encode,
)

from hostile.peers import CLIENT, JUNK, JUNK_NAMES, LOG, TENANTS, End, Stage, wait_for

pytestmark = pytest.mark.root

#: The tenant's code: what it does to its supervisor is in its environment (when imported) or in the path (when asked).
EVIL = """
import os, socket, stat
from pyttpd.wire.messages import (
    Beat, Detached, Detail, Dispatch, Failed, Goodbye, Ready, Spawn, Spawned, decode, encode
)

def found():
    for fd in range(3, 100):
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            sock = socket.socket(fileno=os.dup(fd))
        except OSError:
            continue
        if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_SEQPACKET:
            yield sock

def channels():
    return list(found())

def tell(*frames, count=1, wait=False):
    for sock in channels():
        if wait:
            sock.setblocking(True)
        for _ in range(count):
            for frame in frames:
                try:
                    sock.send(frame)
                except OSError:
                    break

ATTACK = os.environ.get("ATTACK", "")
MARK = os.environ.get("MARK", "")
once = not os.path.exists(MARK)
if ATTACK and once:
    open(MARK, "w").close()
    if ATTACK == "junk":
        tell(b"junk")
    elif ATTACK == "flood":
        tell(encode(Beat()), count=20000)
    elif ATTACK == "last words":
        tell(encode(Detail("x" * 200)), encode(Failed("y" * 200)), count=5000, wait=True)
    else:
        # Say that we are ready, be asked for a worker, and name a process that is none.
        (control,) = channels()
        control.setblocking(True)
        control.send(encode(Ready()))
        asked = decode(control.recvmsg(2000, 64)[0])
        number, pid = {"pid 1": (asked.number, 1), "supervisor": (asked.number, os.getppid()),
                       "itself": (asked.number, os.getpid()), "no process": (asked.number, 2**31 - 1),
                       "pid 0": (asked.number, 0), "too large": (asked.number, 2**32 - 1),
                       "not asked": (asked.number + 7, os.getpid())}[ATTACK]
        control.send(encode(Spawned(number, pid)))

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/junk":
        tell(b"junk")
    elif path == "/spawned":
        tell(encode(Spawned(1, 1)))
    elif path == "/failed":
        tell(encode(Failed("no")))
    elif path == "/ready":
        tell(encode(Ready()))
    elif path == "/goodbye":
        tell(encode(Goodbye("request-timeout")))
    elif path == "/details":
        tell(encode(Detail("x" * 200)), count=20000, wait=True)
    elif path == "/detached":
        tell(encode(Detached()), count=60)
    elif path == "/descriptors":
        for sock in channels():
            socket.send_fds(sock, [encode(Beat())], [0] * 200)
    elif path == "/flood":
        tell(encode(Beat()), count=20000)
    elif path == "/stuck":
        import time
        time.sleep(600)
    elif path == "/shut":
        for sock in channels():
            sock.shutdown(socket.SHUT_RDWR)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


class Tenant:
    """The real supervisor of tenant a; master and umaster are the test."""

    def __init__(self, stage: Stage, *, attack: str = "", workers: int = 1, nofile: int = 0) -> None:
        self.stage = stage
        self.numbers = iter(range(1, 10_000))
        app = stage.folder / "app"
        app.mkdir()
        (app / "evil.py").write_text(EVIL)
        marks = stage.folder / "marks"
        marks.mkdir()
        os.chown(marks, TENANTS["a"], TENANTS["a"])
        self.values: dict[str, Any] = {
            "generation": 1,
            "name": "a",
            "uid": TENANTS["a"],
            "gid": TENANTS["a"],
            "hosts": ("a.test",),
            "foreign": (),
            "default": False,
            "mounts": (Mount("/", WsgiOptions("evil:application")),),
            "root": str(app),
            "python_path": (),
            "env": {"ATTACK": attack, "MARK": str(marks / "done")},
            "writable": (str(marks),),
            "allow": (),
            "pool": PoolSettings(workers, 0),
            "http": HttpSettings(),
            "logs": TenantLogs(access_log="off"),
            "log": LOG,
            "grace": 5.0,
        }
        stage.bind(Directory.MASTER)
        stage.bind(Directory.VHOST)
        options = "--tmp", str(marks), "--grace", "3"
        self.role = stage.start(RoleName.VHOST, "a", TENANTS["a"], *options, nofile=nofile)

    def share(self, **changes: Any) -> bytes:
        return VhostShare(**(self.values | changes)).to_json()

    def serve(self) -> End:
        """Be a good master, and an umaster that has only just let it in."""
        self.stage.give_shares(("share", self.share()), answered=False)
        return self.stage.accept(Directory.VHOST)

    def worker(self, umaster: End, work: str = "requests") -> tuple[int, End]:
        """Wait for the next worker for this work, and be umaster's end of its channel."""
        while True:
            heard = umaster.receive()
            assert heard is not None
            message = heard.message
            if isinstance(message, Gone | Standing):
                continue  # one that a hostile prototype has never started; a crash loop
            assert isinstance(message, Worker), message
            end = self.stage.keep(End(umaster.socket()))
            if message.work == work:
                end.expect(Credit)
                return message.number, end

    def opens(self, umaster: End) -> None:
        """All of its first workers are announced."""
        assert umaster.expect(Standing) == Standing("open")

    def ask(self, worker: End, path: str = "/", host: str = "a.test") -> socket.socket:
        """Give a worker a request, and return the client's end."""
        client, server = self.stage.pair()
        self.stage.opened(client)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        number = next(self.numbers)
        worker.send(Dispatch(number, CLIENT, host), server)
        return client

    def answers(self, worker: End) -> None:
        client = self.ask(worker)
        assert b"".join(iter(lambda: client.recv(65_536), b"")).startswith(b"HTTP/1.1 200 ")


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


# ---- its own children ------------------------------------------------------------------------------------------------


def test_a_pool_for_which_there_are_too_few_descriptors_is_as_large_as_they_allow(stage: Stage) -> None:
    """It used to end the supervisor, with all of its workers, again and again."""
    tenant = Tenant(stage, workers=60, nofile=80)
    umaster = tenant.serve()
    pid = tenant.role.pid
    tenant.role.logs("no descriptor is left for another worker")
    _, worker = tenant.worker(umaster)
    tenant.answers(worker)
    assert tenant.role.pid == pid
    assert "Too many open files" not in tenant.role.log()


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        ("junk", "truncated: 4 bytes are no header"),
        ("pid 1", "bad-field: process 1 is no child of ours"),
        ("supervisor", "bad-field: process [0-9]+ is no child of ours"),
        ("itself", "replayed-id: process [0-9]+ is somebody else's"),
        ("no process", "bad-field: process [0-9]+ is no child of ours"),
        ("pid 0", "process 0 "),
        ("too large", "bad-field: process [0-9]+ is no child of ours"),
        ("not asked", "forged-id: worker [0-9]+ was not asked for"),
        ("flood", ""),
        ("last words", ""),
    ],
)
def test_a_hostile_prototype(stage: Stage, attack: str, says: str) -> None:
    """It is killed and another one started; the supervisor is the same, and its first worker serves."""
    tenant = Tenant(stage, attack=attack)
    umaster = tenant.serve()
    pid = tenant.role.pid
    _, worker = tenant.worker(umaster)
    if says:
        tenant.role.logs(f"peer broke the protocol peer=prototype .*{says}")
    tenant.answers(worker)
    assert tenant.role.pid == pid


def test_an_address_that_it_was_not_started_for(stage: Stage) -> None:
    """Its locks can't be opened any more: the application isn't imported, and the log says what the command lacks."""
    tenant = Tenant(stage)
    stage.give_shares(("share", tenant.share(allow=("192.0.2.1:5432",))), answered=False)
    umaster = stage.accept(Directory.VHOST)
    tenant.role.logs("an address that this container was started without.*--allow 192.0.2.1:5432")
    assert umaster.expect(Worker) == Worker(0, "metrics")
    umaster.socket().close()


def test_hostile_workers(stage: Stage) -> None:
    """Each is killed, reaped and buried, and another one serves in its place. The supervisor is the same."""
    tenant = Tenant(stage)
    umaster = tenant.serve()
    pid = tenant.role.pid
    number, worker = tenant.worker(umaster)
    tenant.opens(umaster)
    tenant.role.remember()
    for path in ("/junk", "/spawned", "/failed", "/ready", "/goodbye", "/descriptors", "/shut"):
        tenant.ask(worker, path)
        assert umaster.expect(Gone) == Gone(number), path
        number, worker = tenant.worker(umaster)
        tenant.answers(worker)
    tenant.role.logs("worker ended worker=1 .*reason=(protocol|mute)")
    assert tenant.role.pid == pid
    wait_for(lambda: len(tenant.role.fds()) <= tenant.role.descriptors, f"descriptors: {tenant.role.fds()}")


@pytest.mark.parametrize("path", ["/flood", "/details"])
def test_a_worker_that_floods(stage: Stage, path: str) -> None:
    tenant = Tenant(stage, workers=2)
    umaster = tenant.serve()
    (_, one), (_, two) = tenant.worker(umaster), tenant.worker(umaster)
    pid = tenant.role.pid
    tenant.ask(one, path)
    tenant.answers(two)
    assert tenant.role.pid == pid


def test_a_worker_that_loses_its_channel_again_and_again(stage: Stage) -> None:
    """It says so 60 times at once, and gets another one after a moment; the supervisor keeps none."""
    tenant = Tenant(stage)
    umaster = tenant.serve()
    number, worker = tenant.worker(umaster)
    pid = tenant.role.pid
    tenant.opens(umaster)
    tenant.role.remember()
    tenant.ask(worker, "/detached")
    assert umaster.expect(Gone) == Gone(number)
    assert umaster.expect(Worker) == Worker(number, "requests")
    umaster.send(Stuck(number))
    after = number
    while after == number:
        after, worker = tenant.worker(umaster)
    tenant.answers(worker)
    wait_for(lambda: len(tenant.role.fds()) <= tenant.role.descriptors, f"descriptors: {tenant.role.fds()}")
    assert tenant.role.pid == pid


def test_a_worker_that_takes_nothing_more(stage: Stage) -> None:
    """umaster says so; the supervisor kills, reaps, and only then says that it is gone."""
    tenant = Tenant(stage)
    umaster = tenant.serve()
    number, worker = tenant.worker(umaster)
    tenant.opens(umaster)
    client = tenant.ask(worker, "/stuck")
    worker.expect(Taken)
    umaster.send(Stuck(number))
    assert umaster.expect(Gone) == Gone(number)
    assert worker.is_closed()
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(100) == b""
    _, worker = tenant.worker(umaster)
    tenant.answers(worker)


# ---- umaster ---------------------------------------------------------------------------------------------------------


def test_a_hostile_umaster(stage: Stage) -> None:
    """It loses its channel, and the next one gets all workers anew."""
    tenant = Tenant(stage)
    umaster = tenant.serve()
    tenant.worker(umaster)
    pid = tenant.role.pid
    wrong: tuple[bytes, ...] = tuple(case[1] for case in JUNK)
    wrong += tuple(
        encode(message)
        for message in (
            Hello("umaster", "a"),
            Welcome(1, 1),
            Gone(1),
            Credit(1),
            Taken(1),
            Settled((1,)),
            ShareOk(1),
            Standing("failing"),
        )
    )
    for data in wrong:
        umaster.raw(data)
        assert umaster.is_closed(), data
        with stage.scene_of_peers():
            pass
        umaster = stage.accept(Directory.VHOST)
        _, worker = tenant.worker(umaster)
        tenant.answers(worker)
    # An answer to what was never said: the first one was to what the supervisor has said.
    umaster.send(Standing("open")).send(Standing("open"))
    assert umaster.is_closed()
    umaster = stage.accept(Directory.VHOST)
    _, worker = tenant.worker(umaster)
    for _ in range(500):
        umaster.send(Demand(2**32 - 1, 2**32 - 1)).send(Demand(0, 2**32 - 1))
    umaster.send(Stuck(4_000_000)).send(Stuck(0))
    assert {heard_gone(umaster), heard_gone(umaster)} == {4_000_000, 0}
    assert tenant.role.pid == pid


def heard_gone(umaster: End) -> int:
    while (heard := umaster.receive()) is not None:
        if isinstance(heard.message, Gone):
            return heard.message.number
    pytest.fail("closed")


@pytest.mark.parametrize("data", [case[1] for case in JUNK[::5]], ids=JUNK_NAMES[::5])
def test_junk_to_a_worker(stage: Stage, data: bytes) -> None:
    """The worker closes the channel; nothing that it has from others suffers."""
    tenant = Tenant(stage)
    umaster = tenant.serve()
    _, worker = tenant.worker(umaster)
    pid = tenant.role.pid
    tenant.answers(worker)
    assert worker.raw(data).is_closed()
    assert tenant.role.pid == pid
    umaster.close()
    _, worker = tenant.worker(stage.accept(Directory.VHOST))
    tenant.answers(worker)


def test_what_a_worker_is_not_to_be_given(stage: Stage) -> None:
    tenant = Tenant(stage)
    umaster = tenant.serve()
    pid = tenant.role.pid
    read, write = os.pipe()
    listening = stage.opened(socket.create_server(("127.0.0.1", 0)))
    dispatch = encode(Dispatch(1, CLIENT, "a.test"))
    wrong: tuple[tuple[bytes, tuple[int, ...]], ...] = (
        (dispatch, ()),
        (dispatch, (read,)),
        (dispatch, (read, write)),
        (dispatch, (listening.fileno(),)),
        (encode(Settled((1,))), (read,)),
        *((encode(message), ()) for message in (Stuck(1), Credit(1), Taken(1))),
    )
    for data, fds in wrong:
        _, worker = tenant.worker(umaster)
        assert worker.raw(data, *fds).is_closed(), data
        umaster.close()
        umaster = stage.accept(Directory.VHOST)
    os.close(read)
    os.close(write)
    _, worker = tenant.worker(umaster)
    # About connections that it never passed: of no consequence.
    ids: tuple[Message, ...] = (Settled((7,)), Refuse(7, 503), Retry(7))
    for message in ids:
        worker.send(message)
    tenant.answers(worker)
    assert tenant.role.pid == pid


# ---- master ----------------------------------------------------------------------------------------------------------


def test_a_hostile_master(stage: Stage) -> None:
    """Nothing that isn't its share, whole and sealed, is put into force; the right one is, when it comes."""
    tenant = Tenant(stage)
    pid = tenant.role.pid
    good = tenant.share()
    digest = memfd.digest_of(good)

    def unsealed(data: bytes) -> int:
        fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
        os.write(fd, data)
        return fd

    read, write = os.pipe()
    cases: list[tuple[str, int, bytes, int]] = [
        ("a pipe", len(good), digest, read),
        ("not sealed", len(good), digest, unsealed(good)),
        ("a file", len(good), digest, os.open("/etc/passwd", os.O_RDONLY)),
        ("another size", len(good) + 1, digest, memfd.make("x", good)),
        ("4 GiB", 2**32 - 1, digest, memfd.make("x", good)),
        ("another content", len(good), b"\0" * 32, memfd.make("x", good)),
    ]
    for name, data in (
        ("no JSON", b"{"),
        ("deep JSON", b"[" * 100_000),
        ("a list", b"[]"),
        ("empty", b""),
        ("another vhost's", tenant.share(name="b")),
        ("a key more", good[:-1] + b',"more":1}'),
        ("a relative root", re.sub(rb'"root":\s*"/', b'"root": "', good)),
    ):
        cases.append((name, len(data), memfd.digest_of(data), memfd.make("x", data)))
    for name, size, wrong, fd in cases:
        master = stage.accept(Directory.MASTER)
        master.send(Share(1, "share", size, wrong), fd)
        os.close(fd)
        assert master.is_closed(), name
    os.close(write)
    for data in (JUNK[0][1], encode(Welcome(1, 1)), encode(Route(1, CLIENT, "a.test"))):
        assert stage.accept(Directory.MASTER).raw(data).is_closed()
    end = stage.keep(End(stage.accept_raw(Directory.MASTER)))
    end.expect(Hello)
    assert end.send(Welcome(VERSION + 1, 0)).is_closed()
    _, worker = tenant.worker(tenant.serve())
    tenant.answers(worker)
    assert tenant.role.pid == pid
