"""master: validates the configuration and gives each role its share, and nothing else of it.

It is the only role besides init that sees the whole configuration. It reads from its peers a hello of fixed
size and the number of a generation, nothing more; who may have which share is decided by the uid in the
configuration.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from pyttpd import confine, memfd, metrics
from pyttpd.channel import Channel
from pyttpd.config import startup
from pyttpd.config.model import Config
from pyttpd.log import Log
from pyttpd.rendezvous import Caller
from pyttpd.roles import ROLES, Role
from pyttpd.roles import Channel as Directory
from pyttpd.service import Options, Service
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import Goodbye, Hello, Message, Share, ShareFailed, ShareOk

#: Strangers that are remembered as told of: whoever can connect can be as many as it likes.
MAX_STRANGERS = 64


class Master:
    """The role. prepare() runs in the keeper, which may read what the role itself can't."""

    def __init__(self) -> None:
        self._config: Config | None = None
        self._shares_sent: dict[str, int] = {}
        self._in_force: dict[tuple[str, str], int] = {}
        self._strangers: set[tuple[str, int | None]] = set()

    def prepare(self, options: Options, log: Log) -> None:
        self._config = startup.read(options.config, log)

    def serve(self, service: Service) -> None:
        """Run master in this process."""
        service.confine(confine.role_policy())
        assert self._config is not None
        self._service = service
        self._channels: set[Channel] = set()
        self._entrance = service.entrance(
            Directory.MASTER, credits=0, authorise=self._authorise, on_open=self._on_open
        )
        service.fetch_sockets(self._collect, lambda _name, sock: sock.close())
        service.on_drain(self._drain)
        service.log.info(
            "configuration in force", generation=self._config.generation, digest=self._config.digest[:16]
        )
        service.when_sealed(self._open)
        service.run()

    def _open(self) -> None:
        self._entrance.open()
        self._service.ready()

    def _authorise(self, caller: Caller, hello: Hello) -> bool:
        assert self._config is not None
        try:
            match hello.role:
                case "umaster":
                    return caller.is_a("umaster", "", ROLES[Role.UMASTER].uid)
                case "listener":
                    return caller.is_a("listener", hello.name, self._config.listener(hello.name).uid)
                case "vhost":
                    uid = self._config.vhost(hello.name).uid
                    if not caller.is_a("vhost", hello.name, uid):
                        self._tell_stranger(
                            "a tenant's process has another uid than its table: correct `uid` there, or `user` in the "
                            "compose file",
                            (hello.name, caller.uid),
                            configured=uid,
                        )
                        return False
                    return True
        except KeyError:
            if hello.role == "vhost":
                self._tell_stranger(
                    "a tenant's process has a name that the configuration doesn't have: add its table and start "
                    "master anew, or remove its service",
                    (hello.name, caller.uid),
                )
        return False

    def _tell_stranger(self, event: str, who: tuple[str, int | None], **fields: object) -> None:
        """Tell once of somebody who comes again and again: most often a new tenant that isn't set up quite right."""
        if who not in self._strangers and len(self._strangers) < MAX_STRANGERS:
            self._strangers.add(who)
            self._service.log.warning(event, name=who[0], uid=who[1], **fields)

    def _on_open(self, channel: Channel, hello: Hello) -> None:
        assert self._config is not None
        channel.on_message = self._from_peer
        channel.on_close = lambda channel, _: self._channels.discard(channel)
        self._channels.add(channel)
        config = self._config
        match hello.role:
            case "umaster":
                shares = [
                    ("share", config.share_for_umaster().to_json()),
                    ("map", config.host_map().to_json()),
                ]
            case "listener":
                shares = [("share", config.share_for_listener(hello.name).to_json())]
            case _:
                shares = [("share", config.share_for_vhost(hello.name).to_json())]
        for part, data in shares:
            fd = memfd.make(f"pyttpd-{part}", data)
            try:
                # A new channel has room for two frames: False means that it is closed again already.
                if channel.send(Share(config.generation, part, len(data), memfd.digest_of(data)), fd):
                    self._shares_sent[hello.role] = self._shares_sent.get(hello.role, 0) + 1
            finally:
                os.close(fd)

    def _from_peer(self, channel: Channel, message: Message, _: int | None) -> None:
        assert self._config is not None
        match message:
            case ShareOk(generation) if generation == self._config.generation:
                self._in_force[channel.peer, channel.peer_name] = generation
            case ShareFailed(generation, _) if generation == self._config.generation:
                pass
            case ShareOk(generation) | ShareFailed(generation, _):
                raise RemoteProtocolError("bad-field", f"generation {generation} was never sent")

    def _drain(self) -> None:
        self._entrance.close()
        for channel in list(self._channels):
            channel.send(Goodbye("leaving"))
            channel.close()
        self._service.leave()

    def _collect(self) -> Iterable[metrics.Metric]:
        assert self._config is not None
        yield from self._service.about()
        yield metrics.GaugeMetricFamily(
            "pyttpd_master_generation", "Generation of the configuration.", self._config.generation
        )
        shares = metrics.CounterMetricFamily("pyttpd_master_shares", "Shares given out.", labels=["peer"])
        for role, count in sorted(self._shares_sent.items()):
            shares.add_metric([role], count)
        yield shares
        yield metrics.GaugeMetricFamily(
            "pyttpd_master_peers_in_force", "Peers that have put their share into force.", len(self._in_force)
        )
