"""init and master against anybody: they read a hello of fixed size, and give nobody what is another's."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator

import pytest

from pyttpd import memfd
from pyttpd.rendezvous import MAX_GREETED, MAX_UNGREETED
from pyttpd.roles import Channel as Directory
from pyttpd.roles import Role as RoleName
from pyttpd.wire.messages import (
    Abort,
    Answer,
    Command,
    Commit,
    Credit,
    Goodbye,
    Hello,
    Message,
    Prepare,
    Route,
    Share,
    ShareOk,
    Socket,
    SocketsEnd,
    Welcome,
    encode,
)

from hostile.peers import (
    CLIENT,
    JUNK,
    JUNK_NAMES,
    LISTENER_UID,
    MASTER_UID,
    STRANGER_UID,
    TENANTS,
    UMASTER_UID,
    End,
    Role,
    Stage,
)
from support.tree import METRICS_PORTS, free_port, free_ports

pytestmark = pytest.mark.root

ROLES = {Directory.INIT: RoleName.INIT, Directory.MASTER: RoleName.MASTER}
BOTH = pytest.mark.parametrize("house", list(ROLES), indirect=True, ids=lambda directory: directory.value)
#: Who is let in where, and under which uid.
PEERS = {
    "umaster": ("umaster", UMASTER_UID),
    "listener": ("http", LISTENER_UID),
    "vhost": ("a", TENANTS["a"]),
}


@pytest.fixture(scope="module")
def house(request: pytest.FixtureRequest) -> Iterator[tuple[Stage, Directory]]:
    directory: Directory = request.param
    with Stage() as stage:
        config = stage.folder / "pyttpd.toml"
        first = free_ports(METRICS_PORTS)
        (stage.folder / "site").mkdir()
        config.write_text(
            f"""
            runtime_dir = "{stage.folder}"
            [log]
            level = "debug"
            [metrics]
            base_port = {first}
            [listen.http]
            address = "127.0.0.1:{free_port()}"
            """
            + "".join(
                f"""
            [vhost.{name}]
            hosts = ["{name}.test"]
            uid = {uid}
            kind = "static"
            root = "{stage.folder}/site"
            """
                for name, uid in TENANTS.items()
            )
        )
        if directory is Directory.MASTER:
            stage.bind(Directory.INIT)
        uid = 0 if directory is Directory.INIT else MASTER_UID
        role = stage.start(ROLES[directory], "", uid, "--config", str(config))
        if directory is Directory.MASTER:
            stage.give_sockets(role, "master")
        else:
            role.metrics = ("127.0.0.1", first)
        role.logs("configuration in force|listening.*vhost|listening.*tenants|listening")
        stage.wait_bound(directory)
        greet(stage, directory)
        yield stage, directory


@pytest.fixture
def stage(house: tuple[Stage, Directory]) -> Iterator[Stage]:
    with house[0].scene():
        yield house[0]
        assert_serves(*house)


@pytest.fixture
def directory(house: tuple[Stage, Directory]) -> Directory:
    return house[1]


@pytest.fixture
def role(stage: Stage) -> Role:
    return stage.roles[0]


def greet(stage: Stage, directory: Directory, role: str = "listener") -> End:
    name, uid = PEERS[role]
    return stage.greet(directory, uid, role, name)


def assert_serves(stage: Stage, directory: Directory) -> None:
    """umaster gets what is umaster's."""
    end = greet(stage, directory, "umaster")
    if directory is Directory.INIT:
        assert end.expect(Socket) == Socket("metrics", "umaster")
        assert end.expect(SocketsEnd) == SocketsEnd(1)
    else:
        shares = [end.expect(Share), end.expect(Share)]
        assert [share.part for share in shares] == ["share", "map"]
        for share, fd in zip(shares, end.fds, strict=True):
            json.loads(memfd.read(fd, share.size, share.digest))
        end.send(ShareOk(shares[0].generation))
        assert end.quiet(0)


@BOTH
@pytest.mark.parametrize("greeted", [False, True], ids=["at once", "after hello"])
@pytest.mark.parametrize("data", [case[1] for case in JUNK], ids=JUNK_NAMES)
def test_junk(stage: Stage, directory: Directory, data: bytes, greeted: bool) -> None:
    end = greet(stage, directory) if greeted else stage.connect(directory, LISTENER_UID)
    assert end.raw(data).is_closed()


@BOTH
def test_what_nobody_may_say(stage: Stage, directory: Directory) -> None:
    wrong: tuple[Message, ...] = (
        Hello("listener", "http"),
        Welcome(1, 1),
        Goodbye("x"),
        Socket("listen", "http"),
        SocketsEnd(1),
        Share(1, "share", 1, b"\0" * 32),
        Route(1, CLIENT, "a.test"),
        Credit(1),
    )
    with stage.connection() as one:
        for message in wrong:
            data = encode(message)
            with stage.scene_of_peers():
                assert greet(stage, directory).raw(data, *([one.fileno()] if data[2] else [])).is_closed(), (
                    message
                )


@BOTH
def test_descriptors_with_a_hello(stage: Stage, directory: Directory) -> None:
    hello = encode(Hello("listener", "http"))
    read, write = os.pipe()
    for fds in ([read], [read, write], [read] * 253):
        assert stage.connect(directory, LISTENER_UID).raw(hello, *fds).is_closed()
    end = stage.connect(directory, LISTENER_UID)
    assert end.raw(hello, end.sock.fileno()).is_closed()
    os.close(read)
    os.close(write)


@BOTH
def test_who_is_not_let_in(stage: Stage, directory: Directory) -> None:
    """Default deny, for root as well; a tenant doesn't get another's share, and none a socket."""
    cases = [
        (0, "umaster", "umaster"),
        (0, "listener", "http"),
        (0, "init", "init"),
        (STRANGER_UID, "umaster", "umaster"),
        (STRANGER_UID, "vhost", "a"),
        (TENANTS["a"], "vhost", "b"),
        (TENANTS["a"], "umaster", "umaster"),
        (TENANTS["a"], "listener", "http"),
        (LISTENER_UID, "listener", "metrics"),
        (LISTENER_UID, "listener", "nobody"),
        (LISTENER_UID, "umaster", "umaster"),
        (UMASTER_UID, "init", "init"),
        (UMASTER_UID, "operator", "umaster"),
        (MASTER_UID, "vhost", "a"),
    ]
    for uid, role, name in cases:
        assert stage.connect(directory, uid).send(Hello(role, name)).is_closed(), (uid, role, name)


@BOTH
def test_hello_and_gone(stage: Stage, directory: Directory) -> None:
    for _ in range(30):
        for role, (name, uid) in PEERS.items():
            stage.connect(directory, uid).send(Hello(role, name)).close()


@BOTH
def test_hello_and_more_and_gone(stage: Stage, directory: Directory, role: Role) -> None:
    """What comes with the hello of somebody who can't be welcomed any more is heard by nobody."""
    more = Abort() if directory is Directory.INIT else ShareOk(1)
    pid = role.pid
    for _ in range(100):
        for name, (instance, uid) in PEERS.items():
            end = stage.connect(directory, uid).send(Hello(name, instance))
            with contextlib.suppress(OSError):
                end.send(more)
            end.close()
    assert_serves(stage, directory)
    assert role.pid == pid


@BOTH
def test_a_flood_of_channels(stage: Stage, directory: Directory, role: Role) -> None:
    """Of one peer's channels a few are kept, whether they have said hello or not."""
    before = len(role.fds())
    silent = [stage.connect(directory, STRANGER_UID) for _ in range(200)]
    assert all(end.is_closed() for end in silent[MAX_UNGREETED:])
    greeted = [stage.connect(directory, LISTENER_UID).send(Hello("listener", "http")) for _ in range(50)]
    welcomed = [end for end in greeted if end.receive() is not None]
    assert 0 < len(welcomed) <= MAX_GREETED
    assert len(role.fds()) <= before + MAX_UNGREETED + MAX_GREETED
    assert_serves(stage, directory)


@BOTH
def test_one_that_reads_nothing(stage: Stage, directory: Directory) -> None:
    """What it was sent stays in the kernel, and is gone with its channel."""
    for role, (name, uid) in PEERS.items():
        for _ in range(5):
            end = stage.connect(directory, uid).send(Hello(role, name))
            assert not end.quiet(15) or directory is Directory.INIT
            end.close()


@pytest.mark.parametrize("house", [Directory.MASTER], indirect=True)
def test_a_generation_that_never_was(stage: Stage, directory: Directory, role: Role) -> None:
    before = role.faults("listener", "bad-field")
    for generation in (0, 2**64 - 1):
        assert greet(stage, directory).send(ShareOk(generation)).is_closed()
    assert role.faults("listener", "bad-field") == before + 2


@pytest.mark.parametrize("house", [Directory.MASTER], indirect=True)
def test_each_gets_its_own_share_only(stage: Stage, directory: Directory) -> None:
    for role, (name, _) in PEERS.items():
        if role == "umaster":
            continue
        end = greet(stage, directory, role)
        share = end.expect(Share)
        data = memfd.read(end.fds[-1], share.size, share.digest)
        assert json.loads(data)["name"] == name
        assert b"b.test" not in data
        assert end.quiet(0.05)
        with pytest.raises(OSError):
            os.write(end.fds[-1], b"x")


@pytest.mark.parametrize("house", [Directory.INIT], indirect=True)
def test_each_gets_its_own_sockets_only(stage: Stage, directory: Directory, role: Role) -> None:
    end = greet(stage, directory, "listener")
    found = {end.expect(Socket), end.expect(Socket)}
    assert found == {Socket("listen", "http"), Socket("metrics", "http")}
    assert end.expect(SocketsEnd) == SocketsEnd(2)
    for fd in end.fds:
        with socket.socket(fileno=os.dup(fd)) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    refused = role.sample("hellos_total", result="refused")
    assert stage.connect(directory, TENANTS["a"]).send(Hello("vhost", "a")).is_closed()
    role.wait_sample(refused + 1, "hellos_total", result="refused")


@pytest.mark.parametrize("house", [Directory.MASTER], indirect=True)
@pytest.mark.parametrize("uid", [TENANTS["a"], UMASTER_UID, LISTENER_UID, STRANGER_UID])
def test_the_admin_channel_is_nobodys_but_the_operators(stage: Stage, role: Role, uid: int) -> None:
    """No role and no tenant may ask for anything there, whatever it says first."""
    stage.wait_bound(Directory.ADMIN)
    before = role.faults("operator", "not-authorised")
    end = stage.connect(Directory.ADMIN, uid).send(Hello("operator", "operator"))
    end.send(Command("reload", ""))
    assert end.is_closed()
    role.wait_sample(before + 1, "channel_faults_total", peer="operator", reason="not-authorised")
    assert stage.connect(Directory.ADMIN, uid).send(Command("reload", "")).is_closed()


@pytest.mark.parametrize("house", [Directory.MASTER], indirect=True)
@pytest.mark.parametrize("data", [case[1] for case in JUNK], ids=JUNK_NAMES)
def test_junk_from_an_operator(stage: Stage, data: bytes) -> None:
    end = stage.greet(Directory.ADMIN, 0, "operator", "operator")
    assert end.raw(data).is_closed()


@pytest.mark.parametrize("house", [Directory.MASTER], indirect=True)
def test_an_operator_who_asks_and_asks_and_reads_nothing(stage: Stage, role: Role) -> None:
    """Each is answered or refused, and one that doesn't read loses its channel; the others don't notice."""
    pid, before = role.pid, len(role.fds())
    flood = stage.greet(Directory.ADMIN, 0, "operator", "operator")
    for _ in range(2000):
        try:
            flood.send(Command("plan", ""))
        except OSError:
            break
    flood.close()
    end = stage.greet(Directory.ADMIN, 0, "operator", "operator").send(Command("reload", "nobody"))
    assert end.expect(Answer).outcome == "failed"
    end.close()
    for _ in range(50):
        stage.connect(Directory.ADMIN, 0).send(Hello("operator", "operator")).send(
            Command("plan", "")
        ).close()
    assert role.pid == pid
    assert len(role.fds()) <= before + MAX_GREETED + MAX_UNGREETED


@pytest.mark.parametrize("house", [Directory.INIT], indirect=True)
@pytest.mark.parametrize("message", [Prepare(bytes(32)), Commit(bytes(32)), Abort()])
def test_only_master_has_a_say_in_the_configuration(
    stage: Stage, directory: Directory, role: Role, message: Message
) -> None:
    pid = role.pid
    for peer in ("umaster", "listener"):
        end = greet(stage, directory, peer).send(message)
        while end.receive() is not None:
            pass
        assert end.is_closed()
    assert role.pid == pid
