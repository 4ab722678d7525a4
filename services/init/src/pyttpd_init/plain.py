"""The tree without containers: `python -I -m pyttpd_init --plain`, which `pyttpd run` becomes.

Theory of operation. This process, the *runner*, stands where Docker stands otherwise: it prepares the
directories, starts one keeper per role and tenant, starts again what ends, and takes everything down in
order. Keepers of tenants that may sleep are forked for it by a seed (seedbed.py), whose answers are all that it reads.
It has no peer, and holds no listening socket: copies of them lie in a pair that it has for init's keepers (deposit.py).
What it can give a role depends on who runs it:

    as root             each role its uid, a network namespace with only `lo` (all but init), a mount namespace of
                        its own, and the egress rule for all uids of the tree. A tenant that is allowed addresses has a
                        gate beside it (gate.py), and an exception from the rule for its uid
    as an ordinary user one uid for all; who is who is told by inherited socketpairs (doors); Landlock and seccomp
                        still stand. A warning says what is missing.

Every child runs in a session of its own, so that a terminal's Ctrl-C reaches only the runner; and every
keeper is told by the kernel when the runner dies (PR_SET_PDEATHSIG), so nothing stays behind even after kill
-9.
"""

from __future__ import annotations

import enum
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import stat
import sys
import time
from dataclasses import dataclass, field

from pyttpd import admin, health, namespaces, office, privileges, seed, service
from pyttpd.address import Address
from pyttpd.config import startup
from pyttpd.config.model import Config, Vhost
from pyttpd.confine import python_paths
from pyttpd.confine.landlock import NETWORK_ABI, kernel_abi
from pyttpd.log import Log
from pyttpd.loop import soft_descriptor_limit
from pyttpd.rendezvous import SOCKET_NAME, Door
from pyttpd.roles import ROLES, Role
from pyttpd.roles import Channel as Directory
from pyttpd.service import Options, StartError, door_argument

from pyttpd_init import egress, gate
from pyttpd_init.seedbed import Seedbed
from pyttpd_init.steward import Steward

#: All that roles and tenants get of the operator's environment: the rest may hold secrets.
PASSED_ENVIRONMENT = ("LANG", "LC_ALL", "LC_CTYPE", "TZ")
PATH = "/usr/local/bin:/usr/bin:/bin"
#: Delays (s) before a keeper that ended is started again.
FIRST_DELAY, LAST_DELAY, STABLE_AFTER = 0.1, 5.0, 10.0
#: How often (s) the runner looks at the children: their health until the tree is ready, their end when it leaves.
POLL = 0.1
#: How long (s), once all roles are ready, the tree waits for tenants before it is ready without them: what a tenant's
#: folder or application does must not keep the others' server from having started (`TimeoutStartSec` of the unit).
TENANTS_PATIENCE = 30.0
#: So many of them are named in the log.
MOST_NAMED = 20
#: So many are started until the runner listens again.
MOST_AT_ONCE = 25
#: After the second signal keepers end what they keep; who hasn't gone after so long (s) is killed.
LAST_WORD = 2.0
#: Started before all others: what is wrong with ports or the configuration then ends the start, and is what is
#: read last.
FOUNDERS = (Role.INIT, Role.MASTER)
#: The order of leaving: who accepts goes first, who holds the sockets goes last.
LEAVING_ORDER = ((Role.LISTENER,), (Role.UMASTER,), (Role.VHOST, Role.MASTER), (Role.INIT,))
_LAST_DESCRIPTOR = 2**31 - 1

_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGIO})


@dataclass(slots=True, eq=False)
class Instance:
    """A role or tenant that the runner keeps running."""

    role: Role
    name: str
    uid: int
    gid: int
    doors: list[Door] = field(default_factory=list)
    pid: int = 0
    born: float = 0.0
    failures: int = 0
    start_at: float | None = 0.0
    asked: bool = False
    allow: tuple[Address, ...] = ()
    #: A descriptor of the network namespace that it shares with its gate; without one it makes its own.
    network: int = -1
    #: Whose place it takes, as soon as it is ready; it has a number then, since both are there for a while.
    replaces: Instance | None = None
    number: int = 0
    #: Sockets that were made for it after the start, and end with it.
    kept: list[socket.socket] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.role.value}.{self.name}" if self.name else self.role.value
        return f"{text}+{self.number}" if self.number else text


@dataclass(slots=True, eq=False)
class GateInstance(Instance):
    """The gate of a tenant: a program of init's, not a role, with the tenant's uid. It comes and goes with init."""

    def __str__(self) -> str:
        return f"gate.{self.name}+{self.number}" if self.number else f"gate.{self.name}"


def instances(config: Config) -> list[Instance]:
    """Return what the tree consists of, in the order of starting."""
    found = [
        Instance(role, "", ROLES[role].uid, ROLES[role].uid)
        for role in (Role.INIT, Role.MASTER, Role.UMASTER)
    ]
    found += [Instance(Role.LISTENER, each.name, each.uid, each.uid) for each in config.listeners]
    found += [Instance(Role.VHOST, each.name, each.uid, each.gid, allow=each.allow) for each in config.vhosts]
    return found


def gates(children: list[Instance]) -> list[Instance]:
    """Return a gate for each tenant that is allowed addresses, in a network namespace that both are given here.

    Raises NamespaceError. The descriptors stay open as long as the tree.
    """
    found: list[Instance] = []
    for child in children:
        if child.allow:
            child.network = namespaces.make_network_namespace(child.allow)
            found.append(
                GateInstance(
                    Role.INIT, child.name, child.uid, child.gid, allow=child.allow, network=child.network
                )
            )
    return found


def make_doors(children: list[Instance]) -> list[socket.socket]:
    """Give every pair of roles that meet a door; returns the sockets, which have to stay open as long as the tree."""
    needed = 2 * sum(len(ROLES[child.role].connects) for child in children) + 64
    if needed > soft_descriptor_limit():
        raise StartError(
            f"{len(children)} processes of one uid take {needed} descriptors, {soft_descriptor_limit()} are allowed; "
            "raise the limit (ulimit -n) or run as root"
        )
    binders = {directory: child for child in children for directory in ROLES[child.role].binds}
    kept = []
    for child in children:
        for directory in ROLES[child.role].connects:
            binder = binders[directory]
            theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            kept += [theirs, ours]
            binder.doors.append(Door(directory, child.role.value, child.name, theirs.fileno()))
            child.doors.append(Door(directory, binder.role.value, binder.name, ours.fileno()))
    return kept


def check_interpreter() -> None:
    """Raise StartError if tenants' uids couldn't read Python: they import modules after they have their own uid."""
    for path in python_paths():
        parts = path.split("/")
        for depth in range(2, len(parts) + 1):
            parent = "/".join(parts[:depth])
            try:
                mode = os.stat(parent).st_mode
            except OSError:
                break
            if not mode & stat.S_IXOTH:
                raise StartError(
                    f"{parent} can't be entered by other uids, but {path} is in it, from which every tenant imports: "
                    "put clone and .venv where every user may read, such as /srv, and make .venv with a Python that "
                    "isn't in a private home (`make venv PYTHON=/usr/bin/python3`)"
                )


class Phase(enum.Enum):
    """How far the tree is: one direction only."""

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"  # asked to leave, in LEAVING_ORDER, within grace
    ENDING = "ending"  # told to end at once
    KILLING = "killing"  # who is still there is killed


class Runner:
    """Starts, watches and ends the tree."""

    def __init__(self, options: Options, config: Config, log: Log) -> None:
        self._options = options
        self.config = config
        self.log = log
        self.as_root = os.geteuid() == 0
        self.file = os.path.abspath(options.config)
        self._dir = config.runtime_dir if self.as_root else user_directory(config.runtime_dir)
        self.children = instances(config)
        self.table = "pyttpd_" + hashlib.sha256(self._dir.encode()).hexdigest()[:8]
        self._phase = Phase.STARTING
        self._founded = False
        self._roles_since = 0.0
        self._until = float("inf")
        self._status = 0
        self._lock = -1
        self._not_ours: frozenset[int] = frozenset()
        self._stopped: dict[int, float] = {}
        self._doors: list[socket.socket] = []
        self._deposit: tuple[socket.socket, ...] = ()
        self._steward = Steward(self)
        self._judged = kernel_abi() >= NETWORK_ABI
        self._seedbed = Seedbed(log, self._exec)
        self._late: list[Instance] | None = None
        self._had_terminal = has_terminal()
        self._watchdog = Watchdog()

    # ---- before the first child ----

    def prepare(self) -> None:
        """Make the directories, take the lock, set the egress rule. Raises StartError."""
        old = os.umask(0o022)
        try:
            os.makedirs(self._dir, 0o755, exist_ok=True)
            self._check_directory()
            self._lock = os.open(
                f"{self._dir}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StartError(
                    f"another pyttpd runs with runtime_dir {self._dir}; end it, or give this one another runtime_dir"
                ) from None
            if self.as_root:
                for role, row in ROLES.items():
                    for directory in row.binds:
                        self._directory(directory.value, row.uid, row.uid)
                    del role
                self.children += gates(self.children)
            else:
                # People come by path; who they are, their uid says.
                self._directory(Directory.ADMIN.value, os.geteuid(), os.getegid())
            self._directory("health", os.geteuid(), os.getegid())
            for child in self.children:
                self.make_folders(child)
        except namespaces.NamespaceError as error:
            raise StartError(f"{error} (allow)") from None
        except OSError as error:
            raise StartError(f"{error.filename or self._dir}: {error.strerror} (runtime_dir)") from None
        finally:
            os.umask(old)
        if self.as_root:
            check_interpreter()
            try:
                self._steward.hold_back(
                    {child.uid for child in self.children if child.uid},
                    {
                        egress.Allowed(address, child.uid)
                        for child in self.children
                        for address in child.allow
                    },
                )
            except egress.EgressError as error:
                raise StartError(str(error)) from None
        else:
            self.log.warning(
                "running as an ordinary user: all tenants have one uid, no network namespaces and no egress rule; "
                "Landlock and seccomp are all that keeps them apart. Start as root, or use compose, for tenants that "
                "don't trust each other",
                uid=os.geteuid(),
            )
            self._doors = make_doors(self.children)
            for role in (Role.INIT, Role.UMASTER):
                self._steward.link(role)
            if any(child.allow for child in self.children):
                self.log.warning(
                    "as an ordinary user, `allow` opens its ports at every address, and to whoever turns a client's "
                    "connection round",
                    tenants=" ".join(child.name for child in self.children if child.allow),
                )

        self._steward.link(Role.MASTER)
        self._deposit = office.pair()

    def make_folders(self, child: Instance) -> None:
        """Make what `child` writes in. Raises OSError."""
        self._watchdog.turn()  # thousands of them take longer than its patience
        old = os.umask(0o022)
        try:
            self._directory(f"health/{child}", *self._owner(child))
            if child.role is Role.VHOST and not self.as_root:
                self._directory(f"tmp-{child.name}", *self._owner(child), mode=0o700)
        finally:
            os.umask(old)

    def tmp_folder(self, child: Instance) -> str:
        return f"{self._dir}/tmp-{child.name}"

    @staticmethod
    def is_part(child: Instance) -> bool:
        """Whether `child` is what a table asks for: no gate, and nobody who has been asked to leave."""
        return not isinstance(child, GateInstance) and not child.asked

    def _check_directory(self) -> None:
        """Raise StartError if anybody else could put something of theirs in the place of what we make here."""
        found = os.lstat(self._dir)
        if (
            not stat.S_ISDIR(found.st_mode)
            or found.st_uid != os.geteuid()
            or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        ):
            raise StartError(
                f"{self._dir} must be a directory of uid {os.geteuid()} that nobody else can write in; it belongs to "
                f"uid {found.st_uid} with mode {stat.S_IMODE(found.st_mode):04o} (runtime_dir)"
            )

    def _owner(self, child: Instance) -> tuple[int, int]:
        return (child.uid, child.gid) if self.as_root else (os.geteuid(), os.getegid())

    def _directory(self, name: str, uid: int, gid: int, mode: int = 0o755) -> None:
        path = f"{self._dir}/{name}"
        os.makedirs(path, mode, exist_ok=True)
        if self.as_root:
            os.chown(path, uid, gid, follow_symlinks=False)

    # ---- children ----

    def health_file(self, child: Instance) -> str:
        return f"{self._dir}/health/{child}/state"

    def _arguments(self, child: Instance) -> list[str]:
        """Return what a role's keeper is told, less its doors and descriptors, and whose end is to be its own."""
        arguments = ["--runtime-dir", self._dir, "--health-file", self.health_file(child)]
        arguments += ["--grace", str(self.config.grace)]
        if child.name:
            arguments += ["--name", child.name]
        if child.role in (Role.INIT, Role.MASTER):
            arguments += ["--config", self.file]
        if child.role is Role.INIT and self._founded:
            arguments += ["--take-back"]  # the listeners still have what its predecessor bound
        if child.role is Role.INIT:
            arguments += ["--deposit", ":".join(str(end.fileno()) for end in self._deposit)]
        if child.role is not Role.INIT:
            arguments += ["--max-age", str(self._options.max_age or service.DEFAULT_MAX_AGE)]
            if self.as_root:
                arguments += ["--uid", str(child.uid), "--gid", str(child.gid)]
        for address in child.allow:
            arguments += ["--allow", str(address)]
        if child.role is Role.VHOST:
            arguments += ["--shared-output"]
        if child.role is Role.VHOST and not self.as_root:
            arguments += ["--tmp", f"{self._dir}/tmp-{child.name}", "--one-uid"]
        return arguments

    def _command(self, child: Instance, runner: int) -> list[str]:
        if isinstance(child, GateInstance):
            command = [sys.executable, "-I", "-m", "pyttpd_init.gate", "--name", child.name]
            command += ["--uid", str(child.uid), "--gid", str(child.gid), "--die-with", str(runner)]
            return [*command, "--health-file", self.health_file(child)]
        command = [sys.executable, "-I", "-m", f"pyttpd_{child.role.value}", *self._arguments(child)]
        command += ["--die-with", str(runner)]
        for door in child.doors:
            command += ["--door", door_argument(door)]
        if self._steward.descriptor(child) >= 0:
            command += ["--runner", str(self._steward.descriptor(child))]
        return command

    def _may_sleep(self, child: Instance) -> bool:
        """Whether `child` is a tenant that needs nobody but a supervisor until somebody comes: a seed makes it quicker.

        Not where Landlock doesn't judge TCP connections: who sleeps there would have to give up connecting.
        """
        if child.role is not Role.VHOST or isinstance(child, GateInstance) or not self._judged:
            return False
        try:
            return self.config.vhost(child.name).pool.mode == "ondemand"
        except KeyError:
            return False  # its table has just gone; who starts it finds that out

    def _start(self, child: Instance) -> None:
        runner = os.getpid()
        self._watchdog.turn()
        child.start_at = None
        child.born = time.monotonic()
        if self._may_sleep(child) and self._ask_for(child):
            return
        child.pid = os.fork()
        if child.pid == 0:
            try:
                self._become(child, runner)
            except BaseException as error:  # noqa: BLE001 - the child ends here, whatever it was
                self.log.error("cannot start", child=child, error=error)
            finally:
                os._exit(2)

    def _ask_for(self, child: Instance) -> bool:
        """Have the seed fork a keeper of `child`, which sleeps. False: it has too many paths to be asked for so."""
        joins = child.network >= 0
        try:
            request = seed.Request(
                (*self._arguments(child), "--asleep"),
                tuple(f"{door.directory.value}:{door.role}:{door.name}" for door in child.doors),
                self._files(child) if self.as_root else None,
                joins,
            )
        except namespaces.NamespaceError as error:
            self.log.error("cannot start", child=child, error=error)
            self._gone(child, 2)
            return True
        data = request.pack()
        if len(data) > seed.MAX_REQUEST:
            return False
        fds = [*(door.fd for door in child.doors), *([child.network] if joins else [])]
        child.pid = self._seedbed.keeper(data, fds)
        if not child.pid:
            self._gone(child, 2)
        return True

    def _become(self, child: Instance, runner: int) -> None:
        os.setsid()
        command = self._command(child, runner)
        kept = [door.fd for door in child.doors]
        if child.role is Role.INIT and not isinstance(child, GateInstance):
            kept += [end.fileno() for end in self._deposit]
        if self._steward.descriptor(child) >= 0:
            kept.append(self._steward.descriptor(child))
        if isinstance(child, GateInstance):
            # Made here and not by the runner, which holds no listening socket.
            inside = namespaces.listen_inside(child.network, child.allow, gate.BACKLOG)
            for address, sock in zip(child.allow, inside, strict=True):
                command += ["--door", gate.door_argument(address, sock)]
                kept.append(sock.detach())
        if self.as_root:
            self._enter_namespaces(child)
        else:
            os.chdir("/")
        self._exec(command, *kept)

    @staticmethod
    def _exec(command: list[str], *kept: int) -> None:
        """Replace this forked child by `command`, with no descriptor but the log's and those that are `kept`."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        environment = {key: os.environ[key] for key in PASSED_ENVIRONMENT if key in os.environ}
        environment["PATH"] = PATH
        # What our caller left open (a shell's redirections, a directory, an agent's socket) is nobody's business here.
        first = 3
        for fd in sorted(kept):
            os.closerange(first, fd)
            os.set_inheritable(fd, True)
            first = fd + 1
        os.closerange(first, _LAST_DESCRIPTOR)
        os.execve(command[0], command, environment)

    def _enter_namespaces(self, child: Instance) -> None:
        view = self._view(child)
        if isinstance(child, GateInstance):
            pass  # it connects from here, the network of the machine
        elif child.network >= 0:
            namespaces.join_network_namespace(child.network)
        elif child.role is not Role.INIT:
            namespaces.enter_network_namespace()
        namespaces.enter_mount_namespace(view)

    def _view(self, child: Instance) -> namespaces.MountView:
        """Return what `child` sees of the files. Raises NamespaceError."""
        if isinstance(child, GateInstance):
            return namespaces.role_view(own=(os.path.dirname(self.health_file(child)),))
        if child.role is Role.VHOST:
            return namespaces.tenant_view(self._files(child))
        channels, own = self._folders(child)
        # init and master read the configuration, which may lie below a directory that is covered.
        reads = (os.path.dirname(self.file),) if child.role in (Role.INIT, Role.MASTER) else ()
        return namespaces.role_view(channels=(*channels, *reads), own=own)

    def _folders(self, child: Instance) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the folders of the channels that `child` connects to, and its own."""
        row = ROLES[child.role]
        health_folder = os.path.dirname(self.health_file(child))
        return (
            tuple(f"{self._dir}/{directory.value}" for directory in row.connects),
            (*(f"{self._dir}/{directory.value}" for directory in row.binds), health_folder),
        )

    def _files(self, child: Instance) -> namespaces.TenantFiles:
        """Return what a tenant's view is made of. Raises NamespaceError."""
        vhost = self.config.vhost(child.name)
        channels, own = self._folders(child)
        folder = os.path.dirname(self.file)
        return namespaces.TenantFiles(
            vhost.root,
            channels=channels,
            python_path=(
                *vhost.python_path,
                *((vhost.virtualenv,) if vhost.virtualenv else ()),
                *vhost.folders,
            ),
            writable=(*vhost.writable, *own, *log_folders(vhost)),
            hidden=() if _inside(vhost.root, folder) else (folder,),
        )

    def _reap(self) -> None:
        for pid, code in privileges.ended(self._stopped):
            if self._seedbed.gone(pid):
                continue
            for child in list(self.children):
                if child.pid == pid:
                    self._gone(child, code)

    def _end_strays(self) -> bool:
        """Kill what a keeper that was killed has left behind, and say whether there was any.

        A role dies with its keeper, but not what a tenant's application has started: as the subreaper we get that.
        """
        known = (
            self._not_ours | {child.pid for child in self.children} | self._steward.pids | {self._seedbed.pid}
        )
        strays = [pid for pid in privileges.children() if pid not in known]
        for pid in strays:
            _quietly(_kill_hard, pid)
        return bool(strays)

    def _end_stopped(self) -> None:
        """Kill a keeper that a signal has stopped: its role goes on, but nobody would start that again."""
        for pid in privileges.stopped_for_good(self._stopped, time.monotonic()):
            self.log.error("keeper is stopped and is killed", pid=pid)
            _quietly(_kill_hard, pid)

    def _gone(self, child: Instance, code: int) -> None:
        child.pid = 0
        if self._phase not in (Phase.STARTING, Phase.READY) or self._steward.gone(child):
            return
        if code == 2 and self._phase is Phase.STARTING and child.role in (Role.INIT, Role.MASTER):
            self.log.error("cannot start the tree", child=child)
            self._status = 2
            self._go_on_leaving()
            return
        now = time.monotonic()
        child.failures = 0 if now - child.born > STABLE_AFTER else child.failures + 1
        delay = min(LAST_DELAY, FIRST_DELAY * 2 ** min(child.failures, 16))
        self.log.warning("keeper ended and is started again", child=child, status=code, delay=round(delay, 2))
        child.start_at = now + delay

    # ---- the runner's life ----

    def run(self) -> int:
        """Run the tree until a signal; return the exit status."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        # Other servers are asked so to open their logs anew, which ours are without asking; unheard it would end us. A
        # handler, because what is ignored stays so over exec.
        signal.signal(signal.SIGUSR1, lambda *_: None)
        self._not_ours = frozenset(privileges.children())  # of whoever became this program by exec
        privileges.adopt_orphans()
        while True:
            if self._phase in (Phase.STARTING, Phase.READY):
                self._start_due()
            info = signal.sigtimedwait(_SIGNALS, min(self._wait(), self._watchdog.interval))
            self._watchdog.turn()
            self._reap()
            self._end_stopped()
            self._end_strays()
            number = 0 if info is None else info.si_signo
            if number == signal.SIGHUP and not self._lost_terminal():
                self._reload()
            elif number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) or time.monotonic() >= self._until:
                self._go_on_leaving()
            if self._phase in (Phase.STARTING, Phase.READY):
                self._steward.turn(time.monotonic())
            match self._phase:
                case Phase.STARTING:
                    self._look_ready()
                case Phase.READY:
                    pass
                case _ if not any(child.pid for child in self.children) and not self._end_strays():
                    break
                case Phase.LEAVING:
                    self._ask_next()
        self._clean()
        return self._status

    def _reload(self) -> None:
        """SIGHUP: master reads the configuration again, and asks us for what is ours to do."""
        for child in self.children:
            if child.role is Role.MASTER:
                self.kill(child, signal.SIGHUP)

    def _lost_terminal(self) -> bool:
        """Whether SIGHUP means what it did first: the terminal that we were started from is gone."""
        return self._had_terminal and not has_terminal()

    def _start_due(self) -> None:
        """Start who is due; of many only some in one turn, so that signals are heard in between."""
        now = time.monotonic()
        due = [child for child in self.children if child.start_at is not None and child.start_at <= now]
        # The seed imports what it has to while the founders start.
        seeded = any(self._may_sleep(child) for child in due) and self._seedbed.ready(now)
        for child in due[:MOST_AT_ONCE] if self._founded else due:
            if not self._founded and child.role not in FOUNDERS:
                continue
            if self._may_sleep(child) and not seeded:
                child.start_at = now + POLL
                continue
            self._start(child)

    def _wait(self) -> float:
        now = time.monotonic()
        if self._founded and any(
            child.start_at is not None and child.start_at <= now for child in self.children
        ):
            return 0.0
        if self._phase is not Phase.READY or self._steward.waits:
            return POLL
        times = [child.start_at - now for child in self.children if child.start_at is not None]
        times += [since + privileges.STOP_LIMIT - now for since in self._stopped.values()]
        return max(0.0, min(times, default=60.0))

    def _look_ready(self) -> None:
        if not self._founded:
            self._founded = all(self._is_ready(child) for child in self.children if child.role in FOUNDERS)
            return
        # A tenant is looked at until it has been ready once: with thousands of them, looking takes its time, too.
        unseen = self.children if self._late is None else self._late
        self._late = [one for one in unseen if one.role is Role.VHOST and not self._is_ready(one)]
        late = [
            one for one in self.children if one.role is not Role.VHOST and not self._is_ready(one)
        ] + self._late
        if any(child.role is not Role.VHOST for child in late):
            self._roles_since = 0.0
            return
        now = time.monotonic()
        self._roles_since = self._roles_since or now
        if not late or now - self._roles_since >= TENANTS_PATIENCE:
            self._phase = Phase.READY
            if late:
                names = " ".join(child.name for child in late[:MOST_NAMED])
                more = {"and_more": len(late) - MOST_NAMED} if len(late) > MOST_NAMED else {}
                self.log.warning("tenants that don't run yet; they are tried again", names=names, **more)
            addresses = " ".join(
                f"http://{each.address}/" for each in self.config.listeners if each.mode == "http"
            )
            notify("READY=1")
            tenants = len(self.config.vhosts) - len(late)
            self.log.info("ready", listening=addresses, tenants=tenants, stop="Ctrl-C")

    def _is_ready(self, child: Instance) -> bool:
        return health.read(self.health_file(child))[0]

    def _go_on_leaving(self) -> None:
        """A signal, or the end of the patience with the phase we are in: the next one."""
        now = time.monotonic()
        match self._phase:
            case Phase.STARTING | Phase.READY:
                self._phase, self._until = Phase.LEAVING, now + self.config.grace
                self._seedbed.end()
                notify("STOPPING=1")
                self.log.info("leaving", grace=self.config.grace)
            case Phase.LEAVING:
                self._phase, self._until = Phase.ENDING, now + LAST_WORD
                for child in self.children:
                    # A keeper ends at once at its second signal. One that hasn't had its first gets that too.
                    if not child.asked:
                        self.kill(child, signal.SIGTERM)
                    self.kill(child, signal.SIGINT)
            case Phase.ENDING | Phase.KILLING:
                self._phase, self._until = Phase.KILLING, now + LAST_WORD
                for child in self.children:
                    self.kill(child, signal.SIGKILL)

    def _ask_next(self) -> None:
        """Ask the next ones to leave, as soon as those before them have gone."""
        for roles in LEAVING_ORDER:
            there = [child for child in self.children if child.role in roles and child.pid]
            for child in there:
                if not child.asked:
                    child.asked = True
                    self.kill(child, signal.SIGTERM)
            if there:
                return

    @staticmethod
    def kill(child: Instance, number: int) -> None:
        if child.pid:
            os.kill(child.pid, number)  # not reaped yet, so the pid is still the child's

    def _clean(self) -> None:
        for end in self._deposit:
            end.close()
        if self.as_root:
            try:
                egress.remove_egress(table=self.table)
            except egress.EgressError as error:
                self.log.error("egress rule stays behind", error=error)
        # Only what we have made, each by its name: the directory may hold something of the operator's, and what is in a
        # tenant's directory may be a trap.
        self._steward.close()
        for row in ROLES.values():
            for directory in row.binds:
                _quietly(os.unlink, f"{self._dir}/{directory.value}/{SOCKET_NAME}")
                _quietly(os.rmdir, f"{self._dir}/{directory.value}")
        for child in self.children:
            if child.network >= 0 and not isinstance(child, GateInstance):
                os.close(child.network)
            for name in (self.health_file(child), f"{self.health_file(child)}.new"):
                _quietly(os.unlink, name)
            _quietly(os.rmdir, os.path.dirname(self.health_file(child)))
            if child.role is Role.VHOST and not self.as_root:
                _quietly(shutil.rmtree, f"{self._dir}/tmp-{child.name}")
        _quietly(os.rmdir, f"{self._dir}/health")
        _quietly(os.unlink, f"{self._dir}/lock")
        _quietly(os.rmdir, self._dir)
        self.log.info("left")


def has_terminal() -> bool:
    """Say whether this process has a controlling terminal that is still there (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def notify(state: str) -> None:
    """Tell systemd, if it has asked for that (Type=notify). Source: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address[0] == "@":
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, address)
    except OSError:
        pass  # systemd will notice by its own timeouts


class Watchdog:
    """systemd's, which kills a runner that has been stopped, or hangs: who says nothing for WatchdogSec.

    Nobody else watches the runner: everything below it serves on without it, and whoever killed it would end that.
    systemd starts it all again. Source: sd_watchdog_enabled(3).
    """

    def __init__(self) -> None:
        limit, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
        wanted = limit.isascii() and limit.isdigit() and pid in ("", str(os.getpid()))
        self.interval = int(limit) / 1e6 / 3 if wanted else float("inf")
        self._due = 0.0

    def turn(self) -> None:
        """Say that we live, if it is time to."""
        now = time.monotonic()
        if self.interval < float("inf") and now >= self._due:
            self._due = now + self.interval
            notify("WATCHDOG=1")


def _kill_hard(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)  # a child that we haven't reaped, so the pid is its own


def _quietly(function: object, path: str | int) -> None:
    try:
        function(path)  # type: ignore[operator]
    except (OSError, RecursionError):  # a tenant can nest its directories deeper than anybody can walk
        pass


def log_folders(vhost: Vhost) -> tuple[str, ...]:
    """Return the folders of a tenant's log files, for its supervisor's view. Its code reaches none of them.

    Raises NamespaceError if a way there leads through a symbolic link: it may be the tenant's, and then show what was
    to be hidden.
    """
    folders = tuple(sorted({os.path.dirname(file) for file in vhost.log_files}))
    for folder in folders:
        if os.path.realpath(folder) != folder:
            raise namespaces.NamespaceError(
                f"{folder} leads through a symbolic link (vhost {vhost.name}, log files)"
            )
    return folders


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def user_directory(configured: str) -> str:
    """Return an ordinary user's runtime_dir (`pyttpd.admin.user_directory`), made if it is one below /tmp."""
    path = admin.user_directory(configured)
    if path == f"/tmp/pyttpd-{os.geteuid()}":
        os.makedirs(path, 0o700, exist_ok=True)
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise StartError(f"{path} belongs to somebody else; set runtime_dir")
    return path


def main(arguments: list[str]) -> int:
    """Run the whole tree; returns the exit status: 0, or 2 if it can't be started as asked."""
    options = service.parse(Role.INIT, arguments)
    log = Log("init", "run")
    try:
        config = startup.read(options.config, log)
        runner = Runner(options, config, log)
        runner.prepare()
    except StartError as error:
        log.error("cannot start", error=error)
        return 2
    return runner.run()
