"""The operator's channel: root, members of the configured group, and our own uid (whoever has that is us already).

An operator says one Command of fixed size, hears how it goes on (Told), and what came of it (Answer). One that
leaves in between changes nothing: what has begun goes on. Who may come in is decided by uid and groups as the
kernel tells them (SO_PEERCRED, SO_PEERGROUPS), before a byte is read.
"""

from __future__ import annotations

import os

from pyttpd import memfd
from pyttpd.channel import Channel
from pyttpd.config.model import Config
from pyttpd.rendezvous import Caller
from pyttpd.roles import Channel as Directory
from pyttpd.service import Service
from pyttpd.wire.messages import Answer, Command, Hello, Message, Told

from pyttpd_master.registry import AWAY, Key, Registry
from pyttpd_master.reload import Reload, Teller


class Admin:
    """The entrance for operators."""

    def __init__(self, service: Service, registry: Registry, reload: Reload, config: Config) -> None:
        self._service = service
        self._registry = registry
        self._reload = reload
        self.config = config
        self._channels: set[Channel] = set()
        self._entrance = service.entrance(
            Directory.ADMIN, credits=0, authorise=self._authorise, on_open=self._on_open
        )

    def open(self) -> None:
        self._entrance.open()

    def close(self) -> None:
        self._entrance.close()
        for channel in list(self._channels):
            channel.close()

    def _authorise(self, caller: Caller, hello: Hello) -> bool:
        if hello.role != "operator" or caller.uid is None:
            return False
        return caller.uid in (0, os.geteuid()) or self.config.admin_gid in caller.groups

    def _on_open(self, channel: Channel, _: Hello) -> None:
        self._channels.add(channel)
        channel.on_message = self._on_command
        channel.on_close = lambda channel, _reason: self._channels.discard(channel)

    def _on_command(self, channel: Channel, message: Message, _: int | None) -> None:
        match message:
            case Command(verb, name):
                operator = Operator(channel)
                self._service.log.info("an operator asks", verb=verb, name=name or "-")
                if name and verb == "reload":
                    self._renew(operator, name)
                elif name:
                    operator.end(["a plan is made of the whole configuration"], well=False)
                else:
                    self._reload.start(operator, dry=verb == "plan")

    def _renew(self, operator: Operator, name: str) -> None:
        """Make the processes of one tenant anew."""
        key: Key = ("vhost", name)
        try:
            self.config.vhost(name)
        except KeyError:
            operator.end([f"there is no vhost {name}"], well=False)
            return
        began = self._service.loop.now

        def told(_: Key, problem: str) -> None:
            if problem == AWAY:
                operator.end([f"vhost {name} {AWAY}: its log says why"], well=False)
            elif problem:
                operator.end([f"vhost {name}: {problem}", "what served before goes on"], well=False)
            else:
                seconds = self._service.loop.now - began
                operator.end([f"vhost {name} serves with new processes ({seconds:.1f} s)"], well=True)

        self._registry.watch({key}, told)
        operator.say(f"vhost {name}: new processes are started")
        self._registry.renew(key)


class Operator(Teller):
    """A person who has asked, at the other end of a channel; it may be gone any time."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def say(self, line: str) -> None:
        if not self._channel.closed:
            self._channel.send(Told(line))

    def end(self, lines: list[str], *, well: bool) -> None:
        data = "\n".join(lines).encode("utf-8", "backslashreplace")[: memfd.MAX_SIZE]
        fd = memfd.make("pyttpd-answer", data)
        try:
            answer = Answer("done" if well else "failed", len(data), memfd.digest_of(data))
            if not self._channel.closed and not self._channel.send(answer, fd):
                self._channel.fault("does-not-read", "no room for an answer")
        finally:
            os.close(fd)
