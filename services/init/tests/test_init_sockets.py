"""init on a stage: sockets go to whom they are for, come back from whom they were given to, and nothing else."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pyttpd import fdpass
from pyttpd.roles import Channel as Directory
from pyttpd.roles import Role
from pyttpd.service import Options, Service, StartError
from pyttpd.wire import messages as m

from pyttpd_init.init import HAND_OUT_AGAIN, Init, Page, Snapshot
from pyttpd_init.queues import AcceptQueues
from pyttpd_init.sockets import bind, plans
from support.offices import furnish
from support.wired import Stage, Visitor, stage


def free_ports(count: int) -> int:
    """Return the first of `count` free ports in a row."""
    for first in range(31_000 + os.getpid() % 1000, 40_000, count):
        socks: list[socket.socket] = []
        try:
            socks.extend(socket.create_server(("127.0.0.1", port)) for port in range(first, first + count))
            return first
        except OSError:
            continue
        finally:
            for sock in socks:
                sock.close()
    raise RuntimeError("no free ports")


def ephemeral_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Bank:
    """init with its sockets bound, and doors for its peers."""

    def __init__(
        self, on: Stage, folder: Path, monkeypatch: pytest.MonkeyPatch, *, take_back: bool = False
    ) -> None:
        self.on = on
        self.config = folder / "pyttpd.toml"
        if not self.config.exists():
            first = free_ports(12)
            self.config.write_text(
                f'[metrics]\nbase_port = {first}\n[listen.http]\naddress = "127.0.0.1:{first + 11}"\n'
                f'[vhost.a]\nhosts = ["a.example"]\nuid = 20001\nkind = "static"\nroot = "{folder}"\n'
            )
        self.doors = {
            (role, name): on.knock(Directory.INIT, role, name)
            for role, name in (("master", ""), ("umaster", ""), ("listener", "http"), ("vhost", "a"))
        }
        self.service = on.service(Role.INIT)
        monkeypatch.setattr(Service, "confine", lambda _self, _policy: None)
        monkeypatch.setattr(Service, "run", lambda _self: None)
        monkeypatch.setattr("pyttpd.confine.confine", lambda _policy: None)
        monkeypatch.setattr(Init, "_start_metrics_child", lambda _self: None)
        self.init = Init()
        self.entrances: list[socket.socket] = []
        real = Service.entrance

        def entrance(*args: object, **options: object) -> object:
            made = real(*args, **options)  # type: ignore[arg-type]
            self.entrances += [sock for sock, _ in made._sources]
            return made

        monkeypatch.setattr(Service, "entrance", entrance)
        self.init.prepare(Options(config=str(self.config), take_back=take_back), on.log)
        self.init.serve(self.service)
        monkeypatch.setattr(Service, "entrance", real)
        on.stack.callback(self._clear)

    def _clear(self) -> None:
        for channel in list(self.init._channels):
            channel.close()
        for sock in (*self.entrances, *self.init.held.sockets.values()):
            sock.close()

    def come(self, role: str, name: str = "", hello: m.Hello | None = None) -> Visitor:
        return self.doors[role, name](hello)

    def asked(self, visitor: Visitor) -> Visitor:
        self.on.until(lambda: visitor.record.of(m.SocketsEnd))
        return visitor


@pytest.fixture
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bank]:
    with stage() as on:
        yield Bank(on, tmp_path, monkeypatch)


def test_each_gets_its_own_sockets(bank: Bank) -> None:
    assert b"R" in bank.on.said()
    listener = bank.asked(bank.come("listener", "http"))
    assert listener.record.messages == [
        m.Socket("listen", "http"),
        m.Socket("metrics", "http"),
        m.SocketsEnd(2),
    ]
    with socket.socket(fileno=listener.record.fds[0]) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) == 1
        with socket.create_connection(sock.getsockname()):
            pass
        sock.detach()
    for role in ("master", "umaster"):
        visitor = bank.asked(bank.come(role))
        holds = [m.Holds(bytes.fromhex(bank.init.held.digest))] if role == "master" else []
        assert visitor.record.messages == [*holds, m.Socket("metrics", role), m.SocketsEnd(1)]
    assert (bank.init._answered, bank.init._refused) == (3, 0)


def test_what_has_no_room_in_flight_follows(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors in flight count by uid, and other programs are root, too."""
    real = fdpass.send_fds
    refused: list[int] = []

    def full(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
        if len(refused) < 3:
            refused.extend(fds)
            raise OSError(errno.ETOOMANYREFS, "too many references")
        real(sock, data, fds)

    monkeypatch.setattr(fdpass, "send_fds", full)
    listener = bank.asked(bank.come("listener", "http"))
    assert listener.record.messages == [
        m.Socket("listen", "http"),
        m.Socket("metrics", "http"),
        m.SocketsEnd(2),
    ]
    assert len(refused) == 3
    assert bank.init._answered == 1
    refused.clear()
    leaves = bank.come("umaster")
    bank.on.until(lambda: refused)
    leaves.link.close()  # whoever has left is waited for no longer
    bank.on.until(lambda: len(bank.init._channels) == 1)
    bank.on.turns(2 * HAND_OUT_AGAIN)
    assert len(refused) == 1


@pytest.mark.parametrize(
    ("role", "name", "hello"),
    [
        ("vhost", "a", m.Hello("vhost", "a")),
        ("vhost", "a", m.Hello("listener", "http")),
        ("vhost", "a", m.Hello("init", "init")),
        ("master", "", m.Hello("umaster", "umaster")),
        ("listener", "http", m.Hello("listener", "metrics")),
        ("listener", "http", m.Hello("listener", "nobody")),
    ],
)
def test_everybody_else_is_refused(bank: Bank, role: str, name: str, hello: m.Hello) -> None:
    visitor = bank.come(role, name, hello)
    bank.on.until(lambda: bank.service.faults.counts)
    visitor.link.close()
    assert {reason for _, reason in bank.service.faults.counts} == {"not-authorised"}
    assert not visitor.record.messages
    assert bank.init._refused >= 1


def test_a_new_init_gets_back_what_it_would_have_bound(
    bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = bank.asked(bank.come("listener", "http")).record.fds
    # The old init is gone, and with it all sockets that nobody else has.
    for sock in bank.init.held.sockets.values():
        sock.close()
    with stage() as on:
        new = Bank(on, tmp_path, monkeypatch, take_back=True)
        assert b"R" not in on.said()
        listener = new.asked(new.come("listener", "http"))
        assert listener.record.messages[:2] == [m.Wanted("listen", "http"), m.Wanted("metrics", "http")]
        listener.send(m.Return("listen", "http"), held[0])
        listener.send(m.Return("metrics", "http"), held[1])
        on.until(lambda: b"R" in on.said())
        listener.send(m.Return("metrics", "http"), held[1])  # once more is one too many, and closed
        again = new.asked(new.come("listener", "http"))
        assert again.record.of(m.Socket) == [m.Socket("listen", "http"), m.Socket("metrics", "http")]


def test_a_socket_brought_back_that_is_not_the_one_is_refused(bank: Bank) -> None:
    listener = bank.asked(bank.come("listener", "http"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        listener.send(m.Return("listen", "http"), other.fileno())
        bank.on.until(lambda: listener.lost)
    assert bank.service.faults.counts == {("listener", "descriptors"): 1}


def test_a_socket_brought_back_under_anothers_name_is_refused(bank: Bank) -> None:
    listener = bank.asked(bank.come("listener", "http"))
    listener.send(m.Return("metrics", "umaster"), listener.record.fds[0])
    bank.on.until(lambda: listener.lost)


def test_an_address_in_use_is_said(bank: Bank) -> None:
    with pytest.raises(StartError, match=r"cannot listen on 127\.0\.0\.1:"):
        Init().prepare(Options(config=str(bank.config)), bank.on.log)


def test_no_configuration_or_a_wrong_one_is_said(tmp_path: Path) -> None:
    with stage() as on:
        with pytest.raises(StartError, match="--config"):
            Init().prepare(Options(), on.log)
        wrong = tmp_path / "wrong.toml"
        wrong.write_text("nonsense = 1\n")
        with pytest.raises(StartError, match="pyttpd check"):
            Init().prepare(Options(config=str(wrong)), on.log)


def test_how_full_the_accept_queues_are(bank: Bank) -> None:
    queues = AcceptQueues(list(bank.init.held.sockets))
    plan = next(plan for plan in bank.init.held.sockets if plan.use == "listen" and plan.name == "http")
    try:
        with socket.create_connection((plan.host, plan.port)) as client:
            client.sendall(b"x")  # who says nothing isn't shown yet
            found = {name: (waiting, most) for name, waiting, most in queues.read()}
    finally:
        queues._diag.close()
    assert found["http"] == (1, plan.backlog)
    assert found["http-metrics"][0] == 0
    families = {sample.name for family in bank.init._collect(_NoQueues()) for sample in family.samples}  # type: ignore[arg-type]
    assert "pyttpd_init_hellos_total" in families


class _NoQueues:
    def read(self) -> list[tuple[str, int, int]]:
        return [("http", 0, 10)]


def test_a_snapshot_is_seen_by_a_child() -> None:
    page = Page()
    assert page.read() == Snapshot()
    written = Snapshot(uid=0, started=1.5, answered=2, faults=(("listener", "silent", 3),))
    page.write(written)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if page.read() == written else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_snapshot_that_does_not_fit_or_is_half_written_leaves_the_one_before() -> None:
    page = Page()
    written = Snapshot(answered=2)
    page.write(written)
    assert page.read() == written
    page.write(Snapshot(faults=tuple((f"peer{number}", "silent", 1) for number in range(1000))))
    assert page.read() == written
    page._page[4:10] = b"\0" * 6
    assert page.read() == written


def test_ipv6_is_ipv6_alone(bank: Bank) -> None:
    from dataclasses import replace

    plan = replace(next(iter(bank.init.held.sockets)), host="::1", port=0)
    assert str(plan).startswith("[::1]:")
    try:
        sock = bind(plan)
    except StartError as error:
        pytest.skip(str(error))
    with sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


#: In a network namespace of its own: what connections are offered for must not follow the machine's settings.
MARKS = """
from pathlib import Path
from pyttpd import tcp
from pyttpd_init.sockets import Plan, bind
sock = bind(Plan("listener", "http", 0, "listen", "127.0.0.1", 0, 8))
before = tcp.mark(sock)
Path("/proc/sys/net/ipv4/tcp_syn_retries").write_text(str(before + 3))
assert tcp.mark(sock) == before
"""


@pytest.mark.root
@pytest.mark.program("unshare")
def test_the_mark_of_connections_stays_what_it_is() -> None:
    subprocess.run(["unshare", "-n", sys.executable, "-c", MARKS], check=True)


def test_every_role_has_a_plan(bank: Bank) -> None:
    from pyttpd.config.loader import load

    planned = plans(load(str(bank.config)))
    said = [str(plan).partition(" ")[2] for plan in planned]
    assert said[:3] == ["(metrics of init)", "(metrics of master)", "(metrics of umaster)"]
    assert {"(listener http)", "(metrics of listener http)"} <= set(said)
    found = {(plan.role, plan.name, plan.use) for plan in planned}
    assert {
        ("init", "init", "metrics"),
        ("listener", "http", "listen"),
        ("listener", "metrics", "listen"),
    } <= found


def test_another_configuration_is_prepared_for_master_alone(bank: Bank) -> None:
    """Read by the office, agreed on by hash, and adopted at Commit; whoever serves after this process serves by it."""
    held = bank.init.held
    furnish(bank.on, bank.service, held)
    master = bank.asked(bank.come("master"))
    before = held.digest
    text = bank.config.read_text()
    bank.config.write_text(f'{text}[listen.more]\naddress = "127.0.0.1:{ephemeral_port()}"\n')
    master.send(m.Prepare(bytes(32)))
    bank.on.until(lambda: master.record.of(m.Unprepared))
    assert "changed since master" in master.record.of(m.Unprepared)[0].reason
    ours = bytes.fromhex(held.read().digest)
    master.send(m.Prepare(ours))
    bank.on.until(lambda: master.record.of(m.Prepared) == [m.Prepared(ours)])
    master.send(m.Abort())
    bank.on.until(lambda: held._candidate is None)
    master.send(m.Prepare(ours))
    bank.on.until(lambda: len(master.record.of(m.Prepared)) == 2)
    assert (held.digest, len(held.plans)) == (before, 7)
    bank.on.said()
    master.send(m.Commit(ours))
    bank.on.until(lambda: held.digest == ours.hex())
    assert len(held.plans) == 9
    assert b"S" in bank.on.said()  # a successor hands out what is new
    bank.config.write_text("[[[")
    master.send(m.Prepare(ours))
    bank.on.until(lambda: len(master.record.of(m.Unprepared)) == 2)


def test_a_master_that_goes_leaves_nothing_prepared(bank: Bank) -> None:
    held = bank.init.held
    furnish(bank.on, bank.service, held)
    master = bank.asked(bank.come("master"))
    bank.config.write_text(
        f'{bank.config.read_text()}[listen.more]\naddress = "127.0.0.1:{ephemeral_port()}"\n'
    )
    ours = bytes.fromhex(held.read().digest)
    master.send(m.Prepare(ours))
    bank.on.until(lambda: master.record.of(m.Prepared))
    assert held._candidate is not None
    master.link.close()
    bank.on.until(lambda: held._candidate is None)
    assert held.digest != ours.hex()


@pytest.mark.parametrize("message", [m.Prepare(bytes(32)), m.Commit(bytes(32)), m.Abort()])
def test_nobody_else_has_a_say_in_the_configuration(bank: Bank, message: m.Message) -> None:
    furnish(bank.on, bank.service, bank.init.held)
    before = bank.init.held.digest
    listener = bank.asked(bank.come("listener", "http"))
    listener.send(message)
    bank.on.until(lambda: listener.lost)
    assert bank.service.faults.counts == {("listener", "not-permitted"): 1}
    assert bank.init.held.digest == before


def test_what_was_never_prepared_is_not_committed(bank: Bank) -> None:
    furnish(bank.on, bank.service, bank.init.held)
    master = bank.asked(bank.come("master"))
    master.send(m.Commit(bytes.fromhex(bank.init.held.digest)))
    bank.on.until(lambda: master.lost)
    assert bank.service.faults.counts == {("master", "bad-field"): 1}


def test_who_has_lost_its_sockets_hears_so(bank: Bank) -> None:
    held = bank.init.held
    held.former = [plan for plan in held.plans if plan.name == "http"]
    held.plans = [plan for plan in held.plans if plan.name != "http"]
    listener = bank.asked(bank.come("listener", "http"))
    assert listener.record.messages == [m.SocketsEnd(0)]
