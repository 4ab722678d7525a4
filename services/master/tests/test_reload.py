"""master puts another configuration into force: what comes in which order, what stops it, and what is told of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyttpd import memfd
from pyttpd.config import share_versions
from pyttpd.config.share_versions import Added
from pyttpd.config.shares import HostMap
from pyttpd.rendezvous import Caller
from pyttpd.roles import Channel as Directory
from pyttpd.roles import Role
from pyttpd.service import Options, Service
from pyttpd.wire import messages as m

from pyttpd_master import registry, reload
from pyttpd_master.master import Master
from support.offices import furnish
from support.wired import PATIENCE, Stage, Visitor, stage

HEAD = '[listen.http]\naddress = "127.0.0.1:18080"\n'
VHOST = '[vhost.{name}]\nhosts = ["{name}.example"]\nuid = {uid}\nkind = "static"\nroot = "{root}"\n'


class Asked(reload.Teller):
    """Who has asked, and what that one hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.lines: list[str] = []
        self.well: bool | None = None

    def say(self, line: str) -> None:
        self.heard.append(line)

    def end(self, lines: list[str], *, well: bool) -> None:
        assert self.well is None, "told twice how it ended"
        self.lines, self.well = lines, well


class House:
    """master, with an office, a played init, and doors for `names` of tenants."""

    def __init__(
        self, on: Stage, folder: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
    ) -> None:
        self.on = on
        self.folder = folder
        self.file = folder / "pyttpd.toml"
        self.write("a", "b")
        self.init = on.play(Directory.INIT)
        keys = [("umaster", ""), ("listener", "http"), *(("vhost", name) for name in names)]
        self.doors = {key: on.knock(Directory.MASTER, *key) for key in keys}
        self.service = on.service(Role.MASTER)
        monkeypatch.setattr(Service, "confine", lambda _self, _policy: None)
        monkeypatch.setattr(Service, "run", lambda _self: None)
        self.master = Master()
        self.master.prepare(Options(config=str(self.file)), on.log)
        # What the keeper has is not what the role's process has: the desk gets a master of its own.
        self.kept = Master()
        self.kept.prepare(Options(config=str(self.file)), on.log)
        furnish(on, self.service, self.kept.desk)
        self.master.serve(self.service)
        on.stack.callback(self._clear)
        on.until(lambda: self.init.channels)
        self.holds(self.master.config.digest)

    def _clear(self) -> None:
        for channel in self.master.registry.channels():
            channel.close()
        for sock, _ in self.master._entrance._sources:
            sock.close()

    def write(self, *names: str, more: str = "") -> None:
        tables = (VHOST.format(name=n, uid=20001 + ord(n[0]) - ord("a"), root=self.folder) for n in names)
        self.file.write_text(HEAD + "".join(tables) + more)

    def holds(self, digest: str) -> None:
        self.init.channel.send(m.Holds(bytes.fromhex(digest)))
        self.on.until(lambda: self.master.reload._init is not None)

    def come(self, role: str, name: str = "") -> Visitor:
        visitor = self.doors[role, name]()
        self.on.until(lambda: visitor.record.of(m.Share))
        return visitor

    def serves(self, visitor: Visitor) -> None:
        """Say that what has come last is in force."""
        for _ in range(2 if len(visitor.record.of(m.Share)) % 2 == 0 and self.is_umaster(visitor) else 1):
            visitor.send(m.ShareOk(visitor.record.of(m.Share)[-1].generation))

    @staticmethod
    def is_umaster(visitor: Visitor) -> bool:
        return any(share.part == "map" for share in visitor.record.of(m.Share))

    def ask(self, *, dry: bool = False) -> Asked:
        asked = Asked()
        self.master.reload.start(asked, dry=dry)
        return asked

    def prepared(self) -> m.Prepare:
        """Wait until init is asked."""
        self.on.until(lambda: self.init.record.of(m.Prepare))
        found: m.Prepare = self.init.record.of(m.Prepare)[-1]
        return found

    def agree(self) -> None:
        self.init.channel.send(m.Prepared(self.prepared().digest))
        self.on.until(lambda: self.init.record.of(m.Commit))

    def ended(self, asked: Asked) -> bool | None:
        self.on.until(lambda: asked.well is not None)
        return asked.well


Open = Callable[..., House]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    monkeypatch.setattr(registry, "COMES_WITHIN", 0.0)
    monkeypatch.setattr(registry, "SWEEP_INTERVAL", 0.05)
    with stage() as on:
        yield lambda *names: House(on, tmp_path, monkeypatch, names or ("a", "b"))


def test_everybody_gets_what_has_changed_and_nobody_else_anything(house: Open) -> None:
    one = house("a", "b", "c")
    umaster, a, b = one.come("umaster"), one.come("vhost", "a"), one.come("vhost", "b")
    listener = one.come("listener", "http")
    for visitor in (umaster, a, b, listener):
        one.serves(visitor)
    one.on.until(lambda: len(one.master.registry.in_force) == 4)
    one.write("a", "c", more="[vhost.a.pool]\nmax_workers = 3\n")
    asked = one.ask()
    assert one.prepared().digest.hex() != one.master.config.digest
    assert one.master.config.generation == 1  # nothing has changed so far
    one.agree()
    assert one.init.record.of(m.Commit) == [m.Commit(one.prepared().digest)]
    one.on.until(lambda: len(umaster.record.of(m.Share)) == 4 and len(a.record.of(m.Share)) == 2)
    assert len(b.record.of(m.Share)) == len(listener.record.of(m.Share)) == 1
    share = umaster.record.of(m.Share)[-1]
    assert (share.generation, share.part) == (2, "map")
    hosts = HostMap.from_json(memfd.read(umaster.record.fds[-1], share.size, share.digest))
    assert (hosts.find("b.example"), hosts.find("c.example")) == (None, "c")
    assert asked.well is None
    assert set(one.master.registry.waiting) == {("umaster", "umaster"), ("vhost", "a"), ("vhost", "c")}
    umaster.send(m.ShareOk(2))
    umaster.send(m.ShareOk(2))
    a.send(m.ShareOk(2))
    assert one.ended(asked)
    # No container of c's has come yet: that is told, and no failure.
    assert "vhost c: waits for its container" in asked.lines
    assert asked.lines[-1].startswith("generation 2 is in force")
    assert "+ [vhost.c]: needs a container: docker compose up -d vhost-c" in asked.lines
    assert one.master.config.generation == 2
    one.on.until(lambda: one.kept.config.generation == 2)  # the keeper's as well
    c = one.come("vhost", "c")
    one.serves(c)
    one.on.until(lambda: not one.master.registry.waiting)


def test_of_a_new_tenant_nothing_served_before(house: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload.Reload, "plain", True)
    monkeypatch.setattr(registry, "COMES_WITHIN", PATIENCE)
    one = house("a", "b", "c")
    one.write("a", "b", "c")
    asked = one.ask()
    one.agree()
    one.on.until(lambda: one.kept.config.generation == 2)
    one.come("vhost", "c").send(m.ShareFailed(2, "SyntaxError: '(' was never closed"))
    one.serves(one.come("umaster"))
    assert one.ended(asked) is False
    assert "vhost c: SyntaxError: '(' was never closed; it is tried again" in asked.lines


def test_a_role_of_an_older_release_gets_what_it_knows_or_nothing(
    house: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the next version will add is played: max_spare, say, which a's share uses and b's doesn't."""
    key = Added("vhost", "pool.max_spare", 0)
    monkeypatch.setattr(share_versions, "ADDED", {m.VERSION + 1: (key,)})
    one = house()
    one.write("a", "b", more='[vhost.a.pool]\nmode = "dynamic"\nmax_workers = 3\nmax_spare = 2\n')
    asked = one.ask()
    one.agree()
    one.on.until(lambda: one.master.config.generation == 2)
    b = one.come("vhost", "b")
    share = b.record.of(m.Share)[-1]
    text = memfd.read(b.record.fds[-1], share.size, share.digest)
    assert b"max_workers" in text
    assert b"max_spare" not in text
    a = one.doors["vhost", "a"]()
    one.on.until(lambda: one.master.registry.failures)
    assert one.master.registry.failures == {("vhost", "a"): "pool.max_spare is new: replace this role first"}
    assert not a.record.of(m.Share)
    one.ended(asked)
    assert any("pool.max_spare is new" in line for line in one.on.lines)


@pytest.mark.parametrize("plain", [True, False])
def test_who_is_only_on_its_way_is_waited_for(
    house: Open, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    """master was just replaced: its peers come anew, one after the other, and one of them never."""
    monkeypatch.setattr(reload.Reload, "plain", plain)
    monkeypatch.setattr(registry, "COMES_WITHIN", PATIENCE)
    one = house("a", "b")
    pools = "".join(f"[vhost.{name}.pool]\nmax_workers = 3\n" for name in "ab")
    one.write("a", "b", more=pools)
    asked = one.ask()
    one.agree()
    a = one.come("vhost", "a")
    one.on.turns(0.2)
    assert asked.well is None
    one.serves(a)
    one.on.until(lambda: one.master.registry.in_force)
    assert asked.well is None
    for key in one.master.registry._expected:
        one.master.registry._expected[key] = 0.0
    # Whose keeper is the runner's business must be there; a container may be down because somebody wants it.
    assert one.ended(asked) is not plain
    assert "vhost b is not there" in asked.lines
    one.serves(one.come("vhost", "b"))
    one.on.until(lambda: not one.master.registry.waiting)


def test_who_comes_later_is_asked_for_a_successor_then(house: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "COMES_WITHIN", PATIENCE)
    one = house("a")
    told: list[tuple[registry.Key, str]] = []
    one.master.registry.watch({("vhost", "a")}, lambda key, problem: told.append((key, problem)))
    one.master.registry.renew(("vhost", "a"))
    old = one.come("vhost", "a")
    one.serves(old)
    one.on.until(lambda: old.record.of(m.Renew))
    one.on.turns(0.2)
    assert not told
    one.serves(one.come("vhost", "a"))
    one.on.until(lambda: told == [(("vhost", "a"), "")])


def test_a_tenant_that_can_not_is_told_of_and_may_yet(house: Open) -> None:
    one = house()
    a = one.come("vhost", "a")
    one.serves(a)
    one.write("a", "b", more="[vhost.a.pool]\nmax_workers = 3\n")
    asked = one.ask()
    one.agree()
    one.on.until(lambda: len(a.record.of(m.Share)) == 2)
    a.send(m.ShareFailed(2, "ImportError: no"))
    assert one.ended(asked) is False
    assert "vhost a: ImportError: no; what served before goes on" in asked.lines
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in one.master._collect()
        for sample in family.samples
    }
    assert samples["pyttpd_master_waiting_seconds", "vhost", "a", "ImportError: no"] >= 0
    assert samples["pyttpd_master_reloads_total", "done"] == 1
    a.send(m.ShareOk(2))
    one.on.until(lambda: not one.master.registry.waiting)


@pytest.mark.parametrize("dry", [True, False])
def test_nothing_happens_when_it_is_wrong_or_the_same_or_only_a_plan(house: Open, dry: bool) -> None:
    one = house()
    a = one.come("vhost", "a")
    good = one.file.read_text()
    for text, well, said in (
        ("", False, "nothing has changed"),
        (good.replace("20001", "5").replace("[listen.http]", "x = 1\n[listen.http]"), False, "unknown key"),
        (good, True, "nothing"),
    ):
        one.file.write_text(text or "[[[")
        asked = one.ask(dry=dry)
        assert one.ended(asked) is well
        assert said in "\n".join(asked.lines)
    if dry:
        one.write("a", "b", more="[vhost.a.pool]\nmax_workers = 3\n")
        asked = one.ask(dry=True)
        assert one.ended(asked)
        assert asked.lines == ["~ [vhost.a]: new workers", "    pool.max_workers: 2 -> 3"]
    assert one.master.config.generation == one.kept.config.generation == 1
    assert not one.init.record.of(m.Prepare)
    assert len(a.record.of(m.Share)) == 1


def refuses(one: House) -> str:
    one.init.channel.send(m.Unprepared("cannot listen on 0.0.0.0:80"))
    return "init: cannot listen on 0.0.0.0:80"


def leaves(one: House) -> str:
    one.master.reload._begun -= registry.COMES_WITHIN  # and it isn't the first
    one.init.channel.close()
    return "init is away"


def is_silent(one: House) -> str:
    assert one.master.reload._timer is not None
    callback = one.master.reload._timer.callback
    assert callback is not None
    one.on.loop.call_later(0, callback)
    one.master.reload._timer.cancel()
    return "init has not answered"


@pytest.mark.parametrize("fault", [refuses, leaves, is_silent])
def test_an_init_that_does_not_bind_stops_it(house: Open, fault: Callable[[House], str]) -> None:
    one = house()
    one.write("a")
    asked = one.ask()
    one.prepared()
    said = fault(one)
    assert one.ended(asked) is False
    assert asked.lines[0].startswith(said)
    assert "nothing has changed" in asked.lines[-1]
    assert one.master.config.generation == one.kept.config.generation == 1
    if fault is leaves:
        one.on.until(lambda: len(one.init.channels) == 2)
        one.holds(one.master.config.digest)
    asked = one.ask()  # and it can be tried again
    one.on.until(lambda: len(one.init.record.of(m.Prepare)) == (1 if fault is leaves else 2))
    one.agree()
    assert one.ended(asked)


@pytest.mark.parametrize("asked_before", [True, False])
def test_an_init_that_is_away_is_waited_for(house: Open, asked_before: bool) -> None:
    one = house()
    one.write("a")
    if asked_before:
        asked = one.ask()
        one.prepared()
        one.init.channel.close()
    else:
        one.init.channel.close()
        one.on.until(lambda: one.master.reload._init is None)
        asked = one.ask()
    one.on.until(lambda: one.master.reload._phase is reload.Phase.AWAITING)
    one.on.until(lambda: len(one.init.channels) == 2)
    one.holds(one.master.config.digest)
    one.on.until(lambda: len(one.init.record.of(m.Prepare)) == 1)  # of the one that has come
    one.agree()
    assert one.ended(asked)
    assert one.master.config.generation == 2


def test_an_init_that_does_not_come_is_told_of(house: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "COMES_WITHIN", 0.1)
    one = house()
    one.write("a")
    one.init.channel.close()
    one.on.until(lambda: one.master.reload._init is None)
    asked = one.ask()
    assert one.ended(asked) is False
    assert asked.lines[-2:] == ["init is away, which binds what is new", "nothing has changed; try again"]
    assert one.master.config.generation == one.kept.config.generation == 1


def test_two_at_once(house: Open) -> None:
    """A command is refused, a signal is remembered."""
    one = house()
    one.write("a")
    first, second = one.ask(), one.ask()
    assert second.well is False
    assert "another reload is under way (reading, for 0 s)" in second.lines[0]
    one.master.reload.on_hup()
    one.master.reload.on_hup()
    one.agree()
    assert one.ended(first)
    one.on.until(lambda: sum("the configuration is read again" in line for line in one.on.lines) == 1)
    one.on.until(lambda: one.master.reload._phase is reload.Phase.IDLE)
    assert one.master.config.generation == 2


def test_init_is_made_to_agree(house: Open) -> None:
    """It was started anew, and has read files that had been changed meanwhile; or has missed a commit."""
    one = house()
    ours = bytes.fromhex(one.master.config.digest)
    one.init.channel.send(m.Holds(bytes(32)))
    assert one.prepared().digest == ours
    one.init.channel.send(m.Prepared(ours))
    one.on.until(lambda: one.init.record.of(m.Commit) == [m.Commit(ours)])
    one.init.channel.send(m.Holds(bytes(32)))
    one.on.until(lambda: len(one.init.record.of(m.Prepare)) == 2)
    one.init.channel.send(m.Unprepared("the files have been changed"))
    one.on.until(lambda: any("init holds another configuration" in line for line in one.on.lines))
    one.init.channel.send(m.Holds(bytes(32)))  # it isn't asked again and again
    one.on.until(lambda: one.master.reload._phase is reload.Phase.IDLE)
    assert len(one.init.record.of(m.Prepare)) == 2


def test_a_few_tenants_at_a_time(house: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_AT_A_TIME", 2)
    names = ("a", "b", "c", "d", "e")
    one = house(*names)
    one.write(*names)
    first = one.ask()
    one.agree()
    one.ended(first)
    visitors = [one.come("vhost", name) for name in names]
    for visitor in visitors:
        one.serves(visitor)
    one.on.until(lambda: len(one.master.registry.in_force) == 5)
    one.write(*names, more="".join(f"[vhost.{name}.pool]\nmax_workers = 3\n" for name in names))
    before = len(one.init.record.of(m.Commit))
    asked = one.ask()
    one.on.until(lambda: len(one.init.record.of(m.Prepare)) == 2)
    one.init.channel.send(m.Prepared(one.prepared().digest))
    one.on.until(lambda: len(one.init.record.of(m.Commit)) == before + 1)
    served: set[int] = set()
    while asked.well is None:
        fresh = {
            number
            for number, visitor in enumerate(visitors)
            if visitor.record.of(m.Share)[-1].generation == 3 and number not in served
        }
        assert len(fresh) <= 2
        for number in fresh:
            served.add(number)
            one.serves(visitors[number])
        one.on.until(
            lambda: asked.well is not None or len(one.master.registry._active) == min(2, 5 - len(served))
        )
    assert (asked.well, len(served)) == (True, 5)


# ---- operators
# ----------------------------------------------------------------------------------------------------------


def operator(one: House, *commands: m.Command) -> list[Any]:
    """Say `commands` on a channel to the admin entrance; return what was answered, memfds as text."""
    from pyttpd.channel import Channel, Faults
    from pyttpd.wire.permits import Kind, Side

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    heard: list[Any] = []
    ends: list[str] = []

    def on_message(channel: Channel, message: m.Message, fd: int | None) -> None:
        match message:
            case m.Welcome(version):
                channel.version = version
                for command in commands:
                    channel.send(command)
            case m.Answer(outcome, size, digest):
                assert fd is not None
                heard.append((outcome, memfd.read(fd, size, digest).decode()))
                os.close(fd)
            case m.Told():
                heard.append(message)

    channel = Channel(
        ours,
        Kind.ADMIN,
        Side.CONNECTOR,
        loop=one.on.loop,
        log=one.on.log,
        faults=Faults(),
        peer="master",
        on_message=on_message,
        on_close=lambda _, reason: ends.append(reason),
    )
    one.master._admin._entrance._greet(theirs, Caller(0, None))
    channel.send(m.Hello("operator", "operator"))
    one.on.until(lambda: ends or sum(type(each) is tuple for each in heard) == len(commands))
    channel.close()
    one.on.until(lambda: not one.master._admin._channels)
    return [*heard, *ends]


def test_an_operator_hears_what_comes_of_it(house: Open) -> None:
    one = house()
    a = one.come("vhost", "a")
    one.serves(a)
    assert operator(one, m.Command("reload", "nobody"))[-1] == ("failed", "there is no vhost nobody")
    assert operator(one, m.Command("plan", "a"))[-1][0] == "failed"
    assert operator(one, m.Command("reload", "b"))[-1] == ("failed", "vhost b is not there: its log says why")
    outcome, text = operator(one, m.Command("plan", ""))[-1]
    assert (outcome, text) == ("done", "nothing changes")
    for answer, expected in (
        (
            m.ShareFailed(1, "ImportError: no"),
            ("failed", "vhost a: ImportError: no\nwhat served before goes on"),
        ),
        (m.ShareOk(1), ("done", "vhost a serves with new processes")),
    ):
        a.record.messages.clear()

        def answered(answer: m.Message = answer) -> None:
            if a.record.of(m.Renew):
                a.send(m.ShareOk(1))  # who was asked for a successor doesn't speak for that
                successor = one.doors["vhost", "a"]()

                def said() -> None:
                    successor.send(answer)

                one.on.loop.call_later(0.05, said)
            else:
                one.on.loop.call_later(0.01, answered)

        answered()
        well, text = operator(one, m.Command("reload", "a"))[-1]
        assert (well, text.partition(" (")[0]) == expected


@pytest.mark.parametrize(
    ("caller", "hello", "let_in"),
    [
        (Caller(0, None), m.Hello("operator", "operator"), True),
        (Caller(os.geteuid(), None), m.Hello("operator", "operator"), True),
        (Caller(31_000, None, frozenset({4, 500})), m.Hello("operator", "operator"), True),
        (Caller(31_000, None, frozenset({5, 501})), m.Hello("operator", "operator"), False),
        (Caller(20_001, None), m.Hello("operator", "operator"), False),
        (Caller(None, None), m.Hello("operator", "operator"), False),
        (Caller(0, None), m.Hello("umaster", "umaster"), False),
    ],
)
def test_who_may_ask(house: Open, caller: Caller, hello: m.Hello, let_in: bool) -> None:
    one = house()
    one.file.write_text("admin_gid = 500\n" + one.file.read_text())
    asked = one.ask()
    one.agree()
    one.ended(asked)
    assert one.master._admin._authorise(caller, hello) is let_in
    without = Caller(31_000, None, frozenset())
    assert not one.master._admin._authorise(without, m.Hello("operator", "operator"))
