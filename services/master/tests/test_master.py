"""master on a stage: each peer gets its share and nobody else's, and nothing is believed of what it says."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyttpd import memfd
from pyttpd.config.shares import HostMap, ListenerShare, UmasterShare, VhostShare
from pyttpd.rendezvous import Caller
from pyttpd.roles import Channel as Directory
from pyttpd.roles import Role
from pyttpd.service import Options, Service, StartError
from pyttpd.wire import messages as m

from pyttpd_master.master import MAX_STRANGERS, Master
from support.wired import Stage, Visitor, stage

CONFIG = """
[listen.http]
address = "127.0.0.1:18080"
[vhost.a]
hosts = ["a.example"]
uid = 20001
kind = "static"
root = "{root}"
[vhost.b]
hosts = ["b.example"]
uid = 20002
kind = "static"
root = "{root}"
"""


class Office:
    """master with its configuration in force, and doors for its peers."""

    def __init__(self, on: Stage, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = on
        config = folder / "pyttpd.toml"
        config.write_text(CONFIG.format(root=folder))
        self.init = on.play(Directory.INIT)
        self.doors = {
            (role, name): on.knock(Directory.MASTER, role, name)
            for role, name in (("umaster", ""), ("listener", "http"), ("vhost", "a"), ("vhost", "b"))
        }
        self.service = on.service(Role.MASTER)
        # Confinement is for good, and would be for all tests; the loop is turned by the stage.
        monkeypatch.setattr(Service, "confine", lambda _self, _policy: None)
        monkeypatch.setattr(Service, "run", lambda _self: None)
        self.master = Master()
        self.master.prepare(Options(config=str(config)), on.log)
        self.master.serve(self.service)
        on.stack.callback(self._clear)

    def _clear(self) -> None:
        for channel in self.master.registry.channels():
            channel.close()
        for sock, _ in self.master._entrance._sources:
            sock.close()

    def come(self, role: str, name: str = "", hello: m.Hello | None = None) -> Visitor:
        return self.doors[role, name](hello)

    def shares(self, visitor: Visitor, count: int) -> dict[str, bytes]:
        self.on.until(lambda: len(visitor.record.messages) == count)
        return {
            share.part: memfd.read(fd, share.size, share.digest)
            for share, fd in zip(visitor.record.messages, visitor.record.fds, strict=True)
            if isinstance(share, m.Share)
        }


Open = Callable[[], Office]


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    with stage() as on:
        yield Office(on, tmp_path, monkeypatch)


def test_each_gets_its_share_and_no_other(office: Office) -> None:
    umaster = office.shares(office.come("umaster"), 2)
    assert {peer.name for peer in UmasterShare.from_json(umaster["share"]).vhosts} == {"a", "b"}
    assert HostMap.from_json(umaster["map"]).find("a.example") == "a"
    listener = office.shares(office.come("listener", "http"), 1)
    assert ListenerShare.from_json(listener["share"]).name == "http"
    assert b"example" not in listener["share"]
    for name, other in (("a", b"b.example"), ("b", b"a.example")):
        share = office.shares(office.come("vhost", name), 1)["share"]
        assert VhostShare.from_json(share).name == name
        assert other not in share


def test_what_is_in_force_is_counted(office: Office) -> None:
    visitor = office.come("vhost", "a")
    office.shares(visitor, 1)
    visitor.send(m.ShareOk(visitor.record.of(m.Share)[0].generation))
    office.on.until(lambda: office.master.registry.in_force)
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in office.master._collect()
        for sample in family.samples
    }
    assert samples["pyttpd_master_shares_total", "vhost"] == 1
    assert samples["pyttpd_master_peers_in_force",] == 1


@pytest.mark.parametrize(
    "hello",
    [
        m.Hello("vhost", "b"),
        m.Hello("vhost", "nobody"),
        m.Hello("umaster", "umaster"),
        m.Hello("listener", "http"),
        m.Hello("init", "init"),
        m.Hello("operator", "a"),
    ],
)
def test_nobody_gets_anothers_share(office: Office, hello: m.Hello) -> None:
    visitor = office.come("vhost", "a", hello)
    office.on.until(lambda: office.service.faults.counts)
    visitor.link.close()
    assert {reason for _, reason in office.service.faults.counts} == {"not-authorised"}
    assert not visitor.record.messages


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("b", f"another uid than its table: .* name=b uid={os.geteuid() + 1} configured=20002"),
        ("nobody", "doesn't have"),
    ],
)
def test_a_tenant_that_is_set_up_wrongly_is_told_of_once(office: Office, name: str, told: str) -> None:
    caller = Caller(os.geteuid() + 1, None)
    for _ in range(3):
        assert not office.master._authorise(caller, m.Hello("vhost", name))
    (line,) = [line for line in office.on.lines if "a tenant's process has" in line]
    assert re.search(told, line)


def test_strangers_are_told_of_within_a_bound(office: Office) -> None:
    for number in range(MAX_STRANGERS + 10):
        office.master._authorise(Caller(30_000, None), m.Hello("vhost", f"n{number}"))
    assert len(office.master._strangers) == MAX_STRANGERS


def test_a_generation_that_was_never_sent_is_a_fault(office: Office) -> None:
    visitor = office.come("vhost", "a")
    office.shares(visitor, 1)
    visitor.send(m.ShareOk(99_999))
    office.on.until(lambda: visitor.lost)
    assert office.service.faults.counts == {("vhost", "bad-field"): 1}


def test_it_says_goodbye(office: Office) -> None:
    visitor = office.come("umaster")
    office.shares(visitor, 2)
    office.service._leave()
    office.on.until(lambda: visitor.lost)
    assert visitor.record.messages[-1] == m.Goodbye("leaving")


def test_a_configuration_that_is_missing_or_wrong_ends_the_start(tmp_path: Path) -> None:
    with stage() as on:
        with pytest.raises(StartError, match="--config"):
            Master().prepare(Options(), on.log)
        wrong = tmp_path / "pyttpd.toml"
        wrong.write_text("[listen.http]\naddress = 5\n")
        with pytest.raises(StartError, match="pyttpd check"):
            Master().prepare(Options(config=str(wrong)), on.log)
        assert any("error: configuration" in line for line in on.lines)
        os.unlink(wrong)
