"""master: validates the configuration and gives each role its share, and nothing else of it.

It is the only role besides init that sees the whole configuration. From its peers it reads a hello of fixed size and
how a share stands (a generation's number, with one line of why not: registry.py); from init what that has bound
(reload.py), from operators a command of fixed size (admin.py). Who may have which share is decided by the uid in the
configuration.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable

from pyttpd import confine, metrics
from pyttpd.channel import Channel
from pyttpd.config import startup
from pyttpd.config.model import Config
from pyttpd.log import Log
from pyttpd.office import Outcome
from pyttpd.rendezvous import Caller
from pyttpd.roles import ROLES, Role
from pyttpd.roles import Channel as Directory
from pyttpd.service import Options, Service
from pyttpd.wire.messages import Goodbye, Hello, Message

from pyttpd_master.admin import Admin
from pyttpd_master.registry import Registry
from pyttpd_master.reload import Reload

#: Strangers that are remembered as told of: whoever can connect can be as many as it likes.
MAX_STRANGERS = 64


class Master:
    """The role. prepare() runs in the keeper, which may read what the role itself can't; so does the desk."""

    def __init__(self) -> None:
        self._config: Config | None = None
        self._strangers: set[tuple[str, int | None]] = set()
        self.desk = MasterDesk(self)

    def prepare(self, options: Options, log: Log) -> None:
        self.path = options.config
        self._config = startup.read(options.config, log)

    @property
    def config(self) -> Config:
        assert self._config is not None
        return self._config

    @config.setter
    def config(self, config: Config) -> None:
        self._config = config

    def serve(self, service: Service) -> None:
        """Run master in this process."""
        service.confine(confine.role_policy())
        self._service = service
        self.registry = Registry(service, self.config)
        self.reload = Reload(service, self.registry, self.config, self._in_force)
        self._admin = Admin(service, self.registry, self.reload, self.config)
        self._entrance = service.entrance(
            Directory.MASTER, credits=0, authorise=self._authorise, on_open=self.registry.add
        )
        service.fetch_sockets(
            self._collect,
            lambda _name, sock: sock.close(),
            on_other=self._from_init,
            on_lost=self.reload.init_lost,
        )
        service.on_drain(self._drain)
        service.loop.on_signal(signal.SIGHUP, self.reload.on_hup)
        service.log.info(
            "configuration in force", generation=self.config.generation, digest=self.config.digest[:16]
        )
        service.when_sealed(self._open)
        service.run()

    def _open(self) -> None:
        self._entrance.open()
        self._admin.open()
        self._service.ready()

    def _from_init(self, channel: Channel, message: Message) -> None:
        self.reload.on_init(channel, message)

    def _in_force(self, config: Config) -> None:
        """Another configuration is in force from now on."""
        self.config = self._admin.config = config
        self._service.log_as(config.log)
        self._strangers.clear()

    def _authorise(self, caller: Caller, hello: Hello) -> bool:
        try:
            match hello.role:
                case "umaster":
                    return caller.is_a("umaster", "", ROLES[Role.UMASTER].uid)
                case "listener":
                    return caller.is_a("listener", hello.name, self.config.listener(hello.name).uid)
                case "vhost":
                    uid = self.config.vhost(hello.name).uid
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
                    "a tenant's process has a name that the configuration doesn't have: add its table and "
                    "reload, or remove its service",
                    (hello.name, caller.uid),
                )
        return False

    def _tell_stranger(self, event: str, who: tuple[str, int | None], **fields: object) -> None:
        """Tell once of somebody who comes again and again: most often a new tenant that isn't set up quite right."""
        if who not in self._strangers and len(self._strangers) < MAX_STRANGERS:
            self._strangers.add(who)
            self._service.log.warning(event, name=who[0], uid=who[1], **fields)

    def _drain(self) -> None:
        self._entrance.close()
        self._admin.close()
        for channel in self.registry.channels():
            channel.send(Goodbye("leaving"))
            channel.close()
        self._service.leave()

    def _collect(self) -> Iterable[metrics.Metric]:
        registry, now = self.registry, self._service.loop.now
        yield from self._service.about()
        gauge, counter = metrics.GaugeMetricFamily, metrics.CounterMetricFamily
        yield gauge("pyttpd_master_generation", "Generation of the configuration.", self.config.generation)
        shares = counter("pyttpd_master_shares", "Shares given out.", labels=["peer"])
        for role, count in sorted(registry.shares_sent.items()):
            shares.add_metric([role], count)
        yield shares
        yield gauge(
            "pyttpd_master_peers_in_force",
            "Peers that have put their share into force.",
            len(registry.in_force),
        )
        reloads = counter("pyttpd_master_reloads", "Reloads of the configuration.", labels=["result"])
        for result, count in self.reload.counts.items():
            reloads.add_metric([result], count)
        yield reloads
        waiting = gauge(
            "pyttpd_master_waiting_seconds",
            "For how long a part has not said yet that it serves by what a reload has changed.",
            labels=["role", "name", "reason"],
        )
        for (role, name), since in registry.waiting.items():
            waiting.add_metric([role, name, registry.failures.get((role, name), "")], now - since)
        yield waiting


class MasterDesk:
    """What master's keeper does with a configuration that is read again: it holds it."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._candidate: Config | None = None

    def read(self) -> Outcome:
        return startup.read_again(self._master.path, self._master.config)

    def prepare(self, outcome: Outcome) -> Outcome:
        self._candidate = outcome.config
        return outcome

    def adopt(self) -> None:
        if self._candidate is not None:
            self._master.config = self._candidate
        self._candidate = None

    def retire(self) -> None:
        """Nothing of it ends here."""

    def drop(self) -> None:
        self._candidate = None
