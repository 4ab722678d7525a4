"""The skeleton that every role runs in. It owns the order of things (Postfix's master and its services):

    1. as started: parse arguments; the role's `prepare` (init binds low ports here)
    2. become the role's uid, for good
    3. bind the channel sockets; freeze the heap; become the keeper
    4. in the forked process: the role's `serve`, which confines itself before it opens a channel
    5. ready; serve; lame duck; exit

A role supplies `prepare` and `serve` and gets a `Service`, which knows how to meet the others.

A keeper that a seed has forked (seed.py, `--asleep`) forks a role that meets no stranger. When one comes, that
role leaves (`Service.wake`), and its keeper starts the next one by exec (`become`): an interpreter of its own, which
goes on with 4 (`awake`, `--beat`).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import signal
import socket
import stat
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, NoReturn

from pyttpd import __version__, confine, keeper, metrics, privileges, turns
from pyttpd.address import Address
from pyttpd.address import parse as parse_address
from pyttpd.channel import Channel, Faults
from pyttpd.confine.kernel import set_no_new_privs
from pyttpd.confine.landlock import SCOPE_ABI
from pyttpd.health import DEFAULT_FILE, HealthFile
from pyttpd.log import Log
from pyttpd.loop import Budget, Loop, soft_descriptor_limit
from pyttpd.office import Counter, Desk, NoDesk, Office
from pyttpd.rendezvous import BACKLOG, SOCKET_NAME, Caller, Door, Entrance, Link
from pyttpd.roles import ROLES, Role, binder_of
from pyttpd.roles import Channel as Directory
from pyttpd.subscription import OnShare, Subscription
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import (
    Goodbye,
    Hello,
    Message,
    Return,
    Socket,
    SocketsEnd,
    Wanted,
    Welcome,
)

if TYPE_CHECKING:
    from pyttpd.config.shares import LogSettings

DEFAULT_RUNTIME_DIR = "/run/pyttpd"
#: A volume of Kubernetes' belongs to root and everybody may write in it, wherever it is mounted to be written: there
#: a binder makes this directory, its own, and the second lock is where it would be otherwise.
OWN_DIRECTORY = "own"
DEFAULT_GRACE = 30.0
#: A role process lives so long (s) until its keeper replaces it; 0 is for ever. init's default is 0.
DEFAULT_MAX_AGE = 86_400.0

#: Listening sockets that a role takes from init; it has two.
MAX_SOCKETS = 8

#: Whoever has less than this for its peers is told so: it works, but with few clients at a time.
FEW_DESCRIPTORS = 128


class StartError(Exception):
    """The role can't be started as asked; the message says what would be right."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a role is started with."""

    name: str = ""
    runtime_dir: str = DEFAULT_RUNTIME_DIR
    config: str = ""
    health_file: str = DEFAULT_FILE
    uid: int | None = None
    gid: int | None = None
    grace: float = DEFAULT_GRACE
    max_age: float = DEFAULT_MAX_AGE
    die_with: int = 0
    runner: int = -1
    doors: tuple[Door, ...] = ()
    plain: bool = False
    take_back: bool = False
    deposit: str = ""
    tmp: str = "/tmp"
    one_uid: bool = False
    allow: tuple[Address, ...] = ()
    shared_output: bool = False
    init_uid: int = ROLES[Role.INIT].uid
    volumes: bool = False
    asleep: bool = False
    beat: int = -1
    renewing: bool = False


def _door(text: str) -> Door:
    directory, role, name, fd = text.split(":")
    return Door(Directory(directory), role, name, int(fd))


def door_argument(door: Door) -> str:
    """Return the command line argument that `parse` makes `door` of."""
    return f"{door.directory.value}:{door.role}:{door.name}:{door.fd}"


def parse(role: Role, arguments: list[str]) -> Options:
    """Return the options in `arguments`; an error ends the process with status 2 and a sentence."""
    values = vars(_parser(role).parse_args(arguments))
    for several in ("doors", "allow"):
        values[several] = tuple(values.get(several, ()))
    return Options(**values)


@cache
def _parser(role: Role) -> argparse.ArgumentParser:
    """Return what `parse` reads with: made once for all that are forked from a seed."""
    parser = argparse.ArgumentParser(prog=f"python -I -m pyttpd_{role.value}", allow_abbrev=False)
    parser.add_argument("--name", default="", help="which listener or vhost this is")
    parser.add_argument(
        "--runtime-dir", default=DEFAULT_RUNTIME_DIR, help="where the channel directories are"
    )
    parser.add_argument(
        "--volumes",
        action="store_true",
        help="the channel directories are volumes that everybody could write in (a pod's): their binders make "
        f"directories of their own in them, {OWN_DIRECTORY}/",
    )
    parser.add_argument(
        "--init-uid",
        type=int,
        default=ROLES[Role.INIT].uid,
        help=f"the uid that init runs under, {ROLES[Role.INIT].uid} unless its ports need no privilege",
    )
    parser.add_argument("--config", default="", help="the configuration (init and master)")
    parser.add_argument("--health-file", default=DEFAULT_FILE, help="where the keeper says how the role is")
    parser.add_argument("--uid", type=int, help="become this uid (started as root, without containers)")
    parser.add_argument("--gid", type=int, help="become this gid")
    parser.add_argument("--grace", type=float, default=DEFAULT_GRACE, help="seconds to leave within")
    parser.add_argument(
        "--max-age",
        type=float,
        default=0.0 if role is Role.INIT else DEFAULT_MAX_AGE,
        help="seconds until the role's process is replaced; 0: never",
    )
    parser.add_argument("--runner", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--die-with", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        "--door", dest="doors", type=_door, action="append", default=[], help=argparse.SUPPRESS
    )
    if role is Role.INIT:
        parser.add_argument(
            "--take-back",
            action="store_true",
            help="sockets that are still open are asked back from who has them",
        )
        parser.add_argument(
            "--deposit",
            default="",
            metavar="holder",
            help="the holder of our network namespace keeps copies of the sockets, for whoever comes after us",
        )
        parser.add_argument(
            "--plain", action="store_true", help="start the other roles as well, without containers"
        )
    if role is Role.VHOST:
        parser.add_argument("--tmp", default="/tmp", help="where the tenant may make temporary files")
        parser.add_argument(
            "--shared-output", action="store_true", help="other tenants have the same standard output"
        )
        parser.add_argument("--one-uid", action="store_true", help="the uid is not this tenant's alone")
        # Forked from a seed; and in an interpreter of its own, the process of such a keeper's role.
        parser.add_argument("--asleep", action="store_true", help=argparse.SUPPRESS)
        parser.add_argument("--beat", type=int, default=-1, help=argparse.SUPPRESS)
        parser.add_argument("--renewing", action="store_true", help=argparse.SUPPRESS)
        add_allow(parser)
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def add_allow(parser: argparse.ArgumentParser) -> None:
    """Let `parser` take the exceptions from "no network", one option for each address."""
    parser.add_argument(
        "--allow",
        type=parse_address,
        action="append",
        default=[],
        metavar="IP:PORT",
        help="TCP connections to this address may be opened (the tenant's `allow` in the configuration)",
    )


def directory_path(options: Options, directory: Directory) -> str:
    """Return where the directory of a channel is."""
    path = f"{options.runtime_dir}/{directory.value}"
    return f"{path}/{OWN_DIRECTORY}" if options.volumes else path


def make_own(path: str) -> None:
    """Make the directory `path` in a volume, ours and nobody else's to write in; `bind` judges one that is there."""
    previous = os.umask(0o022)
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        pass  # a predecessor's, or a stranger's
    except OSError as error:
        raise StartError(
            f"{path}: cannot be made: {error.strerror}; the volume has to be mounted to be written"
        ) from None
    finally:
        os.umask(previous)


def bind(path: str) -> socket.socket:
    """Bind and return the listening socket of a channel directory, in place of one that a predecessor left.

    The directory has to be ours and nobody else's to write in: who can create a socket there can be us.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        raise StartError(
            f"{path}: no such directory; it has to exist and to belong to uid {os.geteuid()}"
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise StartError(
            f"{path}: must be a directory of uid {os.geteuid()} that nobody else can write in; it belongs to uid "
            f"{found.st_uid} with mode {stat.S_IMODE(found.st_mode):04o}"
        )
    name = f"{path}/{SOCKET_NAME}"
    try:
        os.unlink(name)
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Everybody may connect; who may speak is decided by uid (SO_PEERCRED).
    previous = os.umask(0o111)
    try:
        sock.bind(name)
    except OSError as error:
        raise StartError(f"{name}: cannot bind: {error.strerror}") from None
    finally:
        os.umask(previous)
    sock.listen(BACKLOG)
    return sock


@dataclass(slots=True)
class Service:
    """What a role's process works with. Made by `main` in the forked process."""

    role: Role
    options: Options
    bound: dict[Directory, socket.socket]
    beat: socket.socket
    log: Log
    loop: Loop = field(default_factory=Loop)
    faults: Faults = field(default_factory=Faults)
    budget: Budget = field(default_factory=Budget)
    draining: bool = False
    #: Another process of this role serves until we are ready, because somebody has asked for us.
    renewing: bool = False
    #: We were forked from a seed, and must meet neither a client nor a tenant's code: `wake` comes before that.
    asleep: bool = False
    #: Where we ask our keeper, if our role has anything to ask for.
    counter: Counter | None = None
    #: Doors that have come after our keeper was started.
    late_doors: list[Door] = field(default_factory=list)
    _on_drain: list[Callable[[], None]] = field(default_factory=list)
    _sockets: dict[tuple[str, str], socket.socket] = field(default_factory=dict)
    _scraped: metrics.Server | None = None
    _entrances: dict[Directory, Entrance] = field(default_factory=dict)
    _links: dict[Directory, Link] = field(default_factory=dict)
    _report: confine.Report | None = None
    _when_sealed: list[Callable[[], None]] = field(default_factory=list)
    _sealed: bool = False

    # ---- life ----

    def run(self) -> None:
        """Serve until told to leave and drained."""
        self.loop.on_signal(signal.SIGTERM, self._leave)
        self.loop.on_signal(
            signal.SIGINT, lambda: None
        )  # a terminal's Ctrl-C reaches all; the keeper says when
        self._say(keeper.ALIVE)
        if self.budget.limit < FEW_DESCRIPTORS:
            self.log.warning(
                "few descriptors: when there are more clients at a time, they wait; raise the limit (ulimit -n)",
                for_peers=self.budget.limit,
                limit=soft_descriptor_limit(),
            )
        self.loop.run()

    def _say(self, byte: bytes) -> None:
        try:
            self.beat.send(byte, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            pass
        except OSError:
            # Without a keeper nobody would end us: we go ourselves.
            self.loop.stop()
        if byte == keeper.ALIVE:
            interval = keeper.BEAT_INTERVAL * (keeper.ASLEEP_BEATS if self.asleep else 1)
            self.loop.call_later(interval, lambda: self._say(keeper.ALIVE))

    def ready(self) -> None:
        """Tell the keeper, and so whoever asks for our health, that we serve. May be called again."""
        if not self.draining:
            self._say(keeper.READY)

    def not_ready(self) -> None:
        """Take that back: something that serving takes is missing."""
        if not self.draining:
            self._say(keeper.NOT_READY)

    def log_as(self, settings: LogSettings) -> None:
        """Log from now on as `settings` say, and let our keeper do the same."""
        self.log.level, self.log.format = settings.level, settings.format
        for words, said in ((keeper.LOG_LEVELS, settings.level), (keeper.LOG_FORMATS, settings.format)):
            self._say(next(byte for byte, word in words.items() if word == said))

    def on_drain(self, callback: Callable[[], None]) -> None:
        """Call `callback` when we are asked to leave; the last thing the role does is `leave()`."""
        self._on_drain.append(callback)

    @property
    def nobody_follows(self) -> bool:
        """Whether the whole role ends, its keeper too. Otherwise somebody takes over what we have, sooner or later."""
        return keeper.NOBODY_FOLLOWS in self._heard()

    @property
    def relieved(self) -> bool:
        """Whether we may leave as far as others are concerned: a successor has all that we hold, or nobody follows."""
        return self._heard() != b""

    def _heard(self) -> bytes:
        """What the keeper has said to us: it stays there, being two bytes at the most."""
        try:
            return self.beat.recv(8, socket.MSG_DONTWAIT | socket.MSG_PEEK) or keeper.NOBODY_FOLLOWS
        except BlockingIOError:
            return b""
        except OSError:
            return keeper.NOBODY_FOLLOWS

    def _leave(self) -> None:
        if self.draining:
            self.log.info("asked a second time: leaving at once")
            self.leave()
            return
        self.draining = True
        self._say(keeper.DRAINING)
        self.log.info("draining")
        if not self._on_drain:
            self.leave()
        for callback in self._on_drain:
            callback()

    def leave(self) -> None:
        """End the process now: nothing is open any more."""
        self.loop.stop()

    @property
    def woken(self) -> bool:
        """Whether we follow somebody who slept and has asked for us, or may sleep again (`sleep`)."""
        return self.options.asleep and not self.asleep

    def wake(self) -> None:
        """Leave, so that our keeper starts us in an interpreter of its own: somebody comes whom we must not meet."""
        if not self.draining:
            self.draining = True
            self._say(keeper.WAKE)
            self.leave()

    def sleep(self) -> None:
        """Leave, so that our keeper forks one that sleeps: nobody has come for a while. Only if we were `woken`."""
        if not self.draining:
            self._leave()

    # ---- confinement ----

    def confine(self, policy: confine.Policy) -> None:
        """Lock this process for good, before it meets anybody. Raises confine.ConfineError, which ends it."""
        self._report = confine.confine(policy)
        self.log.debug("confined", locks=self._report)

    def give_way(self) -> None:
        """Take the core from nobody who hasn't had his turn when we are woken up: what wakes us comes in numbers then.

        On a core that is busy, roles that only hand on would otherwise take turns with who serves for every single
        connection. We wait until that sleeps or has had its share (some milliseconds), and find several. Where a core
        is idle nothing changes. It takes no privilege; where even that is forbidden, we are slower and nothing else.
        """
        with contextlib.suppress(OSError):
            turns.take_long_turns()

    @property
    def signals_scoped(self) -> bool:
        """Whether no signal of ours can leave what we and our children are confined to (Landlock's scope)."""
        report = self._report
        return report is not None and confine.Lock.LANDLOCK in report.locks and report.abi >= SCOPE_ABI

    def when_sealed(self, callback: Callable[[], None]) -> None:
        """Call `callback` as soon as strangers may be met: at once, where Landlock judges TCP connections.

        On older kernels connect() stays open until all links stand (confine.seal), so that is waited for; and a role
        that loses umaster then can't come back to it: it leaves, and its keeper starts a successor.
        """
        assert self._report is not None
        if self._report.network is not confine.NetworkGuard.PENDING:
            callback()
        else:
            self._when_sealed.append(callback)

    def _seal(self) -> None:
        if self._when_sealed and all(link.is_open for link in self._links.values()):
            assert self._report is not None
            self._report = confine.seal(self._report)
            self._sealed = True
            callbacks, self._when_sealed = self._when_sealed, []
            for callback in callbacks:
                callback()

    # ---- meeting the others ----

    def doors(self, directory: Directory) -> list[Door]:
        doors = (*self.options.doors, *self.late_doors)
        return [door for door in doors if door.directory is directory]

    def open_door(self, door: Door) -> None:
        """Let somebody in who has come after the start, through `door`, whose descriptor is taken over."""
        entrance = self._entrances.get(door.directory)
        if entrance is None:
            os.close(door.fd)
        else:
            entrance.add_door(door)

    def entrance(
        self,
        directory: Directory,
        *,
        credits: int,
        authorise: Callable[[Caller, Hello], bool],
        on_open: Callable[[Channel, Hello], None],
    ) -> Entrance:
        """Return the entrance of a directory that this role binds. It is closed until its open() is called."""
        entrance = self._entrances[directory] = Entrance(
            directory,
            self.bound.get(directory),
            self.doors(directory),
            loop=self.loop,
            log=self.log,
            faults=self.faults,
            budget=self.budget,
            credits=credits,
            authorise=authorise,
            on_open=on_open,
        )
        return entrance

    def link(
        self,
        directory: Directory,
        *,
        on_open: Callable[[Channel, Welcome], None],
        on_message: Callable[[Channel, Message, int | None], None],
        on_lost: Callable[[str], None],
    ) -> Link:
        """Return a link to the binder of `directory`; start() begins to connect."""
        binder = binder_of(directory)

        def opened(channel: Channel, welcome: Welcome) -> None:
            on_open(channel, welcome)
            self._seal()

        def lost(reason: str) -> None:
            on_lost(reason)
            # Without init and master work goes on; without umaster there is none.
            if self._sealed and binder is Role.UMASTER and not self.draining:
                self.log.warning("link lost; this kernel lets a successor open another", peer=binder.value)
                self._leave()

        link = Link(
            directory,
            folder=directory_path(self.options, directory),
            door=next(iter(self.doors(directory)), None),
            binder=binder.value,
            binder_uid=self.options.init_uid if binder is Role.INIT else ROLES[binder].uid,
            hello=Hello(self.role.value, self.options.name or self.role.value),
            loop=self.loop,
            log=self.log,
            faults=self.faults,
            on_open=opened,
            on_message=on_message,
            on_lost=lost,
        )
        self._links[directory] = link
        return link

    def fetch_sockets(
        self,
        collect: metrics.Collect,
        on_listener: Callable[[str, socket.socket], None],
        *,
        on_withdrawn: Callable[[str, socket.socket], None] = lambda _name, sock: sock.close(),
        on_other: Callable[[Channel, Message], None] | None = None,
        on_lost: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        """Ask init for our sockets: metrics are served at once, listeners are given to on_listener(name, socket).

        The link stays, so that an init that is replaced finds us: it gives us what it could bind anew and asks us for
        the rest, which we hold. A socket that we have already is not taken twice; one that isn't ours any more (init
        doesn't name it, or gives us another one) is given to on_withdrawn. What else init says is on_other's.
        """
        named: set[tuple[str, str]] = set()

        def on_message(channel: Channel, message: Message, fd: int | None) -> None:
            match message:
                case Wanted(use, name):
                    named.add((use, name))
                    held = self._sockets.get((use, name))
                    if held is not None and held.fileno() >= 0:
                        channel.send(Return(use, name), held.fileno())
                case Socket(use, name):
                    assert fd is not None
                    named.add((use, name))
                    self._take_socket(use, name, fd, collect, on_listener, on_withdrawn)
                case SocketsEnd(total):
                    if total != len(named):
                        self.log.warning("init gave another number of sockets", count=total, known=len(named))
                    for key in self._sockets.keys() - named:
                        self._withdraw(key, on_withdrawn)
                    named.clear()
                case _ if on_other is not None:
                    on_other(channel, message)

        def on_open(_channel: Channel, _welcome: Welcome) -> None:
            named.clear()

        self.link(Directory.INIT, on_open=on_open, on_message=on_message, on_lost=on_lost).start()

    def _take_socket(
        self,
        use: str,
        name: str,
        fd: int,
        collect: metrics.Collect,
        on_listener: Callable[[str, socket.socket], None],
        on_withdrawn: Callable[[str, socket.socket], None],
    ) -> None:
        held = self._sockets.get((use, name))
        if held is not None and held.fileno() >= 0:
            if os.path.sameopenfile(held.fileno(), fd):
                os.close(fd)
                return
            self._withdraw((use, name), on_withdrawn)
        if len(self._sockets) >= MAX_SOCKETS:
            os.close(fd)
            raise RemoteProtocolError("too-many", f"more than {MAX_SOCKETS} sockets")
        sock = self._sockets[use, name] = socket.socket(fileno=fd)
        if use == "metrics":
            self._scraped = metrics.Server(self.loop, sock, collect)
        else:
            on_listener(name, sock)

    def _withdraw(self, key: tuple[str, str], on_withdrawn: Callable[[str, socket.socket], None]) -> None:
        """A socket isn't ours any more."""
        use, name = key
        sock = self._sockets.pop(key)
        if use != "metrics":
            on_withdrawn(name, sock)
        elif self._scraped is not None:
            self._scraped.close()
            self._scraped = None

    def fetch_shares(self, on_share: OnShare, on_renew: Callable[[], None] | None = None) -> Subscription:
        """Ask master for our shares of the configuration: see `pyttpd.subscription`."""
        subscription = Subscription(self.role.value, on_share, on_renew)

        def on_message(channel: Channel, message: Message, fd: int | None) -> None:
            if isinstance(message, Goodbye):
                self._links[Directory.MASTER].drop()
            else:
                subscription.on_message(channel, message, fd)

        self.link(Directory.MASTER, on_open=_no_open, on_message=on_message, on_lost=_no_lost).start()
        return subscription

    def renew(self) -> None:
        """Ask our keeper for a successor, which is there before we are asked to leave."""
        if not self.draining:
            self._say(keeper.RENEW)

    def give_up(self) -> None:
        """Tell our keeper that we won't become ready. If we are to succeed somebody, that one stays."""
        self._say(keeper.FAILED)

    def about(self, who: metrics.About | None = None) -> Iterable[metrics.Metric]:
        """Yield the metrics that every role has; `who` the role is, where a child of it answers."""
        yield from metrics.about(self.role.value, self.options.name, who or metrics.About.me())
        yield metrics.faults(self.role.value, self.faults)
        yield metrics.GaugeMetricFamily(
            f"pyttpd_{self.role.value}_open_descriptors",
            "Descriptors of peers that are open.",
            self.budget.used,
        )
        yield metrics.GaugeMetricFamily(
            f"pyttpd_{self.role.value}_descriptors_limit",
            "Descriptors of peers that may be open.",
            self.budget.limit,
        )


def _no_open(_channel: Channel, _welcome: Welcome) -> None:
    """A link on which the binder speaks first needs nothing when it opens."""


def _no_lost(_reason: str) -> None:
    """A link whose loss changes nothing: it comes back by itself."""


@dataclass(frozen=True, slots=True)
class Program:
    """A role: `prepare(options)` runs as started, `serve(service)` in the role's own process, both may raise
    StartError.
    """

    role: Role
    serve: Callable[[Service], None]
    prepare: Callable[[Options, Log], None] = lambda _options, _log: None
    desk: Desk | None = None


def become(role: Role, arguments: list[str], beat: socket.socket, renewing: bool) -> NoReturn:
    """Become the role's process in an interpreter of its own, by exec, instead of what was forked from a seed."""
    options = parse(role, arguments)
    for fd in (beat.fileno(), *(door.fd for door in options.doors)):
        os.set_inheritable(fd, True)
    words = [sys.executable, "-I", "-m", f"pyttpd_{role.value}", *arguments, "--beat", str(beat.fileno())]
    os.execve(words[0], [*words, *(["--renewing"] if renewing else [])], os.environ)


def awake(program: Program, options: Options) -> int:
    """Be a role's process that its keeper has started by exec (`become`); return its exit status."""
    log = Log(program.role.value, options.name)
    for door in options.doors:
        os.set_inheritable(door.fd, False)
    with socket.socket(fileno=options.beat) as beat:
        os.set_inheritable(options.beat, False)
        try:
            privileges.set_process_name(f"{program.role.value[:1]}:{options.name}")
            program.serve(Service(program.role, options, {}, beat, log, renewing=options.renewing))
        except BaseException as error:  # noqa: BLE001 - told in our own log, and by our end
            log.error("role ended by an error", error=repr(error), traceback=traceback.format_exc())
            return 1
    return 0


def _say_starting(health: HealthFile, options: Options) -> None:
    try:
        health.write("starting")
    except OSError as error:
        raise StartError(f"{options.health_file}: cannot be written: {error.strerror}") from None


def main(program: Program, arguments: list[str]) -> int:
    """Run `program`; returns the exit status: 0, or 2 if it can't be started as asked."""
    role = program.role
    options = parse(role, arguments)
    if options.beat >= 0:
        return awake(program, options)
    log = Log(role.value, options.name)
    health = HealthFile(options.health_file)
    try:
        if options.uid is None:
            # In a pod a container's volumes outlive it: what a predecessor said last says nothing of us.
            _say_starting(health, options)
        program.prepare(options, log)
        if options.uid is not None:
            privileges.become(options.uid, options.uid if options.gid is None else options.gid)
            _say_starting(health, options)
        # The role's own processes get this again with all other locks; its keeper has it from here.
        set_no_new_privs()
        if options.die_with:
            privileges.die_with_parent(options.die_with)
        privileges.set_process_name(
            f"{role.value[:1]}:{options.name}" if options.name else f"pyttpd-{role.value}"
        )
        bound: dict[Directory, socket.socket] = {}
        for directory in ROLES[role].binds:
            if not any(door.directory is directory for door in options.doors):
                path = directory_path(options, directory)
                if options.volumes:
                    make_own(path)
                bound[directory] = bind(path)
    except (StartError, privileges.PrivilegeError) as error:
        log.error("cannot start", error=error)
        health.remove()
        return 2

    def serve(beat: socket.socket) -> None:
        service = Service(role, options, bound, beat, log, renewing=keep.renewing, asleep=options.asleep)
        if office is not None and office.theirs is not None:
            service.counter = Counter(service.loop, office.theirs)
            service.counter.on_door = service.open_door
            service.late_doors = list(office.doors)
        program.serve(service)

    if not options.asleep:  # who is forked from a seed: that has done so
        metrics.load()
        gc.collect()
        gc.freeze()
    runner = None
    if options.runner >= 0:
        runner = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=options.runner)
        runner.setblocking(False)
    office = None
    if program.desk is not None or runner is not None:
        office = Office(program.desk or NoDesk(), log, runner, asks=role is Role.MASTER)
    keep = keeper.Keeper(
        serve,
        log,
        health,
        options.grace,
        options.max_age,
        office=office,
        forwards_hup=role is Role.MASTER,
        overlap=role is not Role.INIT,
        become=partial(become, role, arguments) if options.asleep else None,
    )
    try:
        return keep.run()
    finally:
        for directory, sock in bound.items():
            sock.close()
            try:
                os.unlink(f"{directory_path(options, directory)}/{SOCKET_NAME}")
            except OSError:
                pass  # a successor's container may have bound its own already, or the volume is gone
